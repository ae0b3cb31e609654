package reset

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/datapath"
	"weir.dev/weir/services/enforcer/internal/nodetest"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

const (
	clientID, serverID    = 1, 2
	clientPeer            = plan.Peer(1)
	policyRow             = plan.FirstRow
	allowedPort, elsePort = 8080, 8081
)

// rig is a client and a server joined by one node, under real programs. One of
// them may be a stranger: not on this node as far as Weir knows.
type rig struct {
	node           *nodetest.Node
	client, server *nodetest.Pod
	stranger       *nodetest.Pod
	egress         bool // the client's egress is judged, not the server's ingress
	kernel         *datapath.Datapath
	planner        *plan.Planner
	cutter         *Cutter
}

func newRig(t *testing.T) *rig {
	t.Helper()
	n := nodetest.New(t)
	r := &rig{node: n, client: n.Pod(t, "10.244.1.1", "fd00:244::1"), server: n.Pod(t, "10.244.1.2", "fd00:244::2")}
	r.open(t)
	return r
}

// open begins an enforcer, which adopts what another left.
func (r *rig) open(t *testing.T) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	var err error
	r.kernel, err = datapath.Open(datapath.Config{BPFFS: r.node.BPFFS, Sizes: bpf.Sizes{
		Peers: 1024, Ranges: 1024, Backends: 64, Addresses: 1024, Prefixes: 64, Cells: 64, Services: 64, CtTCP: 4096, CtAny: 4096, RingBytes: 1 << 16,
	}}, log)
	if err != nil {
		t.Fatal(err)
	}
	kernel := r.kernel
	t.Cleanup(func() { _ = kernel.Close() })
	r.planner = plan.NewPlanner(r.kernel.Limits(), r.kernel)
	r.cutter = New(Config{Netns: func(endpoint uint32) string {
		pods := map[uint32]*nodetest.Pod{clientID: r.client, serverID: r.server}
		return fmt.Sprintf("/proc/self/fd/%d", pods[endpoint].NetNS())
	}}, r.kernel, r.planner, log)
}

// attach puts the programs on the pods of this node.
func (r *rig) attach(t *testing.T) {
	t.Helper()
	for _, p := range []*nodetest.Pod{r.client, r.server} {
		if p == r.stranger {
			continue
		}
		if err := r.kernel.Attach(p.Ifindex); err != nil {
			t.Fatal(err)
		}
	}
}

// state lets the client reach two ports of the server with these verdicts.
func (r *rig) state(allowed, other rule.Verdict) plan.State {
	const tcp = uint32(rule.TCP) << 16
	client := plan.Endpoint{ID: clientID, Egress: plan.RowOpen, Ingress: plan.RowOpen, Addrs: r.client.Addrs, PodMAC: r.client.PodMAC, HostMAC: r.client.HostMAC}
	server := plan.Endpoint{ID: serverID, Egress: plan.RowOpen, Ingress: plan.RowOpen, Addrs: r.server.Addrs, PodMAC: r.server.PodMAC, HostMAC: r.server.HostMAC}
	if r.egress {
		client.Egress = policyRow
	} else {
		server.Ingress = policyRow
	}
	s := plan.State{
		Endpoints: map[uint32]plan.Endpoint{r.client.Ifindex: client, r.server.Ifindex: server},
		Addresses: map[netip.Addr]plan.PeerRef{},
		Classes:   map[plan.Peer]plan.Class{clientPeer: 1},
		Cells: map[plan.CellKey]plan.PortMap{
			{Row: policyRow, Class: plan.DefaultClass}: {
				{Start: 0}, {Start: tcp | allowedPort, Verdict: allowed}, {Start: tcp | elsePort, Verdict: other}, {Start: tcp | elsePort + 1},
			},
		},
	}
	if r.stranger != nil {
		delete(s.Endpoints, r.stranger.Ifindex)
	}
	for _, p := range []*nodetest.Pod{r.client, r.server} {
		for _, a := range p.Addrs {
			s.Addresses[a] = plan.PeerRef{Peer: clientPeer}
		}
	}
	return s
}

// enforce takes the kernel to a state, and cuts.
func (r *rig) enforce(t *testing.T, allowed, other rule.Verdict) {
	t.Helper()
	if r.apply(t, r.state(allowed, other)) {
		if err := r.cutter.Cut(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// apply takes the kernel to a state, and tells whether the word moved.
func (r *rig) apply(t *testing.T, s plan.State) bool {
	t.Helper()
	res, err := r.planner.Apply(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return res.Moved
}

// listen opens a listener in the server's namespace.
func (r *rig) listen(t *testing.T, network string, port int) net.Listener {
	t.Helper()
	var l net.Listener
	r.server.Do(t, func() {
		var err error
		if l, err = net.Listen(network, ":"+strconv.Itoa(port)); err != nil {
			t.Errorf("listen: %v", err)
		}
	})
	if l == nil {
		t.FailNow()
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// connection is both ends of one.
type connection struct{ client, server net.Conn }

// connect makes a connection and proves it.
func (r *rig) connect(t *testing.T, l net.Listener, addr netip.Addr) connection {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			close(accepted)
			return
		}
		accepted <- c
	}()
	var c connection
	port := l.Addr().(*net.TCPAddr).Port
	r.client.Do(t, func() {
		var err error
		d := net.Dialer{Timeout: patience}
		if c.client, err = d.Dial("tcp", netip.AddrPortFrom(addr, uint16(port)).String()); err != nil {
			t.Errorf("connect: %v", err)
		}
	})
	if c.client == nil {
		t.FailNow()
	}
	c.server = <-accepted
	t.Cleanup(func() { _ = c.client.Close(); _ = c.server.Close() })
	c.ping(t)
	return c
}

// ping sends a byte there and back.
func (c connection) ping(t *testing.T) {
	t.Helper()
	for _, way := range [][2]net.Conn{{c.client, c.server}, {c.server, c.client}} {
		if _, err := way[0].Write([]byte("x")); err != nil {
			t.Fatalf("write: %v", err)
		}
		_ = way[1].SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(way[1], make([]byte, 1)); err != nil {
			t.Fatalf("read: %v", err)
		}
	}
}

// wantReset checks that an end hears of its reset.
func wantReset(t *testing.T, who string, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	_, err := io.ReadAll(c)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		t.Errorf("%s still waits", who)
	case !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNABORTED):
		t.Errorf("%s: %v, want a reset", who, err)
	}
}

// TestP9ForbiddenConnectionsAreReset: both ends of an idle connection hear of it
// at once, the listener and what is still allowed live on.
func TestP9ForbiddenConnectionsAreReset(t *testing.T) {
	same := func(*rig) {}
	tests := map[string]struct {
		network string // of the listener
		addr    int    // of the server
		verdict rule.Verdict
		arrange func(*rig)
	}{
		"IPv4 becomes denied":                          {"tcp4", 0, rule.Denied, same},
		"IPv6 becomes denied":                          {"tcp6", 1, rule.Denied, same},
		"IPv4 to a dual-stack listener becomes denied": {"tcp", 0, rule.Denied, same},
		"plain becomes HTTP":                           {"tcp", 0, 7, same},
		"the client's egress becomes denied":           {"tcp", 0, rule.Denied, func(r *rig) { r.egress = true }},
		"the client is on another node, IPv4":          {"tcp", 0, rule.Denied, func(r *rig) { r.stranger = r.client }},
		"the client is on another node, IPv6":          {"tcp", 1, rule.Denied, func(r *rig) { r.stranger = r.client }},
		"the server is on another node":                {"tcp", 0, rule.Denied, func(r *rig) { r.egress, r.stranger = true, r.server }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			test.arrange(r)
			r.attach(t)
			r.enforce(t, rule.Allowed, rule.Allowed)
			l, other := r.listen(t, test.network, allowedPort), r.listen(t, test.network, elsePort)
			addr := r.server.Addrs[test.addr]
			doomed, kept := r.connect(t, l, addr), r.connect(t, other, addr)

			r.enforce(t, test.verdict, rule.Allowed)
			wantReset(t, "client", doomed.client)
			wantReset(t, "server", doomed.server)
			kept.ping(t)

			r.enforce(t, rule.Allowed, rule.Allowed)
			r.connect(t, l, addr)
		})
	}
}

// TestP9BusyConnectionIsReset: data under way when the policy changes.
func TestP9BusyConnectionIsReset(t *testing.T) {
	r := newRig(t)
	r.attach(t)
	r.enforce(t, rule.Allowed, rule.Allowed)
	c := r.connect(t, r.listen(t, "tcp", allowedPort), r.server.Addrs[0])
	stopped := make(chan error, 1)
	go func() {
		b := make([]byte, 1<<16)
		for {
			if _, err := c.client.Write(b); err != nil {
				stopped <- err
				return
			}
		}
	}()
	if _, err := io.ReadFull(c.server, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	r.enforce(t, rule.Denied, rule.Allowed)
	select {
	case err := <-stopped:
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("client: %v, want a reset", err)
		}
	case <-time.After(patience):
		t.Error("client still writes")
	}
	wantReset(t, "server", c.server)
}

// TestP9EnforcerDiedBeforeItCut: the word has moved, and then nobody was there
// to cut. The next enforcer has nothing to write, and cuts.
func TestP9EnforcerDiedBeforeItCut(t *testing.T) {
	r := newRig(t)
	r.attach(t)
	r.enforce(t, rule.Allowed, rule.Allowed)
	c := r.connect(t, r.listen(t, "tcp", allowedPort), r.server.Addrs[0])
	r.apply(t, r.state(rule.Denied, rule.Allowed))
	if err := r.kernel.Close(); err != nil {
		t.Fatal(err)
	}
	r.open(t)
	r.enforce(t, rule.Denied, rule.Allowed)
	wantReset(t, "client", c.client)
	wantReset(t, "server", c.server)
}

// TestListenerIsNeverDestroyed: for a connection that is gone the kernel finds
// whoever listens on its port.
func TestListenerIsNeverDestroyed(t *testing.T) {
	r := newRig(t)
	r.attach(t)
	r.enforce(t, rule.Allowed, rule.Allowed)
	l := r.listen(t, "tcp", allowedPort)
	d, err := newDestroyer(fmt.Sprintf("/proc/self/fd/%d", r.server.NetNS()))
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	done, err := d.destroy(socket{
		local:  netip.AddrPortFrom(r.server.Addrs[0], allowedPort),
		remote: netip.AddrPortFrom(r.client.Addrs[0], 5555),
	})
	if done || err != nil {
		t.Errorf("destroyed %v, %v", done, err)
	}
	r.connect(t, l, r.server.Addrs[0])
}

func TestNamespaceThatIsGoneIsNoError(t *testing.T) {
	d, err := newDestroyer(t.TempDir() + "/gone")
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if done, err := d.destroy(socket{}); done || err != nil {
		t.Errorf("destroyed %v, %v", done, err)
	}
}

// TestOnlyTheForbiddenIsFound walks flows without a kernel.
func TestOnlyTheForbiddenIsFound(t *testing.T) {
	client, server := netip.MustParseAddrPort("10.244.1.1:40000"), netip.MustParseAddrPort("10.244.1.2:80")
	masked := netip.MustParseAddrPort("10.0.0.1:40000") // an address of this node
	state := plan.State{
		Endpoints: map[uint32]plan.Endpoint{9: {ID: 2, Egress: plan.RowOpen, Ingress: 2, Addrs: []netip.Addr{server.Addr()}}},
		Addresses: map[netip.Addr]plan.PeerRef{client.Addr(): {Peer: 1}, masked.Addr(): {Peer: 2, Flags: plan.FlagHost}},
		Classes:   map[plan.Peer]plan.Class{1: 1, 2: 1},
		Cells:     map[plan.CellKey]plan.PortMap{{Row: 2, Class: plan.DefaultClass}: {{Start: 0}}},
	}
	flow := func(change func(*datapath.Flow)) datapath.Flow {
		f := datapath.Flow{A: client, B: server, Protocol: rule.TCP, AInitiates: true, Ingress: datapath.Slot{Endpoint: 2, Ifindex: 9, Word: 6, Verdict: rule.Allowed}}
		change(&f)
		return f
	}
	tests := map[string]struct {
		flow datapath.Flow
		want int
	}{
		"denied":                          {flow(func(*datapath.Flow) {}), 1},
		"judged under the word in force":  {flow(func(f *datapath.Flow) { f.Ingress.Word = 7 }), 0},
		"of an endpoint that is gone":     {flow(func(f *datapath.Flow) { f.Ingress.Endpoint = 3 }), 0},
		"reset already":                   {flow(func(f *datapath.Flow) { f.Ingress.Ifindex = 0 }), 0},
		"of a peer that is pending":       {flow(func(f *datapath.Flow) { f.A = netip.MustParseAddrPort("10.244.3.3:1") }), 0},
		"perhaps masqueraded":             {flow(func(f *datapath.Flow) { f.A = masked }), 0},
		"masqueraded, and dropped before": {flow(func(f *datapath.Flow) { f.A, f.Denied = masked, true }), 1},
		"through the proxy":               {flow(func(f *datapath.Flow) { f.ProxiedIn = true }), 3},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := New(Config{Netns: func(uint32) string { return "pod" }, ProxyIn: "weir-in"}, held{test.flow}, fixed(state), slog.Default())
			cuts, err := c.find(t.Context())
			if err != nil || len(cuts) != test.want {
				t.Errorf("cuts %+v, %v; want %d", cuts, err, test.want)
			}
		})
	}
}

type held []datapath.Flow

func (held) Word() uint64 { return 7 }

func (h held) TCPFlows(_ context.Context, f func(datapath.Flow)) error {
	for _, x := range h {
		f(x)
	}
	return nil
}

type fixed plan.State

func (f fixed) Realized() plan.State { return plan.State(f) }
