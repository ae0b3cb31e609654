package reset

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/handover"
	"weir.dev/weir/services/enforcer/internal/datapath"
	"weir.dev/weir/services/enforcer/internal/proxynet"
)

const ruleSet = rule.FirstRuleSet + 5

// copier is a proxy that hands on what it reads.
type copier struct {
	t     *testing.T
	files map[handover.File]*os.File
}

// proxy gives the rig the proxy's namespaces, and a proxy in them.
func (r *rig) proxy(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	r.cutter.cfg.ProxyIn, r.cutter.cfg.ProxyOut = filepath.Join(dir, "netns", "weir-in"), filepath.Join(dir, "netns", "weir-out")
	t.Cleanup(func() {
		for _, path := range []string{r.cutter.cfg.ProxyIn, r.cutter.cfg.ProxyOut} {
			if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	})
	p, err := proxynet.Open(t.Context(), proxynet.Config{RunDir: dir, Datapath: r.kernel}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	h := p.Handles()
	if err := r.kernel.SetProxyWays(datapath.ProxyWays{In: h.InIfindex, Out: h.OutIfindex, InNSID: h.InNsid, OutNSID: h.OutNsid}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, p.Close()); err != nil {
			t.Error(err)
		}
	})
	newCopier(t, filepath.Join(dir, "handover.sock"))
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !p.Connected(); {
		select {
		case <-deadline:
			t.Fatal("the proxy is not connected")
		case <-tick.C:
		}
	}
}

func newCopier(t *testing.T, socket string) {
	t.Helper()
	c, err := handover.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	m, files, err := c.Receive()
	if err != nil || m.Kind != handover.Offer {
		t.Fatalf("first message %+v, %v, want an offer", m, err)
	}
	p := &copier{t: t, files: map[handover.File]*os.File{}}
	for i, f := range m.Files {
		p.files[f] = files[i]
		t.Cleanup(func() { _ = files[i].Close() })
	}
	for listener, netns := range map[handover.File]handover.File{
		handover.ListenerIn4: handover.NetnsIn, handover.ListenerIn6: handover.NetnsIn,
		handover.ListenerOut4: handover.NetnsOut, handover.ListenerOut6: handover.NetnsOut,
	} {
		l, err := net.FileListener(p.files[listener])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go p.serve(l, p.files[netns])
	}
	if err := c.Send(handover.Message{Kind: handover.Accepting}); err != nil {
		t.Fatal(err)
	}
}

func (p *copier) serve(l net.Listener, ns *os.File) {
	for {
		down, err := l.Accept()
		if err != nil {
			return
		}
		up, err := dialFrom(ns, down.RemoteAddr(), down.LocalAddr())
		if err != nil {
			p.t.Errorf("upstream leg: %v", err)
			_ = down.Close()
			continue
		}
		for _, way := range [][2]net.Conn{{up, down}, {down, up}} {
			go func() {
				_, _ = io.Copy(way[0], way[1])
				_ = way[0].Close()
				_ = way[1].Close()
			}()
		}
	}
}

// dialFrom connects from the client's own address, inside of a namespace.
func dialFrom(ns *os.File, from, to net.Addr) (net.Conn, error) {
	type result struct {
		net.Conn
		error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(netns.NsHandle(ns.Fd())); err != nil {
			done <- result{nil, err}
			return
		}
		d := net.Dialer{Timeout: patience, LocalAddr: from, Control: func(network, _ string, c syscall.RawConn) error {
			var err error
			if e := c.Control(func(fd uintptr) {
				level, option := unix.SOL_IP, unix.IP_TRANSPARENT
				if network == "tcp6" {
					level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
				}
				err = errors.Join(unix.SetsockoptInt(int(fd), level, option, 1), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			}); e != nil {
				return e
			}
			return err
		}}
		c, err := d.Dial("tcp", to.String())
		done <- result{c, err}
	}()
	r := <-done
	return r.Conn, r.error
}

// TestP9ProxiedConnectionsAreReset: with HTTP rules each end's connection is one
// with the proxy; both hear that it is forbidden now. The proxy may be faster to
// close the server's than the kernel is to reset it.
func TestP9ProxiedConnectionsAreReset(t *testing.T) {
	tests := map[string]struct {
		addr   int
		egress bool
	}{
		"at the server, IPv4": {0, false},
		"at the server, IPv6": {1, false},
		"at the client, IPv4": {0, true},
		"at the client, IPv6": {1, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.egress = test.egress
			r.attach(t)
			r.proxy(t)
			r.enforce(t, ruleSet, ruleSet)
			l, other := r.listen(t, "tcp", allowedPort), r.listen(t, "tcp", elsePort)
			addr := r.server.Addrs[test.addr]
			doomed, kept := r.connect(t, l, addr), r.connect(t, other, addr)

			r.enforce(t, rule.Denied, ruleSet)
			wantReset(t, "client", doomed.client)
			_ = doomed.server.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.ReadAll(doomed.server); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("server still waits")
			}
			kept.ping(t)

			// What was proxied stays so, even where nothing is to be read any more.
			r.enforce(t, rule.Denied, rule.Allowed)
			kept.ping(t)
		})
	}
}
