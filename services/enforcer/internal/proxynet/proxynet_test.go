package proxynet

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/internal/handover"
	"weir.dev/weir/services/enforcer/internal/datapath"
	"weir.dev/weir/services/enforcer/internal/nodetest"
)

// openDatapath opens a small datapath on the node of the test.
func openDatapath(t *testing.T, n *nodetest.Node) *datapath.Datapath {
	t.Helper()
	d, err := datapath.Open(datapath.Config{BPFFS: n.BPFFS, Sizes: bpf.Sizes{
		Peers: 1024, Ranges: 1024, Backends: 1024, CtTCP: 1024, CtAny: 1024, RingBytes: 1 << 16,
	}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// open opens a ProxyNet that runs until the returned function has been called.
func open(t *testing.T, d *datapath.Datapath, runDir string) (*ProxyNet, func()) {
	t.Helper()
	return openWith(t, d, runDir, 100*time.Millisecond)
}

func openWith(t *testing.T, d *datapath.Datapath, runDir string, successor time.Duration) (*ProxyNet, func()) {
	t.Helper()
	p, err := Open(t.Context(), Config{RunDir: runDir, Datapath: d, MTU: 1400, Successor: successor}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := errors.Join(<-done, p.Close()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return p, stop
}

func runDir(t *testing.T) string {
	dir := t.TempDir()
	t.Cleanup(func() {
		for _, name := range []string{inName, outName} {
			if err := unix.Unmount(filepath.Join(dir, "netns", name), unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	})
	return dir
}

// A second enforcer finds the namespaces and links of the first.
func TestAdoptsWhatAnEnforcerLeft(t *testing.T) {
	n := nodetest.New(t)
	dir := runDir(t)
	d := openDatapath(t, n)
	p, stop := open(t, d, dir)
	first, inFirst := p.Handles(), inode(t, p.in)
	if first.InIfindex == 0 || first.OutIfindex == 0 || first.InNsid < 0 || first.OutNsid < 0 || first.InNsid == first.OutNsid {
		t.Fatalf("handles %+v", first)
	}
	stop()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = openDatapath(t, n)
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	p, stop = open(t, d, dir)
	defer stop()
	if diff := cmp.Diff(first, p.Handles()); diff != "" {
		t.Errorf("handles of the second (-first +second):\n%s", diff)
	}
	if got := inode(t, p.in); got != inFirst {
		t.Errorf("weir-in is namespace %d, was %d", got, inFirst)
	}
	l, err := netlink.LinkByName(inName)
	if err != nil || l.Attrs().MTU != 1400 {
		t.Errorf("link %v, %v, want an MTU of 1400", l, err)
	}
}

func inode(t *testing.T, s *space) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(s.file.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// ask connects to a listener from inside of the namespace and returns what
// comes back.
func ask(t *testing.T, s *space, ln *net.TCPListener) string {
	t.Helper()
	var conn net.Conn
	if err := s.do(func() (err error) {
		conn, err = net.DialTimeout("tcp", ln.Addr().String(), 2*time.Second)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET /public HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// answerer is a proxy that answers everything with its name.
type answerer struct {
	conn  *handover.Conn
	files map[handover.File]*os.File
	lns   []net.Listener
}

func connect(t *testing.T, dir, name string) *answerer {
	t.Helper()
	c, err := handover.Dial(t.Context(), filepath.Join(dir, "handover.sock"))
	if err != nil {
		t.Fatal(err)
	}
	m, files, err := c.Receive()
	if err != nil || m.Kind != handover.Offer {
		t.Fatalf("first message %+v, %v, want an offer", m, err)
	}
	a := &answerer{conn: c, files: map[handover.File]*os.File{}}
	for i, f := range m.Files {
		a.files[f] = files[i]
	}
	for _, f := range []handover.File{handover.ListenerIn4, handover.ListenerIn6, handover.ListenerOut4, handover.ListenerOut6} {
		ln, err := net.FileListener(a.files[f])
		if err != nil {
			t.Fatal(err)
		}
		a.lns = append(a.lns, ln)
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, name)
				_, _ = c.Read(make([]byte, 4096))
				_ = c.Close()
			}
		}()
	}
	t.Cleanup(a.close)
	return a
}

func (a *answerer) say(t *testing.T, k handover.Kind) {
	t.Helper()
	if err := a.conn.Send(handover.Message{Kind: k}); err != nil {
		t.Fatal(err)
	}
}

func (a *answerer) close() {
	_ = a.conn.Close()
	for _, ln := range a.lns {
		_ = ln.Close()
	}
	for _, f := range a.files {
		_ = f.Close()
	}
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(5 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("not within 5 s: %s", what)
		case <-tick.C:
		}
	}
}

// Without a proxy the enforcer answers 503; with one, the proxy; when it is
// gone, the enforcer again.
func TestSomebodyAlwaysAnswers(t *testing.T) {
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
	enforcer := func() {
		t.Helper()
		for _, s := range []*space{p.in, p.out} {
			for _, ln := range s.listeners {
				if got := ask(t, s, ln); !strings.HasPrefix(got, "HTTP/1.1 503 ") {
					t.Errorf("%s %s answers %q, want 503", s.name, ln.Addr(), got)
				}
			}
		}
	}
	proxied := func(by string) {
		t.Helper()
		waitFor(t, by+" answers alone", func() bool {
			for _, s := range []*space{p.in, p.out} {
				for _, ln := range s.listeners {
					if ask(t, s, ln) != by {
						return false
					}
				}
			}
			return true
		})
	}
	enforcer()
	a := connect(t, dir, "a")
	a.say(t, handover.Accepting)
	waitFor(t, "connected", p.Connected)
	proxied("a")

	b := connect(t, dir, "b")
	b.say(t, handover.Accepting)
	if m, _, err := a.conn.Receive(); err != nil || m.Kind != handover.Retire {
		t.Fatalf("the former proxy is told %+v, %v, want retire", m, err)
	}
	a.close()
	proxied("b")

	b.say(t, handover.Retiring)
	if m, _, err := b.conn.Receive(); err != nil || m.Kind != handover.Retire {
		t.Fatalf("the retiring proxy is told %+v, %v, want retire", m, err)
	}
	b.close()
	enforcer()
	if p.Connected() {
		t.Error("connected to nobody")
	}
}

// What is handed over cannot be written (threat P20).
func TestHandedOverIsReadOnly(t *testing.T) {
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
	a := connect(t, dir, "a")
	fd := int(a.files[handover.Word].Fd())
	mem, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	p.SetWord(0x1122334455667788)
	if got := *(*uint64)(unsafe.Pointer(&mem[0])); got != 0x1122334455667788 {
		t.Errorf("the word reads %#x", got)
	}
	if err := unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE); err == nil {
		t.Error("the word's memory can be made writable")
	}
	if err := unix.Munmap(mem); err != nil {
		t.Error(err)
	}
	if _, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
		t.Error("the word can be mapped for writing")
	}
	if _, err := unix.Pwrite(fd, []byte{1}, 0); err == nil {
		t.Error("the word can be written")
	}
	var key bpf.WeirCtKey
	var value bpf.WeirCt
	attr := struct {
		fd, _      uint32
		key, value uint64
		flags      uint64
	}{
		fd: uint32(a.files[handover.CtTCP].Fd()), key: uint64(uintptr(unsafe.Pointer(&key))), value: uint64(uintptr(unsafe.Pointer(&value))),
	}
	const update, lookup = 2, 1
	if _, _, errno := unix.Syscall(unix.SYS_BPF, update, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)); errno != unix.EPERM {
		t.Errorf("update of the conntrack map: %v, want EPERM", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, lookup, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)); errno != unix.ENOENT {
		t.Errorf("look-up in the conntrack map: %v, want ENOENT", errno)
	}
}
