package reset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	sockDiagByFamily = 20
	sockDestroy      = 21
	stateListen      = 10

	headerLen  = 16 // struct nlmsghdr
	requestLen = headerLen + 56
	// Of struct inet_diag_msg: family and state, then struct inet_diag_sockid.
	idAt      = 4
	cookieAt  = idAt + 40
	answerLen = 72
)

// destroyer destroys TCP sockets of one network namespace.
type destroyer struct{ fd int } // netlink; -1: the namespace is gone

// newDestroyer opens a namespace by its path.
func newDestroyer(path string) (*destroyer, error) {
	ns, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &destroyer{-1}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	type result struct {
		fd  int
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and never back: the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			made <- result{-1, fmt.Errorf("enter network namespace %s: %w", path, err)}
			return
		}
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		if err != nil {
			err = fmt.Errorf("open sock_diag in %s: %w", path, err)
		}
		made <- result{fd, err}
	}()
	r := <-made
	if r.err != nil {
		return nil, r.err
	}
	wait := unix.Timeval{Sec: 1}
	if err := unix.SetsockoptTimeval(r.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return nil, errors.Join(fmt.Errorf("limit the wait for sock_diag: %w", err), unix.Close(r.fd))
	}
	return &destroyer{r.fd}, nil
}

func (d *destroyer) close() {
	if d.fd >= 0 {
		_ = unix.Close(d.fd)
	}
}

// destroy resets one connection; false: there is no such socket. It asks for
// the socket first and destroys that very one by its cookie: for a connection
// that is gone the kernel finds whoever listens there, and would destroy it.
func (d *destroyer) destroy(s socket) (bool, error) {
	if d.fd < 0 {
		return false, nil
	}
	answer, err := d.ask(request(sockDiagByFamily, unix.NLM_F_REQUEST, s, [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}))
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up socket %s → %s: %w", s.local, s.remote, err)
	}
	if len(answer) < answerLen || answer[1] == stateListen || !samePorts(answer[idAt:], s) {
		return false, nil
	}
	cookie := [8]byte(answer[cookieAt:])
	_, err = d.ask(request(sockDestroy, unix.NLM_F_REQUEST|unix.NLM_F_ACK, s, cookie))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("destroy socket %s → %s: %w", s.local, s.remote, err)
	}
	return true, nil
}

// samePorts tells whether an inet_diag_sockid is of s: a listener has no remote.
func samePorts(id []byte, s socket) bool {
	return binary.BigEndian.Uint16(id[0:]) == s.local.Port() && binary.BigEndian.Uint16(id[2:]) == s.remote.Port()
}

// request is a struct inet_diag_req_v2 with its header.
func request(kind, flags uint16, s socket, cookie [8]byte) []byte {
	b := make([]byte, requestLen)
	binary.NativeEndian.PutUint32(b[0:], requestLen)
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags)
	r := b[headerLen:]
	r[0], r[1] = unix.AF_INET6, unix.IPPROTO_TCP
	if s.local.Addr().Is4() {
		r[0] = unix.AF_INET
	}
	binary.NativeEndian.PutUint32(r[4:], ^uint32(0)) // any state
	id := r[8:]
	binary.BigEndian.PutUint16(id[0:], s.local.Port())
	binary.BigEndian.PutUint16(id[2:], s.remote.Port())
	copyAddr(id[4:], s.local.Addr())
	copyAddr(id[20:], s.remote.Addr())
	copy(id[40:], cookie[:])
	return b
}

func copyAddr(to []byte, a netip.Addr) { copy(to, a.AsSlice()) }

// ask sends a request and returns the answer without its header; an error that
// the kernel answers with is a unix.Errno.
func (d *destroyer) ask(req []byte) ([]byte, error) {
	if err := unix.Sendto(d.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	b := make([]byte, 4096)
	n, _, err := unix.Recvfrom(d.fd, b, 0)
	if err != nil {
		return nil, err
	}
	if n < headerLen {
		return nil, fmt.Errorf("answer of %d bytes", n)
	}
	body := b[headerLen:n]
	if binary.NativeEndian.Uint16(b[4:]) != unix.NLMSG_ERROR {
		return body, nil
	}
	if len(body) < 4 {
		return nil, fmt.Errorf("answer of %d bytes", n)
	}
	if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
		return nil, unix.Errno(-code)
	}
	return nil, nil
}
