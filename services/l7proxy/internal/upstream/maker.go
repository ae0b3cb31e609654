// Package upstream opens connections to servers in their clients' names.
//
// Only who has CAP_NET_ADMIN may make a transparent socket, and nobody with
// privileges may parse what strangers send. So the proxy's privileged parent
// makes sockets inside of weir-in and weir-out (a Maker) and passes them to the
// worker, which keeps some ready (a Pool), binds one to a client's address and
// port, and connects it (a Dialer).
//
// It imports internal/handover, proxy and x/sys.
package upstream

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"weir.dev/weir/internal/handover"
)

// A Maker makes sockets in one network namespace. It may be used by any number
// of goroutines.
type Maker struct {
	requests chan request
	quit     chan struct{} // closed by Close
	done     chan struct{} // closed when nothing is made any more
}

// ErrClosed: the Maker was closed, as its namespace is another's by now.
var ErrClosed = errors.New("the maker of sockets is closed")

type request struct {
	family, n int
	reply     chan reply
}

type reply struct {
	files []*os.File
	err   error
}

// NewMaker makes a Maker for the namespace, which is not needed afterwards.
func NewMaker(netns *os.File) (*Maker, error) {
	m := &Maker{requests: make(chan request), quit: make(chan struct{}), done: make(chan struct{})}
	entered := make(chan error)
	go func() {
		defer close(m.done)
		runtime.LockOSThread() // never unlocked: the thread is the namespace's, and ends with the Maker
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			entered <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		entered <- nil
		for {
			select {
			case r := <-m.requests:
				files, err := makeSockets(r.family, r.n)
				r.reply <- reply{files, err}
			case <-m.quit:
				return
			}
		}
	}()
	if err := <-entered; err != nil {
		return nil, err
	}
	return m, nil
}

// Close ends the Maker. It is called once; whoever makes sockets meanwhile gets
// them or ErrClosed.
func (m *Maker) Close() {
	close(m.quit)
	<-m.done
}

// Make makes n transparent sockets, of IPv4 or IPv6 (family 4 or 6).
func (m *Maker) Make(family, n int) ([]*os.File, error) {
	if n < 1 || n > handover.MaxFiles {
		return nil, fmt.Errorf("make %d sockets: want 1 to %d", n, handover.MaxFiles)
	}
	r := request{family: family, n: n, reply: make(chan reply, 1)}
	select {
	case m.requests <- r:
	case <-m.done:
		return nil, fmt.Errorf("make %d sockets: %w", n, ErrClosed)
	}
	got := <-r.reply
	return got.files, got.err
}

func makeSockets(family, n int) ([]*os.File, error) {
	var files []*os.File
	for range n {
		f, err := makeSocket(family)
		if err != nil {
			handover.CloseAll(files)
			return nil, fmt.Errorf("make transparent socket: %w", err)
		}
		files = append(files, f)
	}
	return files, nil
}

func makeSocket(family int) (*os.File, error) {
	domain, level, option := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
	switch family {
	case 4:
	case 6:
		domain, level, option = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	default:
		return nil, fmt.Errorf("family %d: want 4 or 6", family)
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "upstream")
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, level, option, 1),
	)
	if family == 6 {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
