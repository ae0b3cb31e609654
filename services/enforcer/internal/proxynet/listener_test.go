package proxynet

import (
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"weir.dev/weir/services/enforcer/internal/nodetest"
)

// bindForeign makes a transparent socket as a proxy does, and binds it to a
// client's address and port.
func bindForeign(a unix.Sockaddr) error {
	domain, level, option := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
	if _, ok := a.(*unix.SockaddrInet6); ok {
		domain, level, option = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, level, option, 1),
		unix.Bind(fd, a),
		unix.Close(fd),
	)
}

// P18: a client may have the very port that a listener has, and any below 1024.
func TestP18ClientWithTheListenersPort(t *testing.T) {
	n := nodetest.New(t)
	dir := runDir(t)
	d := openDatapath(t, n)
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	p, stop := open(t, d, dir)
	defer stop()
	for _, s := range []*space{p.in, p.out} {
		four := s.listeners[0].Addr().(*net.TCPAddr)
		six := s.listeners[1].Addr().(*net.TCPAddr)
		if !four.IP.IsLoopback() || !six.IP.IsLoopback() {
			t.Errorf("%s listens on %s and %s, want loopback", s.name, four, six)
		}
		for _, a := range []unix.Sockaddr{
			&unix.SockaddrInet4{Addr: [4]byte{10, 244, 1, 7}, Port: four.Port},
			&unix.SockaddrInet4{Addr: [4]byte{10, 244, 1, 7}, Port: 80},
			&unix.SockaddrInet6{Addr: [16]byte{0: 0xfd, 15: 7}, Port: six.Port},
			&unix.SockaddrInet6{Addr: [16]byte{0: 0xfd, 15: 7}, Port: 22},
		} {
			if err := s.do(func() error { return bindForeign(a) }); err != nil {
				t.Errorf("%s: bind to %+v: %v", s.name, a, err)
			}
		}
	}
}
