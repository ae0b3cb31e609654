package main

import (
	"bytes"
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
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/policyitem"
	"weir.dev/weir/internal/tlsconf"
	enforcerv1 "weir.dev/weir/proto/weir/enforcer/v1"
	flowv1 "weir.dev/weir/proto/weir/flow/v1"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/enforcer/internal/nodetest"
)

// asEnforcer makes the test's binary be the enforcer, so that one can be started
// in a node's namespaces and killed.
const asEnforcer = "WEIR_TEST_AS_ENFORCER"

func TestMain(m *testing.M) {
	if args := os.Getenv(asEnforcer); args != "" {
		if err := run(strings.Split(args, "\n")); err != nil {
			fmt.Fprintln(os.Stderr, "weir-enforcer:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// identityService plays weir-identity.
type identityService struct {
	identityv1.UnimplementedIdentityServiceServer
	records map[netip.Addr]*identityv1.AddressRecord // for look-ups; not in the snapshot
	asked   chan netip.Addr
}

func (s identityService) Lookup(_ context.Context, r *identityv1.LookupRequest) (*identityv1.LookupResponse, error) {
	a, _ := netip.AddrFromSlice(r.GetAddress())
	select {
	case s.asked <- a:
	default:
	}
	return &identityv1.LookupResponse{Record: s.records[a], Sequence: 2}, nil
}

// policyService plays weir-policy.
type policyService struct {
	policyv1.UnimplementedPolicyServiceServer

	mu       sync.Mutex
	items    []*policyv1.Item
	revision uint64
	changed  chan struct{} // closed and replaced at each change
	acked    uint64
	ackMoved chan struct{} // likewise
}

func identityOf(pod string) []byte {
	var h rule.IdentityHash
	copy(h[:], pod)
	return h[:]
}

// Every pod's identity entered the log at the revision that these say.
var entered = map[string]uint64{"app1": 11, "app2": 12, "app3": 13}

func (identityService) Register(_ context.Context, r *identityv1.RegisterRequest) (*identityv1.RegisterResponse, error) {
	return &identityv1.RegisterResponse{Identity: identityOf(r.GetName()), IdentityRevision: entered[r.GetName()], Generation: 1}, nil
}

func (identityService) Release(context.Context, *identityv1.ReleaseRequest) (*identityv1.ReleaseResponse, error) {
	return &identityv1.ReleaseResponse{}, nil
}

func (identityService) RegisterNode(context.Context, *identityv1.RegisterNodeRequest) (*identityv1.RegisterNodeResponse, error) {
	return &identityv1.RegisterNodeResponse{}, nil
}

func (identityService) Snapshot(_ *identityv1.SnapshotRequest, s grpc.ServerStreamingServer[identityv1.SnapshotResponse]) error {
	return s.Send(&identityv1.SnapshotResponse{End: true, Sequence: 1, CreatedUnixNano: 1})
}

func (c *policyService) WatchPolicy(s grpc.BidiStreamingServer[policyv1.WatchPolicyRequest, policyv1.WatchPolicyResponse]) error {
	if _, err := s.Recv(); err != nil {
		return err
	}
	got := make(chan *policyv1.WatchPolicyRequest)
	go func() {
		defer close(got)
		for {
			r, err := s.Recv()
			if err != nil {
				return
			}
			got <- r
		}
	}()
	for nonce := uint64(1); ; nonce++ {
		c.mu.Lock()
		r, changed := &policyv1.WatchPolicyResponse{Generation: 1, Revision: c.revision, Nonce: nonce, Full: true, End: true, Upserts: c.items}, c.changed
		c.mu.Unlock()
		held := map[policyitem.Key]uint64{}
		for _, it := range r.Upserts {
			k, err := policyitem.KeyOf(it)
			if err != nil {
				return err
			}
			if held[k], err = policyitem.Version(it); err != nil {
				return err
			}
		}
		r.Digest = policyitem.Digest(held)
		if err := s.Send(r); err != nil {
			return err
		}
		for waiting := true; waiting; {
			select {
			case q, ok := <-got:
				if !ok {
					return nil
				}
				c.ack(q.GetAck().GetRevision())
			case <-changed:
				waiting = false
			}
		}
	}
}

func (c *policyService) ack(revision uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acked = max(c.acked, revision)
	close(c.ackMoved)
	c.ackMoved = make(chan struct{})
}

// set publishes a policy and waits until it is in force.
func (c *policyService) set(t *testing.T, items ...*policyv1.Item) {
	t.Helper()
	c.mu.Lock()
	c.revision++
	want := c.revision
	c.items = items
	for pod, at := range entered {
		c.items = append(c.items, &policyv1.Item{Item: &policyv1.Item_Subject{Subject: &policyv1.Subject{
			Identity: identityOf(pod), IdentityRevision: at, Selectors: [][]byte{id("subject " + pod)},
		}}})
	}
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	deadline := time.After(10 * time.Second)
	for {
		c.mu.Lock()
		acked, moved := c.acked, c.ackMoved
		c.mu.Unlock()
		if acked >= want {
			return
		}
		select {
		case <-moved:
		case <-deadline:
			t.Fatalf("revision %d is not in force; %d is", want, acked)
		}
	}
}

func id(s string) []byte { x := rule.NewID([]byte(s)); return x[:] }

// allowOnly isolates a pod's ingress but for one pod and port.
func allowOnly(pod, from string, port uint32) []*policyv1.Item {
	origin := &policyv1.Origin{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "rule1"}
	return []*policyv1.Item{
		{Item: &policyv1.Item_Selector{Selector: &policyv1.Selector{Id: id("peer " + from), Identities: []uint64{entered[from]}}}},
		{Item: &policyv1.Item_Rule{Rule: &policyv1.Rule{
			Id: id("isolate " + pod), Subject: id("subject " + pod), Direction: policyv1.Direction_DIRECTION_INGRESS,
			Tier: policyv1.Tier_TIER_NORMAL, Action: policyv1.Action_ACTION_ISOLATE, Origin: origin,
		}}},
		{Item: &policyv1.Item_Rule{Rule: &policyv1.Rule{
			Id: id("allow " + pod), Subject: id("subject " + pod), Direction: policyv1.Direction_DIRECTION_INGRESS,
			Tier: policyv1.Tier_TIER_NORMAL, Action: policyv1.Action_ACTION_ALLOW, Peer: id("peer " + from),
			Ports: []*policyv1.PortRange{{Protocol: uint32(rule.TCP), First: port, Last: port}}, Origin: origin,
		}}},
	}
}

// fixture is a node with an enforcer of its own.
type fixture struct {
	*policyService
	identityService identityService
	node            *nodetest.Node
	dir             string
	args            []string
	cmd             *exec.Cmd
	log             *bytes.Buffer
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("", "weir") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{
		policyService:   &policyService{revision: 100, changed: make(chan struct{}), ackMoved: make(chan struct{})},
		identityService: identityService{records: map[netip.Addr]*identityv1.AddressRecord{}, asked: make(chan netip.Addr, 16)},
		node:            nodetest.New(t), dir: dir,
	}
	t.Cleanup(func() {
		for _, ns := range []string{"weir-in", "weir-out"} {
			if err := unix.Unmount(filepath.Join(dir, "run", "netns", ns), unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", ns, err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	ca, err := tlsconf.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue(filepath.Join(dir, "n1"), tlsconf.Name{Role: tlsconf.Node, Name: "n1"}, nil); err != nil {
		t.Fatal(err)
	}
	f.args = []string{
		"--node", "n1", "--nats", "tls://127.0.0.1:1", "--tls-dir", filepath.Join(dir, "n1"),
		"--identity", f.serve(t, ca, tlsconf.Identity), "--policy", f.serve(t, ca, tlsconf.Policy),
		"--cluster-cidr", "10.1.0.0/16", "--cluster-cidr", "fd00:1::/32", "--bpffs", f.node.BPFFS,
		"--run-dir", filepath.Join(dir, "run"), "--socket", filepath.Join(dir, "s"), "--http", filepath.Join(dir, "h"),
		"--log-level", "debug",
	}
	return f
}

// serve listens in the node, whose namespace this goroutine is in.
func (f *fixture) serve(t *testing.T, ca *tlsconf.CA, role tlsconf.Role) string {
	t.Helper()
	dir := filepath.Join(f.dir, string(role))
	if err := ca.Issue(dir, tlsconf.Name{Role: role, Name: "0"}, nil); err != nil {
		t.Fatal(err)
	}
	conf, err := tlsconf.Server(dir)
	if err != nil {
		t.Fatal(err)
	}
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(conf)))
	identityv1.RegisterIdentityServiceServer(s, f.identityService)
	policyv1.RegisterPolicyServiceServer(s, f.policyService)
	done := make(chan error)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return lis.Addr().String()
}

// start runs an enforcer in the node's namespaces.
func (f *fixture) start(t *testing.T) {
	t.Helper()
	f.log = &bytes.Buffer{}
	f.cmd = exec.Command(os.Args[0])
	f.cmd.Env = append(os.Environ(), asEnforcer+"="+strings.Join(f.args, "\n"))
	f.cmd.Stdout, f.cmd.Stderr = f.log, f.log
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd, log := f.cmd, f.log
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			f.stop(t, syscall.SIGTERM)
		}
		if t.Failed() {
			t.Logf("enforcer:\n%s", log)
		}
	})
}

func (f *fixture) stop(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := f.cmd.Process.Signal(signal); err != nil {
		t.Error(err)
	}
	err := f.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && (signal != syscall.SIGKILL || !errors.As(err, &exit)) {
		t.Errorf("enforcer: %v\n%s", err, f.log)
	}
}

func (f *fixture) dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func (f *fixture) add(t *testing.T, pod *nodetest.Pod, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req := &enforcerv1.AddEndpointRequest{
		ContainerId: name, Interface: "eth0", Namespace: "default", Pod: name, PodUid: name,
		Netns: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), pod.NetNS()), HostInterface: pod.Host, Mac: pod.PodMAC[:],
	}
	for _, a := range pod.Addrs {
		req.Addresses = append(req.Addresses, a.AsSlice())
	}
	conn := f.dial(t, filepath.Join(f.dir, "run", "cni.sock"))
	if _, err := enforcerv1.NewEndpointServiceClient(conn).AddEndpoint(ctx, req, grpc.WaitForReady(true)); err != nil {
		t.Fatalf("add %s: %v", name, err)
	}
}

// listen accepts in a pod and says hello.
func listen(t *testing.T, pod *nodetest.Pod, port uint16) {
	t.Helper()
	for _, a := range pod.Addrs {
		var lis net.Listener
		var err error
		pod.Do(t, func() {
			lis, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", netip.AddrPortFrom(a, port).String())
		})
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		serving.Go(func() {
			for {
				c, err := lis.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, "hello")
				c.Close()
			}
		})
		t.Cleanup(func() {
			lis.Close()
			serving.Wait()
		})
	}
}

// call connects from one pod to the other and reports what it heard.
func call(t *testing.T, from *nodetest.Pod, to netip.Addr, port uint16) string {
	t.Helper()
	var heard string
	from.Do(t, func() {
		c, err := (&net.Dialer{Timeout: 500 * time.Millisecond}).DialContext(t.Context(), "tcp", netip.AddrPortFrom(to, port).String())
		if err != nil {
			heard = "nothing"
			return
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
			t.Error(err)
		}
		b, err := io.ReadAll(c)
		if err != nil {
			t.Errorf("read: %v", err)
		}
		heard = string(b)
	})
	return heard
}

func (f *fixture) wantCalls(t *testing.T, when string, to *nodetest.Pod, port uint16, want map[*nodetest.Pod]string) {
	t.Helper()
	for from, heard := range want {
		for i, a := range to.Addrs {
			if got := call(t, from, a, port); got != heard {
				t.Errorf("%s: from %s to %s port %d: heard %q, want %q", when, from.Addrs[i], a, port, got, heard)
			}
		}
	}
}

func (f *fixture) flows(t *testing.T, q *flowv1.ObserveRequest) []*flowv1.Flow {
	t.Helper()
	stream, err := flowv1.NewFlowServiceClient(f.dial(t, filepath.Join(f.dir, "s"))).Observe(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	var flows []*flowv1.Flow
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return flows
		}
		if err != nil {
			t.Fatal(err)
		}
		flows = append(flows, r.GetFlow())
	}
}

// The tutorial's L3 and L4, from the CNI's call to the flow that explains a drop;
// and what a kill of the enforcer leaves.
func TestEnforcerOnANode(t *testing.T) {
	f := newFixture(t)
	f.start(t)
	app1 := f.node.Pod(t, "10.1.0.1", "fd00:1::1")
	app2 := f.node.Pod(t, "10.1.0.2", "fd00:1::2")
	app3 := f.node.Pod(t, "10.1.0.3", "fd00:1::3")
	f.set(t)
	for name, pod := range map[string]*nodetest.Pod{"app1": app1, "app2": app2, "app3": app3} {
		f.add(t, pod, name)
	}
	listen(t, app1, 80)
	listen(t, app1, 81)
	all := map[*nodetest.Pod]string{app2: "hello", app3: "hello"}
	f.wantCalls(t, "without a policy", app1, 80, all)

	f.set(t, allowOnly("app1", "app2", 80)...)
	one, none := map[*nodetest.Pod]string{app2: "hello", app3: "nothing"}, map[*nodetest.Pod]string{app2: "nothing", app3: "nothing"}
	f.wantCalls(t, "with the policy", app1, 80, one)
	f.wantCalls(t, "with the policy", app1, 81, none)
	flows := f.flows(t, &flowv1.ObserveRequest{Verdicts: []policyv1.Verdict{policyv1.Verdict_VERDICT_DENY}, Pods: []string{"default/app1"}})
	if !slices.ContainsFunc(flows, func(x *flowv1.Flow) bool {
		return x.GetReason() == "no-rule" && x.GetSource().GetPod() == "app3" && x.GetDestinationPort() == 80 &&
			len(x.GetSelectedBy()) == 1 && x.GetSelectedBy()[0].GetName() == "rule1"
	}) {
		t.Errorf("no drop of app3 that names rule1 among %d: %v", len(flows), flows)
	}

	// The kernel goes on without an enforcer; the next one adopts, and changes
	// nothing by itself.
	f.stop(t, syscall.SIGKILL)
	f.wantCalls(t, "killed", app1, 80, one)
	f.start(t)
	f.set(t, allowOnly("app1", "app2", 81)...)
	f.wantCalls(t, "adopted", app1, 81, one)
	f.wantCalls(t, "adopted", app1, 80, none)

	conn := f.dial(t, filepath.Join(f.dir, "run", "cni.sock"))
	if _, err := enforcerv1.NewEndpointServiceClient(conn).DeleteEndpoint(t.Context(), &enforcerv1.DeleteEndpointRequest{ContainerId: "app2", Interface: "eth0"}); err != nil {
		t.Fatal(err)
	}
	f.set(t)
	f.wantCalls(t, "policy deleted", app1, 80, map[*nodetest.Pod]string{app3: "hello"})
	f.wantMetrics(t)
}

// S4, in the kernel: an address that nothing was heard of is pending and looked
// up at once; one whose identity is newer than the policy stays pending until
// the policy follows. Neither is ever judged as world, which is allowed here.
func TestS4PendingOnANode(t *testing.T) {
	f := newFixture(t)
	known, early := netip.MustParseAddr("10.1.0.8"), netip.MustParseAddr("10.1.0.9")
	for a, revision := range map[netip.Addr]uint64{known: entered["app2"], early: 1000} {
		wide := a.As16()
		f.identityService.records[a] = &identityv1.AddressRecord{
			Address: wide[:], PodUid: "x", PodNamespace: "default", PodName: "remote", Node: "n2",
			Identity: identityOf("app2"), IdentityRevision: revision, Generation: 1,
		}
	}
	f.start(t)
	app1 := f.node.Pod(t, "10.1.0.1")
	f.set(t)
	f.add(t, app1, "app1")
	reasons := func(to netip.Addr) (out []string) {
		for _, x := range f.flows(t, &flowv1.ObserveRequest{Pods: []string{"default/app1"}}) {
			if a, _ := netip.AddrFromSlice(x.GetDestination().GetAddress()); a == to {
				out = append(out, x.GetReason())
			}
		}
		return out
	}
	// until calls to is judged as wanted; each call is one SYN.
	until := func(when string, to netip.Addr, want string) {
		t.Helper()
		for range 20 {
			call(t, app1, to, 80)
			if got := reasons(to); len(got) > 0 && got[len(got)-1] == want {
				return
			}
		}
		t.Fatalf("%s: %s is judged as %q, want %q at last", when, to, reasons(to), want)
	}
	until("looked up", known, "")
	if got := reasons(known)[0]; got != "pending" {
		t.Errorf("before the look-up: %q, want pending", got)
	}
	until("identity newer than the policy", early, "pending")
	if got := <-f.identityService.asked; got != known {
		t.Errorf("first looked up %s, want %s", got, known)
	}
	if got := <-f.identityService.asked; got != early {
		t.Errorf("then looked up %s, want %s", got, early)
	}
	call(t, app1, early, 80)
	for _, got := range reasons(early) {
		if got != "pending" {
			t.Errorf("identity newer than the policy: %q, want pending", got)
		}
	}
	f.mu.Lock()
	f.revision = 1000
	f.mu.Unlock()
	f.set(t)
	until("the policy followed", early, "")
}

// wantMetrics asks for what an operator watches.
func (f *fixture) wantMetrics(t *testing.T) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(f.dir, "h"))
	}}}
	defer client.CloseIdleConnections()
	get := func(path string) (int, []byte) {
		r, err := client.Get("http://enforcer" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, b
	}
	if code, b := get("/readyz?verbose"); code != http.StatusOK {
		t.Errorf("readyz: %d %s", code, b)
	}
	_, text := get("/metrics")
	for _, want := range []string{
		`weir_enforcer_drops_total{direction="ingress",reason="no-rule"}`, `weir_enforcer_lost_events_total{ring="drops"} 0`,
		"weir_enforcer_policy_in_force_seconds_count 2", `weir_enforcer_map_entries{map="addresses"}`, `weir_enforcer_endpoints{state="ready"} 2`,
	} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("metrics have no %s", want)
		}
	}
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	s, err := enforcerv1.NewEnforcerServiceClient(f.dial(t, filepath.Join(f.dir, "s"))).GetStatus(t.Context(), &enforcerv1.GetStatusRequest{})
	if err != nil || s.GetRevision() != f.revision || s.GetPolicyReplica() == "" || s.GetDrops()["no-rule"] == 0 || s.GetWatchLastBytes() == 0 {
		t.Errorf("status: %v, %v", s, err)
	}
}
