package endpoint_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weir.dev/weir/engine/rule"
	enforcerv1 "weir.dev/weir/proto/weir/enforcer/v1"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	"weir.dev/weir/services/enforcer/internal/desired"
	"weir.dev/weir/services/enforcer/internal/endpoint"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node plays everything around the server and writes down what happened.
type node struct {
	mu       sync.Mutex
	log      []string
	links    map[string]uint32 // veths by name
	failures []error           // of Register, one after the other
	attached map[uint32]bool
	hang     bool // weir-identity answers no Register
}

func (n *node) say(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.log = append(n.log, s)
}

func (n *node) said() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.log)
}

func (n *node) Attach(ifindex uint32) error {
	n.say("attach")
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attached[ifindex] = true
	return nil
}

func (n *node) Detach(ifindex, _ uint32) error {
	n.say("detach")
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, ifindex)
	return nil
}

func (n *node) Attached(ifindex uint32) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.attached[ifindex] {
		return errors.New("not attached")
	}
	return nil
}

func (n *node) Veth(name string) (uint32, [6]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i, ok := n.links[name]
	if !ok {
		return 0, [6]byte{}, errors.New("no such veth")
	}
	return i, [6]byte{2}, nil
}

func (n *node) Register(ctx context.Context, r *identityv1.RegisterRequest, _ ...grpc.CallOption) (*identityv1.RegisterResponse, error) {
	n.say("register " + r.GetName())
	n.mu.Lock()
	hang := n.hang
	n.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.failures) > 0 {
		err := n.failures[0]
		n.failures = n.failures[1:]
		return nil, err
	}
	id := hash(r.GetName())
	return &identityv1.RegisterResponse{Identity: id[:], IdentityRevision: 10, Generation: 1,
		Content: &identityv1.Identity{Labels: []*identityv1.Label{{Key: "id", Value: r.GetName()}}}}, nil
}

func (n *node) Release(_ context.Context, r *identityv1.ReleaseRequest, _ ...grpc.CallOption) (*identityv1.ReleaseResponse, error) {
	n.say("release " + r.GetName())
	return &identityv1.ReleaseResponse{}, nil
}

func hash(s string) (h rule.IdentityHash) { copy(h[:], s); return h }

type fixture struct {
	*node
	path     string
	registry *endpoint.Registry
	server   *endpoint.Server
	changed  chan struct{}
	lost     atomic.Bool // registrations
}

func start(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{
		node: &node{links: map[string]uint32{"veth1": 7, "veth2": 8}, attached: map[uint32]bool{}},
		path: filepath.Join(t.TempDir(), "endpoints.json"),
	}
	f.restart(t)
	return f
}

// restart is a new process with the old file.
func (f *fixture) restart(t *testing.T) {
	t.Helper()
	changed := make(chan struct{}, 100)
	registry, err := endpoint.Load(f.path, func() { changed <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	f.changed, f.registry = changed, registry
	f.server = endpoint.NewServer(registry, f.node, f.node, f.node, slog.New(slog.DiscardHandler), func(time.Duration) {}, func(endpoint.Endpoint) bool { return f.lost.Load() })
}

func request(container, pod, veth, addr string) *enforcerv1.AddEndpointRequest {
	return &enforcerv1.AddEndpointRequest{
		ContainerId: container, Interface: "eth0", Namespace: "default", Pod: pod, PodUid: "uid-" + pod, HostInterface: veth,
		Mac: []byte{2, 0, 0, 0, 0, 1}, Addresses: [][]byte{netip.MustParseAddr(addr).AsSlice()},
	}
}

// add calls AddEndpoint; the channel has its error once it returns.
func (f *fixture) add(ctx context.Context, r *enforcerv1.AddEndpointRequest) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := f.server.AddEndpoint(ctx, r)
		done <- err
	}()
	return done
}

// force puts in force what the registry says now.
func (f *fixture) force(t *testing.T) {
	t.Helper()
	judged := map[uint32]desired.Judged{}
	for _, e := range f.registry.List() {
		judged[e.ID] = desired.Judged{Identity: e.Identity, Entered: e.Entered}
		if e.Next != (rule.IdentityHash{}) {
			judged[e.ID] = desired.Judged{Identity: e.Next, Entered: e.NextEntered}
		}
	}
	if err := f.registry.InForce(judged); err != nil {
		t.Fatal(err)
	}
}

// awaitRegistered returns when the pod's endpoint has its identity.
func (f *fixture) awaitRegistered(pod string) {
	for {
		for _, e := range f.registry.List() {
			if e.Pod == pod && e.Identity != (rule.IdentityHash{}) {
				return
			}
		}
		<-f.changed
	}
}

func TestAddReturnsOnlyWhenThePolicyIsInForce(t *testing.T) {
	f := start(t)
	f.failures = []error{status.Error(codes.Unavailable, "away"), status.Error(codes.FailedPrecondition, "pod not known yet")}
	done := f.add(t.Context(), request("c1", "app1", "veth1", "10.1.0.1"))
	f.awaitRegistered("app1")
	select {
	case err := <-done:
		t.Fatalf("returned before the policy was in force: %v", err)
	default:
	}
	f.force(t)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	want := []string{"attach", "register app1", "register app1", "register app1"}
	if diff := cmp.Diff(want, f.said()); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
	if got := f.registry.List()[0]; got.ID != 1 || got.Ifindex != 7 || !slices.Equal(got.Labels, []string{"id=app1"}) {
		t.Errorf("endpoint: %+v", got)
	}
	if _, err := f.server.CheckEndpoint(t.Context(), &enforcerv1.CheckEndpointRequest{ContainerId: "c1", Interface: "eth0"}); err != nil {
		t.Errorf("check: %v", err)
	}
}

func TestAddMayBeRepeatedAndCutShort(t *testing.T) {
	f := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := f.add(ctx, request("c1", "app1", "veth1", "10.1.0.1"))
	f.awaitRegistered("app1")
	cancel()
	if err := <-done; status.Code(err) != codes.Unavailable {
		t.Errorf("cut short: %v", err)
	}
	f.force(t)
	for range 2 {
		if err := <-f.add(t.Context(), request("c1", "app1", "veth1", "10.1.0.1")); err != nil {
			t.Fatal(err)
		}
	}
	if l := f.registry.List(); len(l) != 1 || l[0].ID != 1 {
		t.Errorf("after repeating: %+v", l)
	}
}

func TestAddIsRefusedWithAReason(t *testing.T) {
	f := start(t)
	noMAC := request("c1", "app1", "veth1", "10.1.0.1")
	noMAC.Mac = nil
	for _, tc := range []struct {
		name string
		r    *enforcerv1.AddEndpointRequest
		want codes.Code
	}{
		{"no MAC", noMAC, codes.InvalidArgument},
		{"no such interface", request("c1", "app1", "veth9", "10.1.0.1"), codes.FailedPrecondition},
	} {
		if err := <-f.add(t.Context(), tc.r); status.Code(err) != tc.want {
			t.Errorf("%s: got %v, want %s", tc.name, err, tc.want)
		}
	}
	f.failures = []error{status.Error(codes.AlreadyExists, "address has a live owner")}
	if err := <-f.add(t.Context(), request("c1", "app1", "veth1", "10.1.0.1")); status.Code(err) != codes.AlreadyExists {
		t.Errorf("an address of another: %v", err)
	}
	if _, err := f.server.CheckEndpoint(t.Context(), &enforcerv1.CheckEndpointRequest{ContainerId: "c9", Interface: "eth0"}); status.Code(err) != codes.NotFound {
		t.Errorf("check of a stranger: %v", err)
	}
}

func TestAddressOfALivingEndpointIsRefusedOfADeadOneTaken(t *testing.T) {
	f := start(t)
	done := f.add(t.Context(), request("c1", "app1", "veth1", "10.1.0.1"))
	f.awaitRegistered("app1")
	f.force(t)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := <-f.add(t.Context(), request("c2", "app2", "veth2", "10.1.0.1")); status.Code(err) != codes.AlreadyExists {
		t.Errorf("address of a living endpoint: %v", err)
	}
	f.mu.Lock()
	delete(f.links, "veth1")
	f.mu.Unlock()
	done = f.add(t.Context(), request("c2", "app2", "veth2", "10.1.0.1"))
	f.awaitRegistered("app2")
	f.force(t)
	if err := <-done; err != nil {
		t.Errorf("address of a dead endpoint: %v", err)
	}
	if l := f.registry.List(); len(l) != 1 || l[0].ID != 2 {
		t.Errorf("endpoints: %+v; want one with a new ID", l)
	}
}

func TestDeletedAddressesAreReleasedSoonerOrLater(t *testing.T) {
	f := start(t)
	done := f.add(t.Context(), request("c1", "app1", "veth1", "10.1.0.1"))
	f.awaitRegistered("app1")
	f.force(t)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := f.server.DeleteEndpoint(t.Context(), &enforcerv1.DeleteEndpointRequest{ContainerId: "c1", Interface: "eth0"}); err != nil {
			t.Fatal(err)
		}
	}
	f.restart(t) // before the release was made
	if l := f.registry.List(); len(l) != 0 {
		t.Errorf("after a restart: %+v", l)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- f.server.Run(ctx) }()
	deadline := time.After(5 * time.Second)
	for len(f.registry.Releases()) > 0 {
		select {
		case <-deadline:
			t.Fatal("not released")
		default:
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if !slices.Contains(f.said(), "release app1") {
		t.Errorf("what happened: %v", f.said())
	}
}

func TestRestartAdoptsWhatIsThere(t *testing.T) {
	f := start(t)
	for _, r := range []*enforcerv1.AddEndpointRequest{request("c1", "app1", "veth1", "10.1.0.1"), request("c2", "app2", "veth2", "10.1.0.2")} {
		done := f.add(t.Context(), r)
		f.awaitRegistered(r.GetPod())
		f.force(t)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	f.mu.Lock()
	delete(f.links, "veth2")
	f.mu.Unlock()
	f.restart(t)
	if err := f.server.Adopt(); err != nil {
		t.Fatal(err)
	}
	l := f.registry.List()
	if len(l) != 1 || l[0].Pod != "app1" || l[0].Identity != hash("app1") || l[0].Entered != (desired.Position{Generation: 1, Revision: 10}) {
		t.Errorf("adopted: %+v", l)
	}
	if f.registry.Ready(l[0].ID) {
		t.Error("an adopted endpoint is ready before a policy is in force")
	}
	if _, err := f.server.CollectEndpoints(t.Context(), &enforcerv1.CollectEndpointsRequest{}); err != nil || len(f.registry.List()) != 0 {
		t.Errorf("collected with nothing valid: %v, left %+v", err, f.registry.List())
	}
}

func TestProgramsThatSomebodyTookOffComeBack(t *testing.T) {
	f := start(t)
	done := f.add(t.Context(), request("c1", "app1", "veth1", "10.1.0.1"))
	f.awaitRegistered("app1")
	f.force(t)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	f.lost.Store(true)
	f.mu.Lock()
	f.hang = true // packets that nobody judges do not wait for weir-identity
	delete(f.attached, 7)
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- f.server.Run(ctx) }()
	for began := time.Now(); f.Attached(7) != nil && time.Since(began) < 3*time.Second; {
		runtime.Gosched()
	}
	if err := f.Attached(7); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := f.server.Attached(); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

// S7: whose registration was lost with the log is registered again.
func TestS7LostRegistrationIsRepeated(t *testing.T) {
	f := start(t)
	done := f.add(t.Context(), request("c1", "app1", "veth1", "10.1.0.1"))
	f.awaitRegistered("app1")
	f.force(t)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	f.lost.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- f.server.Run(ctx) }()
	for len(f.said()) < 3 {
		runtime.Gosched()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := f.said()[2]; got != "register app1" {
		t.Errorf("after the loss: %s", got)
	}
}

// P6: a relabelled pod is judged by its old identity until the policy knows the
// new one.
func TestRelabelledPodChangesWhenThePolicyKnowsIt(t *testing.T) {
	f := start(t)
	done := f.add(t.Context(), request("c1", "app1", "veth1", "10.1.0.1"))
	f.awaitRegistered("app1")
	f.force(t)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	entered := desired.Position{Generation: 1, Revision: 20}
	if err := f.registry.Relabel("uid-app1", hash("other"), entered); err != nil {
		t.Fatal(err)
	}
	want := []rule.IdentityHash{hash("app1"), hash("other")}
	if diff := cmp.Diff(want, f.registry.Identities()); diff != "" {
		t.Errorf("identities to subscribe to (-want +got):\n%s", diff)
	}
	if e := f.registry.List()[0]; e.Identity != hash("app1") {
		t.Errorf("changed before it was in force: %+v", e)
	}
	// The same identity in a log that begins anew is not in force either.
	again := desired.Position{Generation: 2, Revision: 3}
	if err := f.registry.Relabel("uid-app1", hash("app1"), again); err != nil {
		t.Fatal(err)
	}
	judged := map[uint32]desired.Judged{1: {Identity: hash("app1"), Entered: desired.Position{Generation: 1, Revision: 10}}}
	if err := f.registry.InForce(judged); err != nil {
		t.Fatal(err)
	}
	if e := f.registry.List()[0]; e.Entered.Generation != 1 || e.NextEntered != again {
		t.Errorf("taken for in force: %+v", e)
	}
	if err := f.registry.Relabel("uid-app1", hash("other"), entered); err != nil {
		t.Fatal(err)
	}
	f.force(t)
	if e := f.registry.List()[0]; e.Identity != hash("other") || e.Entered != entered || e.Next != (rule.IdentityHash{}) {
		t.Errorf("not changed when it was in force: %+v", e)
	}
}
