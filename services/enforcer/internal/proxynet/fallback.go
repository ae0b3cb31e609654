package proxynet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"weir.dev/weir/internal/logkey"
)

// unavailable is what a client gets while no proxy is there.
const unavailable = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n" +
	"Content-Length: 19\r\nConnection: close\r\nRetry-After: 1\r\n\r\nService Unavailable"

const (
	answerWithin  = 2 * time.Second // a client that says nothing is answered too
	answersAtOnce = 256             // more are reset
)

// A fallback answers on the listeners while no proxy accepts on them.
type fallback struct {
	p    *ProxyNet
	open chan struct{} // has a token for each connection being answered

	mu        sync.Mutex
	answering bool
	resume    chan struct{} // closed while it answers
}

func newFallback(p *ProxyNet) *fallback {
	f := &fallback{p: p, open: make(chan struct{}, answersAtOnce), answering: true, resume: make(chan struct{})}
	close(f.resume)
	return f
}

// control starts and stops answering as proxies come and go. It does not begin
// while the next proxy is waited for.
func (f *fallback) control(ctx context.Context) error {
	waited := time.NewTimer(0)
	defer waited.Stop()
	for {
		waits := f.p.waits()
		if f.follow(waits == 0) {
			f.p.letGo()
		}
		waited.Reset(max(waits, time.Millisecond))
		if waits == 0 {
			waited.Stop()
		}
		select {
		case <-ctx.Done():
			f.pause()
			f.each(func(ln *net.TCPListener) error { return ln.SetDeadline(past) })
			return nil
		case <-f.p.changed:
		case <-waited.C:
		}
	}
}

var past = time.Unix(1, 0)

// follow answers if no proxy accepts, and it may, and tells whether it does. It
// looks and acts in one: pause comes before or after it as a whole.
func (f *fallback) follow(may bool) (answering bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	connected := f.p.Connected()
	if want := may && !connected; want != f.answering {
		f.set(want)
		f.p.log.Info("proxy changed", "accepting", connected, "answering", want)
	}
	return f.answering
}

// pause stops answering. When it has returned, a connection that comes to the
// listeners is left to the proxy.
func (f *fallback) pause() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answering {
		f.set(false)
	}
}

// set is called with f.mu held, and only for a change.
func (f *fallback) set(answering bool) {
	f.answering = answering
	if answering {
		f.each(func(ln *net.TCPListener) error { return ln.SetDeadline(time.Time{}) })
		close(f.resume)
		return
	}
	f.resume = make(chan struct{})
	f.each(func(ln *net.TCPListener) error { return ln.SetDeadline(past) })
}

func (f *fallback) each(do func(*net.TCPListener) error) {
	for _, s := range []*space{f.p.in, f.p.out} {
		for _, ln := range s.listeners {
			if err := do(ln); err != nil && !errors.Is(err, net.ErrClosed) {
				f.p.log.Warn("set deadline of listener", logkey.Error, err)
			}
		}
	}
}

// serve answers on one listener until ctx ends.
func (f *fallback) serve(ctx context.Context, ln *net.TCPListener) error {
	var answers sync.WaitGroup
	defer answers.Wait()
	for {
		f.mu.Lock()
		resume := f.resume
		f.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-resume:
		}
		c, err := ln.AcceptTCP()
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case ctx.Err() != nil:
			return nil
		default:
			return err
		}
		select {
		case f.open <- struct{}{}:
			answers.Go(func() { f.answer(c); <-f.open })
		default:
			// Errors say that the peer is gone.
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}
}

// answer waits for the client to say something, whatever it is, and answers.
func (f *fallback) answer(c *net.TCPConn) {
	// Errors say that the client is gone: there is nobody to tell.
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(answerWithin))
	_, _ = c.Read(make([]byte, 4096))
	_ = c.SetDeadline(time.Now().Add(answerWithin))
	if _, err := io.WriteString(c, unavailable); err != nil {
		return
	}
	_ = c.CloseWrite()
	_, _ = io.CopyN(io.Discard, onlyReader{c}, 64<<10)
}

// onlyReader hides what else a connection can do.
type onlyReader struct{ io.Reader }
