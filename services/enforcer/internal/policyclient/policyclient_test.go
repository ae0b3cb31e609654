package policyclient_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/policyitem"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/enforcer/internal/policyclient"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// replica is a policy replica whose stream the test plays by hand.
type replica struct {
	policyv1.UnimplementedPolicyServiceServer
	streams chan *stream
	lis     *bufconn.Listener
}

type stream struct {
	grpc.BidiStreamingServer[policyv1.WatchPolicyRequest, policyv1.WatchPolicyResponse]
	done chan struct{}
}

func (r *replica) WatchPolicy(s grpc.BidiStreamingServer[policyv1.WatchPolicyRequest, policyv1.WatchPolicyResponse]) error {
	x := &stream{s, make(chan struct{})}
	r.streams <- x
	select {
	case <-x.done:
	case <-s.Context().Done():
	}
	return nil
}

// receive is the next request of the client.
func (s *stream) receive(t *testing.T) *policyv1.WatchPolicyRequest {
	t.Helper()
	r, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (s *stream) send(t *testing.T, rs ...*policyv1.WatchPolicyResponse) {
	t.Helper()
	for _, r := range rs {
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
	}
}

// applier records what was put in force, and refuses what it is told to.
type applier struct {
	mu      sync.Mutex
	applied []policyclient.State
	err     error
}

func (a *applier) Apply(_ context.Context, s policyclient.State) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		a.applied = append(a.applied, s)
	}
	return a.err
}

func (a *applier) last(t *testing.T) policyclient.State {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.applied) == 0 {
		t.Fatal("nothing was put in force")
	}
	return a.applied[len(a.applied)-1]
}

type fixture struct {
	*policyclient.Client
	replicas []*replica
	applier  *applier
}

func start(t *testing.T, replicas int, floor policyclient.Position) *fixture {
	t.Helper()
	f := &fixture{applier: &applier{}}
	byName := map[string]*replica{}
	var names []string
	for i := range replicas {
		r := &replica{streams: make(chan *stream, 8), lis: bufconn.Listen(1 << 16)}
		s := grpc.NewServer()
		policyv1.RegisterPolicyServiceServer(s, r)
		served := make(chan error)
		go func() { served <- s.Serve(r.lis) }()
		t.Cleanup(func() {
			s.Stop()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
		name := string(rune('a' + i))
		names, byName[name] = append(names, name), r
		f.replicas = append(f.replicas, r)
	}
	f.Client = policyclient.New(policyclient.Config{
		Addresses: names, Version: "test", Floor: floor, Applier: f.applier, Log: slog.New(slog.DiscardHandler),
		Dial: func(address string) (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return byName[address].lis.DialContext(ctx) }))
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

// open is the next stream to a replica, and its hello.
func (r *replica) open(t *testing.T) (*stream, *policyv1.Hello) {
	t.Helper()
	s := <-r.streams
	hello := s.receive(t).GetHello()
	if hello == nil {
		t.Fatal("the first request is not hello")
	}
	return s, hello
}

func id(s string) []byte { x := rule.NewID([]byte(s)); return x[:] }

func selector(name string, members ...uint64) *policyv1.Item {
	return &policyv1.Item{Item: &policyv1.Item_Selector{Selector: &policyv1.Selector{Id: id(name), Identities: members, Text: name}}}
}

func allow(name, peer string) *policyv1.Item {
	return &policyv1.Item{Item: &policyv1.Item_Rule{Rule: &policyv1.Rule{
		Id: id(name), Subject: id("subject"), Direction: policyv1.Direction_DIRECTION_INGRESS, Tier: policyv1.Tier_TIER_NORMAL,
		Action: policyv1.Action_ACTION_ALLOW, Peer: id(peer), Ports: []*policyv1.PortRange{{Any: true}},
		Origin: &policyv1.Origin{Name: name},
	}}}
}

// difference is one that a client holding what held says ends up with.
func difference(t *testing.T, nonce, revision uint64, full bool, held ...*policyv1.Item) *policyv1.WatchPolicyResponse {
	t.Helper()
	return &policyv1.WatchPolicyResponse{
		Generation: 1, Revision: revision, Nonce: nonce, Full: full, End: true, Digest: digest(t, held...), Upserts: held,
	}
}

func digest(t *testing.T, held ...*policyv1.Item) []byte {
	t.Helper()
	versions := map[policyitem.Key]uint64{}
	for _, it := range held {
		k, err := policyitem.KeyOf(it)
		if err != nil {
			t.Fatal(err)
		}
		if versions[k], err = policyitem.Version(it); err != nil {
			t.Fatal(err)
		}
	}
	return policyitem.Digest(versions)
}

func version(t *testing.T, it *policyv1.Item) uint64 {
	t.Helper()
	v, err := policyitem.Version(it)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func names(s policyclient.State) (rules, selectors []string) {
	for _, r := range s.Policy.Rules {
		rules = append(rules, r.Origin.Name)
	}
	for _, x := range s.Policy.Selectors {
		selectors = append(selectors, x.Text)
	}
	slices.Sort(rules)
	slices.Sort(selectors)
	return rules, selectors
}

func TestPartsAreAppliedTogether(t *testing.T) {
	f := start(t, 1, policyclient.Position{})
	s, hello := f.replicas[0].open(t)
	if hello.GetGeneration() != 0 || len(hello.GetItems()) != 0 || len(hello.GetCapabilities()) == 0 {
		t.Errorf("first hello: %v", hello)
	}
	first := difference(t, 1, 10, true, selector("a", 5))
	first.End, first.Digest = false, nil
	last := difference(t, 1, 10, false, selector("a", 5), allow("r", "a"))
	last.Upserts = last.Upserts[1:]
	s.send(t, first, last)
	if ack := s.receive(t).GetAck(); ack.GetNonce() != 1 || ack.GetGeneration() != 1 || ack.GetRevision() != 10 {
		t.Errorf("ack: %v", ack)
	}
	rules, selectors := names(f.applier.last(t))
	if !slices.Equal(rules, []string{"r"}) || !slices.Equal(selectors, []string{"a"}) {
		t.Errorf("in force: rules %v, selectors %v", rules, selectors)
	}
	if st := f.Status(); st.Bytes == 0 || st.LastBytes != st.Bytes || !st.Complete || st.Replica != "a" {
		t.Errorf("status: %+v", st)
	}

	// A difference of a selector's members, and a removal.
	changed := &policyv1.WatchPolicyResponse{
		Generation: 1, Revision: 11, Nonce: 2, End: true,
		SelectorChanges: []*policyv1.SelectorChange{{Id: id("a"), From: version(t, selector("a", 5)), Added: []uint64{9, 3}, Removed: []uint64{5}}},
		Removals:        []*policyv1.ItemKey{{Kind: policyv1.ItemKind_ITEM_KIND_RULE, Key: id("r")}},
		Digest:          digest(t, selector("a", 3, 9)),
	}
	s.send(t, changed)
	if ack := s.receive(t).GetAck(); ack.GetRevision() != 11 {
		t.Errorf("ack: %v", ack)
	}
	want := []rule.Revision{3, 9}
	if got := f.applier.last(t).Policy.Selectors[0].Identities; !slices.Equal(got, want) {
		t.Errorf("members: got %v, want %v", got, want)
	}
}

func TestRefusedStateLeavesTheOldOneInForce(t *testing.T) {
	f := start(t, 1, policyclient.Position{})
	s, _ := f.replicas[0].open(t)
	s.send(t, difference(t, 1, 10, true, selector("a", 5)))
	s.receive(t)
	unknownEntity := &policyv1.Item{Item: &policyv1.Item_Selector{Selector: &policyv1.Selector{Id: id("x"), Entities: []policyv1.Entity{77}}}}
	for i, bad := range []struct {
		name string
		*policyv1.WatchPolicyResponse
	}{
		{"a rule whose peer is missing", difference(t, 2, 11, true, allow("r", "nobody"))},
		{"an unknown entity", difference(t, 3, 11, true, unknownEntity)},
	} {
		s.send(t, bad.WatchPolicyResponse)
		nack := s.receive(t).GetNack()
		if nack.GetNonce() != uint64(i)+2 || nack.GetRevision() != 10 || nack.GetReason() == "" {
			t.Errorf("%s: nack %v", bad.name, nack)
		}
	}
	f.applier.mu.Lock()
	f.applier.err = errors.New("a map is full")
	f.applier.mu.Unlock()
	s.send(t, difference(t, 4, 11, false, selector("a", 6)))
	if nack := s.receive(t).GetNack(); nack.GetRevision() != 10 {
		t.Errorf("a map is full: nack %v", nack)
	}
	f.applier.mu.Lock()
	f.applier.err = nil
	f.applier.mu.Unlock()
	// What is held is still the old state: a difference against it goes through.
	s.send(t, &policyv1.WatchPolicyResponse{Generation: 1, Revision: 12, Nonce: 5, End: true, Digest: digest(t, selector("a", 5, 7)),
		SelectorChanges: []*policyv1.SelectorChange{{Id: id("a"), From: version(t, selector("a", 5)), Added: []uint64{7}}}})
	if ack := s.receive(t).GetAck(); ack.GetRevision() != 12 {
		t.Errorf("ack: %v", ack)
	}
}

func TestUnknownActionDenies(t *testing.T) {
	f := start(t, 1, policyclient.Position{})
	s, _ := f.replicas[0].open(t)
	unknown := allow("r", "a")
	unknown.GetRule().Action = 99
	unknown.GetRule().Ports = nil
	s.send(t, difference(t, 1, 10, true, selector("a", 5), unknown))
	s.receive(t)
	got := f.applier.last(t).Policy.Rules[0]
	want := rule.Rule{
		ID: rule.ID(id("r")), Subject: rule.ID(id("subject")), Direction: rule.Ingress, Tier: rule.Admin,
		Action: rule.Deny, Peer: rule.ID(id("a")), Ports: rule.Everything(), Origin: rule.Origin{Name: "r"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rule of an action of the future (-want +got):\n%s", diff)
	}
}

// S5: changing to a replica that lags must not take policies back.
func TestS5LaggingReplicaNeverTakesPoliciesBack(t *testing.T) {
	f := start(t, 2, policyclient.Position{})
	s, _ := f.replicas[0].open(t)
	held := []*policyv1.Item{selector("a", 5), allow("r", "a")}
	s.send(t, difference(t, 1, 20, true, held...))
	s.receive(t)
	if left, err := f.Move("b"); err != nil || left != "a" {
		t.Fatalf("move: left %q, %v", left, err)
	}
	lagging, hello := f.replicas[1].open(t)
	wantItems := map[string]uint64{string(id("a")): version(t, held[0]), string(id("r")): version(t, held[1])}
	gotItems := map[string]uint64{}
	for _, it := range hello.GetItems() {
		gotItems[string(it.GetKey())] = it.GetVersion()
	}
	if hello.GetRevision() != 20 || hello.GetGeneration() != 1 || !maps.Equal(gotItems, wantItems) || !slices.Equal(hello.GetDigest(), digest(t, held...)) {
		t.Errorf("hello to the other replica: %v", hello)
	}
	lagging.send(t, difference(t, 1, 19, true, selector("a", 5)))
	if nack := lagging.receive(t).GetNack(); nack.GetRevision() != 20 {
		t.Errorf("an older state was answered with %v", nack)
	}
	if rules, _ := names(f.applier.last(t)); !slices.Equal(rules, []string{"r"}) {
		t.Errorf("after an older state: rules %v", rules)
	}
	// It is left for the other one, which is told the same again; nothing but a
	// confirmation need come, and no byte of policy.
	s, hello = f.replicas[0].open(t)
	if hello.GetRevision() != 20 {
		t.Errorf("hello after leaving: %v", hello)
	}
	s.send(t, &policyv1.WatchPolicyResponse{Generation: 1, Revision: 21, Nonce: 1, End: true, Digest: digest(t, held...)})
	if ack := s.receive(t).GetAck(); ack.GetRevision() != 21 {
		t.Errorf("ack: %v", ack)
	}
	if st := f.Status(); st.LastBytes > 64 {
		t.Errorf("a confirmation took %d bytes", st.LastBytes)
	}
}

// S5, over a restart: what was in force before the start counts too.
func TestS5RestartRemembersWhatWasInForce(t *testing.T) {
	f := start(t, 1, policyclient.Position{Generation: 2, Revision: 7})
	s, hello := f.replicas[0].open(t)
	if hello.GetGeneration() != 2 || hello.GetRevision() != 7 || len(hello.GetItems()) != 0 {
		t.Errorf("hello: %v", hello)
	}
	s.send(t, difference(t, 1, 500, true)) // of generation 1
	if nack := s.receive(t).GetNack(); nack == nil {
		t.Error("a state of an older generation was taken")
	}
}

func TestWrongDigestBeginsAnew(t *testing.T) {
	f := start(t, 1, policyclient.Position{})
	s, _ := f.replicas[0].open(t)
	s.send(t, difference(t, 1, 10, true, selector("a", 5)))
	s.receive(t)
	wrong := difference(t, 2, 11, false, selector("b", 6))
	s.send(t, wrong) // its digest is without a
	if nack := s.receive(t).GetNack(); nack.GetRevision() != 10 {
		t.Errorf("nack: %v", nack)
	}
	_, hello := f.replicas[0].open(t)
	if len(hello.GetItems()) != 0 || hello.GetRevision() != 10 {
		t.Errorf("hello after a wrong digest: %v, want no items and revision 10", hello)
	}
}

func TestSubscriptionIsSentWhenItChanges(t *testing.T) {
	f := start(t, 1, policyclient.Position{})
	s, _ := f.replicas[0].open(t)
	f.Subscribe([]rule.IdentityHash{{1}, {2}})
	if got := s.receive(t).GetSubscribe().GetIdentities(); len(got) != 2 || got[0][0] != 1 {
		t.Errorf("subscribed to %v", got)
	}
	close(s.done) // the stream ends; the next hello says it again
	_, hello := f.replicas[0].open(t)
	if got := hello.GetSubscribe().GetIdentities(); len(got) != 2 {
		t.Errorf("hello subscribes to %v", got)
	}
}
