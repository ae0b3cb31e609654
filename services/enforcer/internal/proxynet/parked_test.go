package proxynet

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir.dev/weir/internal/handover"
	"weir.dev/weir/services/enforcer/internal/nodetest"
)

// away sends one connection to the enforcer as a retiring proxy does. What is
// returned are the other ends of its two sockets.
func (a *answerer) away(t *testing.T) [2]*os.File {
	t.Helper()
	var theirs [2]*os.File
	var fds []uintptr
	for i := range theirs {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours := os.NewFile(uintptr(pair[0]), "ours")
		theirs[i] = os.NewFile(uintptr(pair[1]), "theirs")
		t.Cleanup(func() { _ = theirs[i].Close() })
		fds = append(fds, handover.Descriptor(ours))
		defer func() { _ = ours.Close() }()
	}
	if err := a.conn.Send(handover.Message{Kind: handover.Connection, Namespace: handover.Out}, fds...); err != nil {
		t.Fatal(err)
	}
	return theirs
}

// wantConnection takes a connection that was handed over and checks that it is
// the one with these ends.
func (a *answerer) wantConnection(t *testing.T, theirs [2]*os.File) {
	t.Helper()
	m, files, err := a.conn.Receive()
	if err != nil || m.Kind != handover.Connection || m.Namespace != handover.Out {
		t.Fatalf("received %+v, %v, want a connection of weir-out", m, err)
	}
	defer handover.CloseAll(files)
	for i, f := range files {
		if _, err := io.WriteString(f, "x"); err != nil {
			t.Fatal(err)
		}
		if n, err := theirs[i].Read(make([]byte, 2)); n != 1 || err != nil {
			t.Errorf("file %d: the other end reads %d bytes, %v, want 1", i, n, err)
		}
	}
}

// A retiring proxy's connections go to the one that accepts beside it, or wait
// for the next; those that wait in vain are ended, and clients are answered.
func TestConnectionsGoToTheNextProxy(t *testing.T) {
	n := nodetest.New(t)
	dir := runDir(t)
	d := openDatapath(t, n)
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	p, stop := openWith(t, d, dir, time.Minute)
	defer stop()
	a := connect(t, dir, "a")
	a.say(t, handover.Accepting)
	waitFor(t, "connected", p.Connected)
	b := connect(t, dir, "b")
	b.say(t, handover.Accepting)
	a.wantRetire(t)
	b.wantConnection(t, a.away(t))
	a.close()

	b.say(t, handover.Retiring)
	b.wantRetire(t)
	first, second := b.away(t), b.away(t)
	b.close()
	c := connect(t, dir, "c")
	c.say(t, handover.Accepting)
	c.wantConnection(t, first)
	c.wantConnection(t, second)

	p.mu.Lock()
	p.cfg.Successor = 100 * time.Millisecond
	p.mu.Unlock()
	c.say(t, handover.Retiring)
	c.wantRetire(t)
	lost := c.away(t)
	c.close()
	if got := ask(t, p.in, p.in.listeners[0]); len(got) < 12 || got[:12] != "HTTP/1.1 503" {
		t.Errorf("with nobody there the answer is %q, want 503", got)
	}
	for i, f := range lost {
		if _, err := f.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			t.Errorf("socket %d of a connection that waited in vain: %v, want its end", i, err)
		}
	}
}

func (a *answerer) wantRetire(t *testing.T) {
	t.Helper()
	if m, _, err := a.conn.Receive(); err != nil || m.Kind != handover.Retire {
		t.Fatalf("the proxy is told %+v, %v, want retire", m, err)
	}
}
