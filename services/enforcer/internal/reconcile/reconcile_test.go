package reconcile_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/desired"
	"weir.dev/weir/services/enforcer/internal/endpoint"
	"weir.dev/weir/services/enforcer/internal/plan"
	"weir.dev/weir/services/enforcer/internal/policyclient"
	"weir.dev/weir/services/enforcer/internal/reconcile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var limits = plan.Limits{
	Endpoints: 64, Addresses: 256, Prefixes: 64, Peers: 128, Cells: 256, Ranges: 256, Services: 64, Backends: 64, Pairs: 64,
}

// world plays what is around the loop, and writes down the order of things.
type world struct {
	mu         sync.Mutex
	log        []string
	complete   bool          // addresses
	asked      chan struct{} // capacity 1: for addresses that are not complete
	generation uint64        // of the records
	proxyErr   error
	clock      time.Time
	subscribed []rule.IdentityHash
	broken     bool // the kernel refuses to flip
}

func (w *world) say(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, s)
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clock
}

func (w *world) said() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.log, ", ")
}

// awaitRecords returns when the loop has asked for records in vain.
func (w *world) awaitRecords(t *testing.T) {
	t.Helper()
	select {
	case <-w.asked:
	case <-time.After(5 * time.Second):
		t.Fatal("nobody asked for address records")
	}
}

func (w *world) Records() (map[netip.Addr]desired.Record, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.complete {
		select {
		case w.asked <- struct{}{}:
		default:
		}
	}
	return map[netip.Addr]desired.Record{
		addr("10.1.0.9"): {Addr: addr("10.1.0.9"), PodUID: "peer", Identity: hash("peer"), Entered: desired.Position{Generation: w.generation, Revision: 5}},
	}, w.complete
}

func (w *world) Learn(_ context.Context, sets []desired.RuleSet) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(sets) > 0 {
		w.log = append(w.log, "learn")
	}
	return w.proxyErr
}

func (w *world) Keep([]desired.RuleSet) {}

func (w *world) Subscribe(ids []rule.IdentityHash) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.subscribed = ids
}

// kernel is the model, with an ear for flips.
type kernel struct {
	*plan.Model
	*world
}

var errKernel = errors.New("the kernel refuses")

func (k kernel) Flip(word uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.broken {
		return errKernel
	}
	k.log = append(k.log, "flip")
	return k.Model.Flip(word)
}

type fixture struct {
	*world
	loop     *reconcile.Loop
	model    *plan.Model
	registry *endpoint.Registry
	app      endpoint.Endpoint
	stop     func() // may be called twice
}

func addr(s string) netip.Addr            { return netip.MustParseAddr(s) }
func hash(s string) (h rule.IdentityHash) { copy(h[:], s); return h }
func id(s string) rule.ID                 { return rule.NewID([]byte(s)) }

func start(t *testing.T) *fixture {
	t.Helper()
	w := &world{complete: true, generation: 1, asked: make(chan struct{}, 1)}
	f := &fixture{world: w, model: plan.NewModel(2)}
	var err error
	f.registry, err = endpoint.Load(filepath.Join(t.TempDir(), "endpoints.json"), func() { f.loop.Changed() })
	if err != nil {
		t.Fatal(err)
	}
	planner := plan.NewPlanner(limits, kernel{f.model, w})
	if err := planner.Adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.log = nil
	f.loop = reconcile.New(reconcile.Config{
		Node: "n1", Builder: desired.NewBuilder(limits, 0), Planner: planner, Registry: f.registry, Addresses: w, Proxy: w,
		Cut:      func(context.Context) error { w.say("cut"); return nil },
		Remember: func(desired.Position, rule.Verdict) error { w.say("remember"); return nil },
		InForce:  func(reconcile.Change) { w.say("tell") },
		Now:      w.now,
		Log:      slog.New(slog.DiscardHandler),
	})
	f.loop.SetSubscriber(w)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.loop.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(f.stop)
	f.app, err = f.registry.Put(endpoint.Endpoint{
		Key: endpoint.Key{ContainerID: "c", Interface: "eth0"}, Ifindex: 7, PodUID: "app", Identity: hash("app"),
		Entered: desired.Position{Generation: 1, Revision: 4}, Addrs: []netip.Addr{addr("10.1.0.1")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// policy lets the peer send HTTP to app.
func policy(revision rule.Revision, path string) policyclient.State {
	set := rule.NewRuleSet([]rule.HTTPRule{{Path: &path}})
	return policyclient.State{
		Position: policyclient.Position{Generation: 1, Revision: revision},
		Subjects: []rule.Subject{{Identity: hash("app"), Revision: 4, Selectors: []rule.ID{id("subject")}}},
		Policy: merge.Policy{
			Selectors: []rule.Selector{{ID: id("peer"), Identities: []rule.Revision{5}}},
			RuleSets:  []rule.RuleSet{set},
			Rules: sorted(
				rule.Rule{ID: id("isolate"), Subject: id("subject"), Direction: rule.Ingress, Tier: rule.Normal, Action: rule.Isolate},
				rule.Rule{ID: id("allow"), Subject: id("subject"), Direction: rule.Ingress, Tier: rule.Normal, Action: rule.Allow, Peer: id("peer"),
					Ports: []rule.PortRange{{Protocol: rule.TCP, Lo: 80, Hi: 80}}, RuleSet: set.ID},
			),
		},
		Received: time.Now(),
	}
}

func sorted(rules ...rule.Rule) []rule.Rule {
	slices.SortFunc(rules, func(a, b rule.Rule) int { return a.ID.Compare(b.ID) })
	return rules
}

// verdict of a TCP packet of the peer to app.
func (f *fixture) verdict() rule.Verdict {
	return f.model.Judge(plan.Packet{Ifindex: 7, Ingress: true, Protocol: rule.TCP, Port: 80, Own: addr("10.1.0.1"), Peer: addr("10.1.0.9")}).Verdict
}

func TestChangeGoesThroughInOrder(t *testing.T) {
	f := start(t)
	if err := f.loop.Apply(t.Context(), policy(10, "/a")); err != nil {
		t.Fatal(err)
	}
	if err := f.registry.Wait(t.Context(), f.app); err != nil {
		t.Fatal(err)
	}
	first := f.verdict()
	if first < rule.FirstRuleSet {
		t.Errorf("verdict %d, want a rule set", first)
	}
	f.mu.Lock()
	f.log = nil
	f.mu.Unlock()
	if err := f.loop.Apply(t.Context(), policy(11, "/b")); err != nil {
		t.Fatal(err)
	}
	// A change of the endpoints may have come before it.
	if got, want := f.said(), "remember, learn, flip, cut, tell"; !strings.HasSuffix(got, want) {
		t.Errorf("order: %s; want %s at the end", got, want)
	}
	if second := f.verdict(); second == first {
		t.Errorf("verdict is still rule set %d", second)
	}
	if c := f.loop.Current(); c == nil || c.At.Revision != 11 || !c.Policy {
		t.Errorf("current: %+v", c)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.subscribed, []rule.IdentityHash{hash("app")}) {
		t.Errorf("subscribed to %d identities", len(f.subscribed))
	}
}

func TestProxyThatIsAwayHoldsNobodyUp(t *testing.T) {
	f := start(t)
	f.proxyErr = errors.New("away")
	if err := f.loop.Apply(t.Context(), policy(10, "/a")); err != nil {
		t.Fatal(err)
	}
	if f.verdict() < rule.FirstRuleSet {
		t.Errorf("verdict %d, want a rule set", f.verdict())
	}
}

func TestWhatCannotBePutInForceIsRefusedAndTheOldStays(t *testing.T) {
	f := start(t)
	if err := f.loop.Apply(t.Context(), policy(10, "/a")); err != nil {
		t.Fatal(err)
	}
	was := f.verdict()
	bad := policy(11, "/b")
	bad.Policy.Rules[0].Tier = 99
	if err := f.loop.Apply(t.Context(), bad); err == nil {
		t.Error("a rule of an unknown tier was taken")
	}
	f.mu.Lock()
	f.broken = true
	f.mu.Unlock()
	if err := f.loop.Apply(t.Context(), policy(12, "/c")); !errors.Is(err, errKernel) {
		t.Errorf("the kernel refused: %v", err)
	}
	if f.verdict() != was || f.loop.Current().At.Revision != 10 {
		t.Errorf("verdict %d of revision %d, want %d of 10", f.verdict(), f.loop.Current().At.Revision, was)
	}
	f.mu.Lock()
	f.broken = false
	f.mu.Unlock()
	if err := f.loop.Apply(t.Context(), policy(12, "/c")); err != nil {
		t.Errorf("again: %v", err)
	}
}

// S5: a state that the client gave up on may be in force all the same; an older
// one must not follow it.
func TestS5OlderStateIsRefusedWhateverTheClientBelieves(t *testing.T) {
	f := start(t)
	f.mu.Lock()
	f.complete = false
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	given := make(chan error)
	go func() { given <- f.loop.Apply(ctx, policy(20, "/a")) }()
	f.awaitRecords(t)
	cancel()
	if err := <-given; !errors.Is(err, context.Canceled) {
		t.Fatalf("given up: %v", err)
	}
	older := make(chan error)
	go func() { older <- f.loop.Apply(t.Context(), policy(19, "/b")) }()
	f.mu.Lock()
	f.complete = true
	f.mu.Unlock()
	f.loop.Changed()
	if err := <-older; !errors.Is(err, policyclient.ErrOlder) || f.loop.Current().At.Revision != 20 {
		t.Errorf("an older state: %v, and revision %d is in force", err, f.loop.Current().At.Revision)
	}
}

// S7: a log that begins anew is empty at first. What is in force stays until the
// pods are registered in it.
func TestS7NewLogIsNotInForceBeforeItsPodsAreThere(t *testing.T) {
	f := start(t)
	if err := f.loop.Apply(t.Context(), policy(10, "/a")); err != nil {
		t.Fatal(err)
	}
	was := f.verdict()
	anew := policy(10, "/a")
	anew.Generation = 2
	empty := anew
	empty.Subjects = nil
	for _, step := range []struct {
		name  string
		state policyclient.State
		age   time.Duration
	}{{"just begun", empty, 0}, {"no subject", empty, 6 * time.Second}, {"a peer's record of the old log", anew, 7 * time.Second}} {
		f.mu.Lock()
		f.clock = time.Unix(1000, 0).Add(step.age)
		f.mu.Unlock()
		if err := f.loop.Apply(t.Context(), step.state); err == nil {
			t.Errorf("%s: the new log is in force", step.name)
		}
		if f.verdict() != was || f.loop.Newest() != 2 {
			t.Errorf("%s: verdict %d, want %d; newest generation %d", step.name, f.verdict(), was, f.loop.Newest())
		}
	}
	f.mu.Lock()
	f.generation = 2
	f.mu.Unlock()
	if err := f.loop.Apply(t.Context(), anew); err != nil {
		t.Fatal(err)
	}
	if got := f.verdict(); got < rule.FirstRuleSet || f.loop.Current().At.Generation != 2 {
		t.Errorf("in the new log: verdict %d, position %+v", got, f.loop.Current().At)
	}
}

// Without addresses every peer is pending: the first policy waits for them.
func TestFirstPolicyWaitsForAddresses(t *testing.T) {
	f := start(t)
	f.mu.Lock()
	f.complete = false
	f.mu.Unlock()
	done := make(chan error)
	go func() { done <- f.loop.Apply(t.Context(), policy(10, "/a")) }()
	f.loop.Changed()
	select {
	case err := <-done:
		t.Fatalf("in force without addresses: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if f.loop.Current() != nil {
		t.Error("something is in force")
	}
	f.mu.Lock()
	f.complete = true
	f.mu.Unlock()
	f.loop.Changed()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Before the first policy of a run the kernel keeps what the last run put there,
// but for endpoints that are gone.
func TestWithoutPolicyOnlyWhatIsGoneIsClosed(t *testing.T) {
	f := start(t)
	if err := f.loop.Apply(t.Context(), policy(10, "/a")); err != nil {
		t.Fatal(err)
	}
	was := f.verdict()
	f.stop()
	planner := plan.NewPlanner(limits, kernel{f.model, f.world})
	if err := planner.Adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := reconcile.New(reconcile.Config{
		Node: "n1", Builder: desired.NewBuilder(limits, 0), Planner: planner, Registry: f.registry, Addresses: f.world, Proxy: f.world,
		Cut: func(context.Context) error { return nil }, Remember: func(desired.Position, rule.Verdict) error { return nil },
		InForce: func(reconcile.Change) {}, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	second.SetSubscriber(f.world)
	if err := second.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f.verdict() != was {
		t.Errorf("verdict %d, want %d as in the last run", f.verdict(), was)
	}
	if err := f.registry.Remove(f.app); err != nil {
		t.Fatal(err)
	}
	if err := second.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, there := f.model.Image.Endpoints[7]; there {
		t.Error("an endpoint that is gone is still in the kernel")
	}
}
