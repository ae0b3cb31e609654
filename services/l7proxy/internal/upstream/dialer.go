package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weir.dev/weir/internal/handover"
	"weir.dev/weir/services/l7proxy/internal/proxy"
)

// A Dialer connects with sockets from a Pool.
type Dialer struct{ Pool *Pool }

// Dial connects to the flow's server from the flow's client address and port.
func (d Dialer) Dial(ctx context.Context, f proxy.Flow) (*net.TCPConn, error) {
	ns, family := handover.In, 4
	if f.Direction == proxy.Egress {
		ns = handover.Out
	}
	if f.Client.Addr().Is6() {
		family = 6
	}
	file, err := d.Pool.Get(ctx, ns, family)
	if err != nil {
		return nil, err
	}
	c, err := connect(ctx, file, f)
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	return c, nil
}

func connect(ctx context.Context, file *os.File, f proxy.Flow) (*net.TCPConn, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = begin(int(fd), f) }); err != nil {
		return nil, err
	}
	if inner != nil {
		return nil, inner
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := file.SetWriteDeadline(deadline); err != nil {
			return nil, err
		}
	}
	// A cancelled context wakes the wait below.
	stop := context.AfterFunc(ctx, func() { _ = file.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := raw.Write(func(fd uintptr) (done bool) {
		done, inner = connected(int(fd))
		return done
	}); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", f.Server, err)
	}
	if inner != nil {
		return nil, fmt.Errorf("connect to %s: %w", f.Server, inner)
	}
	c, err := net.FileConn(file) // has a descriptor of its own
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(errors.New("not a TCP connection"), c.Close())
	}
	return tcp, nil
}

func begin(fd int, f proxy.Flow) error {
	if err := unix.Bind(fd, sockaddr(f.Client)); err != nil {
		return fmt.Errorf("bind to %s: %w", f.Client, err)
	}
	if err := unix.Connect(fd, sockaddr(f.Server)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("connect to %s: %w", f.Server, err)
	}
	return nil
}

// connected asks how a connect got on. It must ask each time: the poller's edge
// may have come before the first call.
func connected(fd int) (done bool, err error) {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	switch {
	case err != nil:
		return true, err
	case code != 0:
		return true, syscall.Errno(code)
	}
	_, err = unix.Getpeername(fd)
	return err == nil, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
