package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"weir.dev/weir/bpf/datapath"
	"weir.dev/weir/internal/handover"
	l7proxyv1 "weir.dev/weir/proto/weir/l7proxy/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// space is a network namespace with nothing but loopback in it.
type space struct{ file *os.File }

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{}
	err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("0"), 0o644); err != nil {
			return err
		}
		s.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.file.Close() })
	return s
}

// do calls f inside of the namespace.
func (s *space) do(t *testing.T, f func() error) {
	t.Helper()
	if err := onThread(func() error { return unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET) }, f); err != nil {
		t.Fatal(err)
	}
}

func onThread(enter, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never back
		err := enter()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// A node is an enforcer and a pod as the proxy sees them. The listeners are in
// one namespace, and upstream sockets are made in another, where the app
// listens on the very address that clients of the first connect to.
type node struct {
	dir       string
	clients   *space
	servers   *space
	listeners []net.Listener // IPv4, IPv6
	ct        *ebpf.Map
	word      []byte
	wordFile  *os.File
	ln        *net.UnixListener
	ctx       context.Context // ends with the proxy
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{dir: t.TempDir(), clients: newSpace(t), servers: newSpace(t)}
	n.clients.do(t, func() error {
		for _, addr := range []string{"127.0.0.1:15001", "[::1]:15001"} {
			ln, err := net.Listen("tcp", addr)
			if err != nil {
				return err
			}
			n.listeners = append(n.listeners, ln)
			t.Cleanup(func() { _ = ln.Close() })
		}
		return nil
	})
	var err error
	n.ct, err = ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.Hash, KeySize: uint32(unsafe.Sizeof(datapath.WeirCtKey{})), ValueSize: uint32(unsafe.Sizeof(datapath.WeirCt{})), MaxEntries: 128,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.ct.Close() })
	fd, err := unix.MemfdCreate("word", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	n.wordFile = os.NewFile(uintptr(fd), "word")
	t.Cleanup(func() { _ = n.wordFile.Close() })
	if err := n.wordFile.Truncate(int64(os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	n.word, err = unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	n.setWord(2)
	if n.ln, err = handover.Listen(t.Context(), filepath.Join(n.dir, "handover.sock")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.ln.Close() })
	return n
}

func (n *node) setWord(w uint64) { *(*uint64)(unsafe.Pointer(&n.word[0])) = w }

// judge writes the slot of a connection: ingress of the server.
func (n *node) judge(t *testing.T, client, server string, word uint64, verdict uint32) {
	t.Helper()
	key := ctKey(client, server)
	var v datapath.WeirCt
	v.Slot[1].Word, v.Slot[1].Ifindex, v.Slot[1].Verdict = word, 7, verdict
	if err := n.ct.Put(key, v); err != nil {
		t.Fatal(err)
	}
}

// ctKey is written without the code under test.
func ctKey(client, server string) []byte {
	a, b := netip.MustParseAddrPort(client), netip.MustParseAddrPort(server)
	x, y := a.Addr().As16(), b.Addr().As16()
	if string(y[:]) < string(x[:]) || x == y && b.Port() < a.Port() {
		x, y, a, b = y, x, b, a
	}
	key := append(x[:], y[:]...)
	key = append(key, byte(a.Port()>>8), byte(a.Port()), byte(b.Port()>>8), byte(b.Port()), 6, 0, 0, 0)
	return key
}

// serve hands everything to a proxy that connects and returns its connection.
func (n *node) serve(t *testing.T) *handover.Conn {
	t.Helper()
	c, err := n.ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	conn := handover.NewConn(c)
	t.Cleanup(func() { _ = conn.Close() })
	m := handover.Message{Kind: handover.Offer}
	var fds []uintptr
	add := func(name handover.File, f *os.File) {
		m.Files = append(m.Files, name)
		fds = append(fds, f.Fd())
	}
	// Direction egress has listeners that nobody connects to.
	for i, names := range [][2]handover.File{{handover.ListenerIn4, handover.ListenerOut4}, {handover.ListenerIn6, handover.ListenerOut6}} {
		f, err := n.listeners[i].(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.SetNonblock(int(f.Fd()), true); err != nil {
			t.Fatal(err)
		}
		add(names[0], f)
		n.servers.do(t, func() error {
			out, err := net.Listen("tcp", []string{"127.0.0.1:0", "[::1]:0"}[i])
			if err != nil {
				return err
			}
			of, err := out.(*net.TCPListener).File()
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = errors.Join(out.Close(), of.Close()) })
			add(names[1], of)
			return unix.SetNonblock(int(of.Fd()), true)
		})
	}
	ro, err := readOnly(n.ct)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	add(handover.NetnsIn, n.servers.file)
	add(handover.NetnsOut, n.servers.file)
	add(handover.CtTCP, ro)
	add(handover.Word, n.wordFile)
	if err := conn.Send(m, fds...); err != nil {
		t.Fatal(err)
	}
	return conn
}

func readOnly(m *ebpf.Map) (*os.File, error) {
	info, err := m.Info()
	if err != nil {
		return nil, err
	}
	id, _ := info.ID()
	attr := [3]uint32{uint32(id), 0, 8}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, 14, uintptr(unsafe.Pointer(&attr)), 12)
	if errno != 0 {
		return nil, errno
	}
	return os.NewFile(fd, "ct"), nil
}

// app starts a server that answers with whom it sees.
func (n *node) app(t *testing.T, addr string) {
	t.Helper()
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s from %s", r.URL.Path, r.RemoteAddr)
	})}
	n.servers.do(t, func() error {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		go func() { _ = srv.Serve(ln) }()
		return nil
	})
	t.Cleanup(func() { _ = srv.Close() })
}

// dial connects a client with that address to a listener.
func (n *node) dial(t *testing.T, client, server string) net.Conn {
	t.Helper()
	var c net.Conn
	n.clients.do(t, func() (err error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(client)), Timeout: 5 * time.Second}
		c, err = d.Dial("tcp", server)
		return err
	})
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// fails connects and reads, and returns what went wrong.
func (n *node) fails(t *testing.T, client, server string) error {
	t.Helper()
	var failed error
	n.clients.do(t, func() error {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(client)), Timeout: 5 * time.Second}
		c, err := d.Dial("tcp", server)
		if err != nil {
			failed = err
			return nil
		}
		_, failed = c.Read(make([]byte, 1))
		return c.Close()
	})
	return failed
}

// get asks on a connection and returns status and body.
func get(t *testing.T, c net.Conn, path string) string {
	t.Helper()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: app\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, b)
}

func str(s string) *string { return &s }

func ruleSet(number uint32, path string) *l7proxyv1.NumberedRuleSet {
	return &l7proxyv1.NumberedRuleSet{Number: number, AllOf: []*policyv1.RuleSet{{Rules: []*policyv1.HTTPRule{{Method: str("GET"), Path: str(path)}}}}}
}

// start runs the program for the node until the returned function has been
// called.
func (n *node) start(t *testing.T) (stop func() error) {
	t.Helper()
	args := []string{"--node", "n1", "--run-dir", n.dir, "--http", filepath.Join(n.dir, "proxy.http.sock"), "--log-level", "debug"}
	cmd := exec.Command(program(t), args...)
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, ended := context.WithCancelCause(t.Context())
	n.ctx = ctx
	done := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		ended(err)
		done <- err
	}()
	stop = sync.OnceValue(func() error {
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			return err
		}
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

// program builds weir-l7proxy as make build does.
func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "weir-l7proxy")
	build := exec.Command("go", "build", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

func (n *node) client(t *testing.T) l7proxyv1.ProxyServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+filepath.Join(n.dir, "proxy.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return l7proxyv1.NewProxyServiceClient(conn)
}

func (n *node) expect(t *testing.T, c *handover.Conn, want handover.Kind) {
	t.Helper()
	if m, _, err := c.Receive(); err != nil || m.Kind != want {
		t.Fatalf("the proxy says %+v, %v, want %s", m, err, want)
	}
}
