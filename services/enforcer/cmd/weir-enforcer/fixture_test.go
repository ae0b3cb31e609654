package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

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
