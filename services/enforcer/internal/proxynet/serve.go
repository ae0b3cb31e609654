package proxynet

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weir.dev/weir/internal/handover"
	"weir.dev/weir/internal/logkey"
)

// A proxyConn is the handover connection of one proxy.
type proxyConn struct {
	*handover.Conn
	accepting bool // under ProxyNet.mu
}

// serveProxies hands the listeners to whichever proxy connects.
func (p *ProxyNet) serveProxies(ctx context.Context) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	stop := context.AfterFunc(ctx, func() {
		// It is closed again by Close, which finds it closed.
		_ = p.server.SetDeadline(past)
	})
	defer stop()
	for {
		c, err := p.server.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept proxy: %w", err)
		}
		conns.Go(func() {
			if err := p.serveProxy(ctx, c); err != nil {
				p.log.Warn("proxy lost", logkey.Error, err)
			}
		})
	}
}

func (p *ProxyNet) serveProxy(ctx context.Context, c *net.UnixConn) error {
	conn := &proxyConn{Conn: handover.NewConn(c)}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		if stop() {
			_ = conn.Close()
		}
	}()
	if err := rootOnly(c); err != nil {
		return err
	}
	p.mu.Lock()
	p.proxies[conn] = struct{}{}
	p.mu.Unlock()
	defer p.forget(conn)
	if err := p.offer(conn); err != nil {
		return err
	}
	for {
		m, files, err := conn.Receive()
		if err != nil {
			return nil // the proxy is gone, which is its right
		}
		if m.Kind == handover.Connection {
			p.park(parked{m, files})
			continue
		}
		handover.CloseAll(files)
		switch m.Kind {
		case handover.Accepting:
			if err := p.accepts(conn); err != nil {
				return err
			}
		case handover.Retiring:
			p.awaitSuccessor()
			p.setAccepting(conn, false)
			if err := conn.Send(handover.Message{Kind: handover.Retire}); err != nil {
				return err
			}
		default:
			return fmt.Errorf("message of kind %q from a proxy", m.Kind)
		}
	}
}

// rootOnly refuses a peer that is not root's process: file permissions alone
// do not bind a process of another root.
func rootOnly(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var inner error
	if err := raw.Control(func(fd uintptr) {
		cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if inner != nil {
		return fmt.Errorf("peer's credentials: %w", inner)
	}
	if cred.Uid != 0 {
		return fmt.Errorf("a process of user %d is not given sockets", cred.Uid)
	}
	return nil
}

// offer sends a proxy all that it needs.
func (p *ProxyNet) offer(c *proxyConn) error {
	m := handover.Message{Kind: handover.Offer}
	var fds []uintptr
	add := func(name handover.File, fd uintptr) {
		m.Files = append(m.Files, name)
		fds = append(fds, fd)
	}
	for _, l := range []struct {
		name handover.File
		ln   *net.TCPListener
	}{
		{handover.ListenerIn4, p.in.listeners[0]}, {handover.ListenerIn6, p.in.listeners[1]},
		{handover.ListenerOut4, p.out.listeners[0]}, {handover.ListenerOut6, p.out.listeners[1]},
	} {
		if err := withFd(l.ln, func(fd uintptr) error { add(l.name, fd); return nil }); err != nil {
			return err
		}
	}
	add(handover.NetnsIn, p.in.file.Fd())
	add(handover.NetnsOut, p.out.file.Fd())
	add(handover.CtTCP, p.ct.Fd())
	add(handover.Word, p.word.file.Fd())
	err := c.Send(m, fds...)
	runtime.KeepAlive(p)
	return err
}

// accepts makes a proxy the one that answers, and lets the others go.
func (p *ProxyNet) accepts(c *proxyConn) error {
	// The fallback must have let go of the listeners before anybody is steered
	// to them: it would answer 503 although a proxy accepts.
	p.setAccepting(c, true)
	p.answers.pause()
	if err := p.steer(); err != nil {
		return err
	}
	p.unpark(c)
	p.mu.Lock()
	var others []*proxyConn
	for o := range p.proxies {
		if o != c && o.accepting {
			o.accepting = false
			others = append(others, o)
		}
	}
	p.mu.Unlock()
	for _, o := range others {
		if err := o.Send(handover.Message{Kind: handover.Retire}); err != nil {
			p.log.Warn("let the former proxy go", logkey.Error, err)
		}
	}
	return nil
}

func (p *ProxyNet) setAccepting(c *proxyConn, accepting bool) {
	p.mu.Lock()
	c.accepting = accepting
	p.mu.Unlock()
	p.change()
}

func (p *ProxyNet) forget(c *proxyConn) {
	p.mu.Lock()
	delete(p.proxies, c)
	p.mu.Unlock()
	p.change()
}

func (p *ProxyNet) change() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// adoptWithin is how long a proxy that holds the listeners of an enforcer
// before this one may take to accept on ours.
const adoptWithin = 3 * time.Second

// steerLate steers to our listeners though no proxy has come for them.
func (p *ProxyNet) steerLate(ctx context.Context) error {
	t := time.NewTimer(adoptWithin)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-t.C:
		return p.steer()
	}
}
