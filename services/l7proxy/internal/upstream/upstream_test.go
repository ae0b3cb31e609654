package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir.dev/weir/internal/handover"
	"weir.dev/weir/services/l7proxy/internal/proxy"
)

// newSpace makes a network namespace with loopback, and calls f in it.
func newSpace(t *testing.T, f func() error) *os.File {
	t.Helper()
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never back
		var r result
		if r.err = unix.Unshare(unix.CLONE_NEWNET); r.err == nil {
			var lo netlink.Link
			if lo, r.err = netlink.LinkByName("lo"); r.err == nil {
				r.err = netlink.LinkSetUp(lo)
			}
		}
		if r.err == nil {
			r.err = f()
		}
		if r.err == nil {
			r.file, r.err = os.Open("/proc/thread-self/ns/net")
		}
		done <- r
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = r.file.Close() })
	return r.file
}

// A loop joins a Pool to a Maker without processes between them.
func loop(t *testing.T, netns *os.File) (*Pool, *sync.WaitGroup) {
	t.Helper()
	m, err := NewMaker(netns)
	if err != nil {
		t.Fatal(err)
	}
	var making sync.WaitGroup
	var p *Pool
	p = NewPool(func(ns handover.Namespace, family, n int) error {
		making.Go(func() {
			files, err := m.Make(family, n)
			if err != nil {
				t.Error(err)
			}
			p.Add(ns, family, files)
		})
		return nil
	})
	t.Cleanup(func() {
		making.Wait()
		p.Close()
		m.Close()
	})
	return p, &making
}

// The server sees the client's own address and port, which no machine has.
func TestServerSeesTheClient(t *testing.T) {
	for _, tt := range []struct{ server, client string }{
		{"127.0.0.1:0", "127.7.7.7:40000"}, {"[::1]:0", "[::1]:40000"},
	} {
		var ln net.Listener
		netns := newSpace(t, func() (err error) {
			ln, err = net.Listen("tcp", tt.server)
			return err
		})
		defer ln.Close()
		pool, _ := loop(t, netns)
		f := proxy.Flow{
			Direction: proxy.Ingress, Client: netip.MustParseAddrPort(tt.client),
			Server: ln.Addr().(*net.TCPAddr).AddrPort(),
		}
		for range 3 { // the same client, again and again
			c, err := Dialer{pool}.Dial(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			s, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if got := s.RemoteAddr().String(); got != tt.client {
				t.Errorf("the server sees %s, want %s", got, tt.client)
			}
			reset(c)
			_ = s.Close()
		}
	}
}

// reset leaves no TIME_WAIT, as in weir-in and weir-out.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

func TestDialFails(t *testing.T) {
	netns := newSpace(t, func() error { return nil })
	pool, _ := loop(t, netns)
	f := proxy.Flow{Client: netip.MustParseAddrPort("127.7.7.7:1"), Server: netip.MustParseAddrPort("127.0.0.1:1")}
	if _, err := (Dialer{pool}).Dial(t.Context(), f); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("no server: %v, want refused", err)
	}
	f.Server = netip.MustParseAddrPort("192.0.2.1:1")
	if _, err := (Dialer{pool}).Dial(t.Context(), f); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("no route: %v, want unreachable", err)
	}
}

// A connect that is not answered ends with its context.
func TestDialEndsWithItsContext(t *testing.T) {
	netns := newSpace(t, func() error {
		// Without ARP, frames into a veth have a destination that nobody is.
		d := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lost"}, PeerName: "end"}
		if err := netlink.LinkAdd(d); err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetARPOff(d), netlink.LinkSetUp(d)); err != nil {
			return err
		}
		end, err := netlink.LinkByName("end")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(end); err != nil {
			return err
		}
		all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: d.Attrs().Index, Dst: all, Scope: netlink.SCOPE_LINK})
	})
	pool, _ := loop(t, netns)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	f := proxy.Flow{Client: netip.MustParseAddrPort("10.7.7.7:1"), Server: netip.MustParseAddrPort("192.0.2.1:1")}
	if _, err := (Dialer{pool}).Dial(ctx, f); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want a time-out", err)
	}
}

func TestPoolAsksAtTheLowMark(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]int{}
	p := NewPool(func(ns handover.Namespace, family, n int) error {
		mu.Lock()
		defer mu.Unlock()
		asked[fmt.Sprintf("%s%d", ns, family)] += n
		return nil
	})
	defer p.Close()
	if err := p.Fill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Fill(); err != nil { // nothing has come yet: it does not ask twice
		t.Fatal(err)
	}
	for _, kind := range []string{"in4", "in6", "out4", "out6"} {
		if n := asked[kind]; n < low || n > handover.MaxFiles {
			t.Errorf("%d of %s are asked for", n, kind)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := p.Get(ctx, handover.In, 4); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an empty pool: %v", err)
	}
	var files []*os.File
	for range low + 2 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	before := asked["in4"]
	p.Add(handover.In, 4, files)
	for i := range 4 {
		f, err := p.Get(t.Context(), handover.In, 4)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		if more := asked["in4"] > before; more != (i == 3) {
			t.Errorf("after %d were taken: asked again is %v", i+1, more)
		}
	}
	if _, err := p.Get(t.Context(), "elsewhere", 4); err == nil {
		t.Error("there is a pool for a namespace that is none")
	}
}

// An enforcer that starts again hands over its namespaces anew, while a worker
// may ask for sockets of the old ones.
func TestMakerMayBeClosedWhileItIsUsed(t *testing.T) {
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	m, err := NewMaker(ns)
	if err := errors.Join(err, ns.Close()); err != nil {
		t.Fatal(err)
	}
	began, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for first := true; ; first = false {
			files, err := m.Make(4, 1)
			if err != nil {
				ended <- err
				return
			}
			handover.CloseAll(files)
			if first {
				close(began)
			}
		}
	}()
	<-began
	m.Close()
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("sockets of a closed maker: %v, want %v", err, ErrClosed)
	}
}
