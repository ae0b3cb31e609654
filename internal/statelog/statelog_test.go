package statelog_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"

	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/natstest"
	"weir.dev/weir/internal/statelog"
	"weir.dev/weir/internal/tlsconf"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func state(js jetstream.JetStream) bus.Opener {
	return bus.Cached(func(ctx context.Context) (jetstream.KeyValue, error) { return bus.State(ctx, js) })
}

// replay keeps a view of the log until the test ends.
func replay(t *testing.T, js jetstream.JetStream) *statelog.View {
	t.Helper()
	v := statelog.NewView()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		open := func(ctx context.Context) (jetstream.KeyValue, error) { return bus.State(ctx, js) }
		statelog.Replay(ctx, open, slog.New(slog.DiscardHandler), v.Apply)
	}()
	t.Cleanup(func() { stop(); <-done })
	return v
}

func waitFor(t *testing.T, v *statelog.View, revision uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := v.WaitFor(ctx, revision); err != nil {
		t.Fatalf("replay to revision %d: %v, at %+v", revision, err, v.Position())
	}
}

func TestWriterComparesFirst(t *testing.T) {
	s := natstest.Start(t)
	w := statelog.NewWriter(state(s.JetStream(t, tlsconf.Policy, "policy-0")))
	key := statelog.PolicyKey("CiliumNetworkPolicy", "default", "rule1")
	entry := func(spec, version string) *policyv1.PolicyEntry {
		return &policyv1.PolicyEntry{Object: []byte(spec), ResourceVersion: version, Observed: timestamppb.Now()}
	}
	for _, step := range []struct {
		name  string
		entry *policyv1.PolicyEntry
		rev   uint64
		want  statelog.Outcome
	}{
		{"a new object is written", entry("a", "9"), 1, statelog.Written},
		{"the same again is not", entry("a", "9"), 1, statelog.Unchanged},
		{"a status write changes only the version: S12", entry("a", "10"), 1, statelog.Unchanged},
		{"a new spec is written", entry("b", "11"), 2, statelog.Written},
		{"an older object never replaces a newer one", entry("a", "9"), 2, statelog.Older},
		{"versions are numbers, not text", entry("c", "100"), 3, statelog.Written},
		{"a source without versions is believed", entry("d", ""), 4, statelog.Written},
	} {
		rev, got, err := w.Put(t.Context(), key, step.entry)
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got != step.want || rev != step.rev {
			t.Errorf("%s: got outcome %d at revision %d, want %d at %d", step.name, got, rev, step.want, step.rev)
		}
	}
	for range 2 { // the second finds nothing to remove
		if err := w.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	if rev, err := w.Revision(t.Context(), key); rev != 0 || err != nil {
		t.Errorf("after the removal: revision %d, %v", rev, err)
	}
}

func TestReplayTellsTheSameToEverybody(t *testing.T) {
	s := natstest.Start(t)
	js := s.JetStream(t, tlsconf.Identity, "identity-0")
	w := statelog.NewWriter(state(js))
	early := replay(t, js)
	if err := w.EnsureGeneration(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	var last uint64
	for _, name := range []string{"a", "b", "c"} {
		rev, _, err := w.Put(t.Context(), statelog.NamespaceKey(name), &identityv1.Namespace{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		last = rev
	}
	if err := w.Delete(t.Context(), statelog.NamespaceKey("b")); err != nil {
		t.Fatal(err)
	}
	last++
	if err := w.EnsureGeneration(t.Context(), time.Now()); err != nil { // a second one changes nothing
		t.Fatal(err)
	}
	late := replay(t, s.JetStream(t, tlsconf.Policy, "policy-0"))
	for who, v := range map[string]*statelog.View{"from the first entry": early, "from a late start": late} {
		waitFor(t, v, last)
		pos := v.Position()
		if !pos.Complete || pos.Revision != last || pos.Generation == 0 || pos.Generation != early.Position().Generation {
			t.Errorf("%s: at %+v, want revision %d of the generation that is there", who, pos, last)
		}
		got := map[statelog.Key]uint64{}
		v.Each(statelog.Namespace, func(k statelog.Key, e statelog.Entry) bool { got[k] = e.Revision; return true })
		if len(got) != 2 || got["namespace.a"] != 2 || got["namespace.c"] != 4 {
			t.Errorf("%s: got %v, want a at 2 and c at 4", who, got)
		}
		e, ok := v.Get("namespace.a")
		if !ok || !proto.Equal(e.Value, &identityv1.Namespace{Name: "a"}) {
			t.Errorf("%s: entry of a: %v, %v", who, e, ok)
		}
	}
}

func TestReplayBeginsAgainWhenTheLogWasReplaced(t *testing.T) {
	s := natstest.Start(t)
	js := s.JetStream(t, tlsconf.Identity, "identity-0")
	w := statelog.NewWriter(state(js))
	if err := w.EnsureGeneration(t.Context(), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Put(t.Context(), statelog.NamespaceKey("old"), &identityv1.Namespace{Name: "old"}); err != nil {
		t.Fatal(err)
	}
	v := replay(t, js)
	waitFor(t, v, 2)
	s.Stop()
	s.Store = t.TempDir()
	s.Restart(t)
	w = statelog.NewWriter(state(s.JetStream(t, tlsconf.Identity, "identity-1")))
	if err := w.EnsureGeneration(t.Context(), time.Unix(2, 0)); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(30 * time.Second)
	for v.Position().Generation != uint64(time.Unix(2, 0).UnixNano()) || v.Ready() != nil {
		select {
		case <-v.Changed():
		case <-deadline:
			t.Fatalf("the new log was not noticed; at %+v", v.Position())
		}
	}
	if _, ok := v.Get("namespace.old"); ok {
		t.Error("an entry of the lost log is still there")
	}
}

func TestAnotherGenerationIsLaterWhateverTheClockSays(t *testing.T) {
	js := natstest.Start(t).JetStream(t, tlsconf.Identity, "identity-0")
	w := statelog.NewWriter(state(js))
	at := func(seconds int64) uint64 { return uint64(time.Unix(seconds, 0).UnixNano()) }
	if err := w.EnsureGeneration(t.Context(), time.Unix(50, 0)); err != nil {
		t.Fatal(err)
	}
	v := replay(t, js)
	waitFor(t, v, 1)
	for i, step := range []struct {
		now   int64
		after uint64
		want  uint64
	}{
		{now: 60, want: at(60)},
		{now: 40, want: at(60) + 1},
		{now: 70, after: at(80), want: at(80) + 1},
		{now: 90, after: at(10), want: at(90)},
	} {
		if err := w.NewGeneration(t.Context(), time.Unix(step.now, 0), step.after); err != nil {
			t.Fatal(err)
		}
		waitFor(t, v, uint64(i)+2)
		if got := v.Position().Generation; got != step.want {
			t.Errorf("at %d s, after %d: generation %d, want %d", step.now, step.after, got, step.want)
		}
	}
}

func TestOneHoldsTheLeaseAndAnotherTakesOver(t *testing.T) {
	s := natstest.Start(t)
	var mu sync.Mutex
	holders := map[string]bool{}
	most := 0
	took := make(chan string, 8)
	start := func(name string) (stop func()) {
		js := s.JetStream(t, tlsconf.Policy, name)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			l := statelog.Lease{Name: "policy", Replica: name}
			open := func(ctx context.Context) (jetstream.KeyValue, error) { return bus.Leases(ctx, js) }
			_ = l.Hold(ctx, open, slog.New(slog.DiscardHandler), func(ctx context.Context) error {
				mu.Lock()
				holders[name] = true
				most = max(most, len(holders))
				mu.Unlock()
				took <- name
				<-ctx.Done()
				mu.Lock()
				delete(holders, name)
				mu.Unlock()
				return ctx.Err()
			})
		}()
		return func() { cancel(); <-done }
	}
	stops := map[string]func(){"policy-0": start("policy-0"), "policy-1": start("policy-1")}
	next := func() string {
		select {
		case n := <-took:
			return n
		case <-time.After(15 * time.Second):
			t.Fatal("nobody took the lease")
			return ""
		}
	}
	first := next()
	select {
	case second := <-took:
		t.Errorf("%s took the lease while %s holds it", second, first)
	case <-time.After(bus.LeaseTTL + time.Second): // it is renewed
	}
	stops[first]()
	if second := next(); second == first {
		t.Errorf("%s took the lease again after it was stopped", second)
	}
	for _, stop := range stops {
		stop()
	}
	mu.Lock()
	defer mu.Unlock()
	if most != 1 {
		t.Errorf("%d replicas led at one time, want 1", most)
	}
}

func TestPutAgainstOtherWriters(t *testing.T) {
	s := natstest.Start(t)
	js := s.JetStream(t, tlsconf.Identity, "identity-0")
	kv := state(js)
	key := statelog.IdentityKey([]byte{1})
	var wg sync.WaitGroup
	revs := make([]uint64, 8)
	errs := make([]error, len(revs))
	for i := range revs {
		wg.Go(func() {
			revs[i], _, errs[i] = statelog.NewWriter(kv).Put(t.Context(), key, &identityv1.Identity{Namespace: "default"})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i, r := range revs {
		if r != 1 {
			t.Errorf("writer %d of an identity got revision %d, want 1: it is written once", i, r)
		}
	}
}
