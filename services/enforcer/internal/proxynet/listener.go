package proxynet

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// backlog of the listeners; the namespace's somaxconn bounds it.
const backlog = 4096

// openListeners opens the transparent listeners of both families. They are
// bound to loopback: a wildcard would keep a client with their port from its
// transparent socket. Which port it is does not matter, the datapath steers by
// socket.
func (s *space) openListeners() error {
	return s.do(func() error {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			ln, err := listen(family)
			if err != nil {
				return fmt.Errorf("listen in %s: %w", s.name, err)
			}
			s.listeners = append(s.listeners, ln)
		}
		return nil
	})
}

func listen(family int) (*net.TCPListener, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	if err := bindLoopback(fd, family); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	ln, err := net.FileListener(f) // has a descriptor of its own
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(errors.New("not a TCP listener"), ln.Close())
	}
	return tcp, nil
}

func bindLoopback(fd, family int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if family == unix.AF_INET {
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		return unix.Listen(fd, backlog)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet6{Addr: [16]byte{15: 1}}); err != nil {
		return err
	}
	return unix.Listen(fd, backlog)
}

// steer makes new connections come to the space's listeners.
func (s *space) steer(m *ebpf.Map) error {
	for i, ln := range s.listeners {
		err := withFd(ln, func(fd uintptr) error { return m.Update(uint32(i), uint64(fd), ebpf.UpdateAny) })
		if err != nil {
			return fmt.Errorf("steer to the listener of %s: %w", s.name, err)
		}
	}
	return nil
}

// holdsSockets reports whether a SOCKMAP has a socket of each family, which
// some living process must hold.
func holdsSockets(m *ebpf.Map) bool {
	for i := range uint32(2) {
		var cookie uint64
		if err := m.Lookup(i, &cookie); err != nil {
			return false
		}
	}
	return true
}

// withFd calls f with a listener's descriptor, which stays the listener's.
func withFd(ln *net.TCPListener, f func(fd uintptr) error) error {
	raw, err := ln.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(fd) }); err != nil {
		return err
	}
	return inner
}
