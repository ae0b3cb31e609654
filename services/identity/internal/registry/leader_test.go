package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/natstest"
	"weir.dev/weir/internal/source"
	"weir.dev/weir/internal/statelog"
	"weir.dev/weir/internal/tlsconf"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	"weir.dev/weir/services/identity/internal/address"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start returns a registry of a replica that does not lead.
func start(t *testing.T) *Registry {
	t.Helper()
	js := natstest.Start(t).JetStream(t, tlsconf.Identity, "identity-0")
	state := bus.Cached(func(ctx context.Context) (jetstream.KeyValue, error) { return bus.State(ctx, js) })
	records := bus.Cached(func(ctx context.Context) (jetstream.KeyValue, error) { return bus.AddressRecords(ctx, js) })
	store, view, book := source.NewStore(), statelog.NewView(), address.NewBook()
	log := slog.New(slog.DiscardHandler)
	r := New(Config{
		Cluster: "test", Source: store, Log: statelog.NewWriter(state), View: view, Book: book, Logger: log,
		Writer: address.NewWriter(records, book, func(rec *identityv1.AddressRecord) bool { return Alive(store, rec) }),
	})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { statelog.Replay(ctx, state, log, view.Apply); done <- struct{}{} }()
	go func() { book.Follow(ctx, records, log); done <- struct{}{} }()
	t.Cleanup(func() { stop(); <-done; <-done })
	if err := r.log.EnsureGeneration(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	rev, _, err := r.log.Put(t.Context(), statelog.NamespaceKey("default"), &identityv1.Namespace{Name: "default"})
	if err != nil {
		t.Fatal(err)
	}
	if err := view.WaitFor(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the replica replays", r.Ready, view.Changed, book.Changed)
	return r
}

// eventually waits for changes until f says nothing.
func eventually(t *testing.T, what string, f func() error, changed ...func() <-chan struct{}) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		a, b := changed[0](), changed[len(changed)-1]()
		err := f()
		if err == nil {
			return
		}
		select {
		case <-a:
		case <-b:
		case <-deadline:
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func (r *Registry) withPod(t *testing.T, name, id string) {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("u-" + name), Labels: map[string]string{"id": id}}}
	p.Spec.NodeName = "n1"
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	r.source.Apply(source.Batch{Upserts: []source.Object{{Key: podKey("default", name), JSON: text, Value: p}}})
}

func (r *Registry) withoutPod(name string) {
	r.source.Apply(source.Batch{Deletes: []source.Key{podKey("default", name)}})
}

func (r *Registry) mustRegister(t *testing.T, name string, ip byte) *identityv1.RegisterResponse {
	t.Helper()
	resp, err := r.Register(t.Context(), "n1", &identityv1.RegisterRequest{
		Namespace: "default", Name: name, PodUid: "u-" + name, Addresses: [][]byte{{10, 244, 1, ip}},
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the registration is replayed", func() error {
		if r.view.Position().Revision < resp.GetIdentityRevision() {
			return errors.New("the identity is not")
		}
		return r.book.WaitFor(t.Context(), resp.GetAddressSequence())
	}, r.view.Changed)
	return resp
}

func TestIdentityLeavesTheLogWhenNothingNamesIt(t *testing.T) {
	r := start(t)
	r.withPod(t, "a", "one")
	first := r.mustRegister(t, "a", 2)
	key := statelog.IdentityKey(first.GetIdentity())
	unused := since{string(key): time.Now().Add(-2 * identityGrace)}
	if err := r.forgetIdentities(t.Context(), unused); err != nil {
		t.Fatal(err)
	}
	if rev, err := r.log.Revision(t.Context(), key); rev == 0 || err != nil {
		t.Fatalf("an identity that an address names left the log: %d, %v", rev, err)
	}
	if n, err := r.Release(t.Context(), "n1", &identityv1.ReleaseRequest{PodUid: "u-a"}); n != 1 || err != nil {
		t.Fatalf("released %d, %v", n, err)
	}
	if err := r.writer.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.forgetIdentities(t.Context(), unused); err != nil {
		t.Fatal(err)
	}
	if rev, err := r.log.Revision(t.Context(), key); rev == 0 || err != nil {
		t.Fatalf("an identity left the log at once, not after a while: %d, %v", rev, err)
	}
	unused[string(key)] = time.Now().Add(-2 * identityGrace)
	if err := r.forgetIdentities(t.Context(), unused); err != nil {
		t.Fatal(err)
	}
	if rev, err := r.log.Revision(t.Context(), key); rev != 0 || err != nil {
		t.Fatalf("an identity that nothing names is still in the log: %d, %v", rev, err)
	}
	// It enters again as another revision.
	if again := r.mustRegister(t, "a", 2); again.GetIdentityRevision() <= first.GetIdentityRevision() {
		t.Errorf("entered again at revision %d after %d", again.GetIdentityRevision(), first.GetIdentityRevision())
	}
}

func TestAddressesOfWhatIsNoMoreGo(t *testing.T) {
	r := start(t)
	r.withPod(t, "a", "one")
	r.withPod(t, "b", "two")
	r.mustRegister(t, "a", 2)
	r.mustRegister(t, "b", 3)
	n1 := source.Key{Kind: object.KindNode, Name: "n1"}
	r.source.Apply(source.Batch{Upserts: []source.Object{{Key: n1, Value: &corev1.Node{
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.200.0.1"}}},
	}}}})
	if refused, err := r.RegisterNode(t.Context(), "n1", &identityv1.RegisterNodeRequest{Addresses: [][]byte{{10, 200, 0, 1}}}); err != nil || len(refused) > 0 {
		t.Fatal(refused, err)
	}
	r.withoutPod("a")
	// Another's address was released in the usual way, and is not remembered.
	gone := since{"10.244.1.2u-a": time.Now().Add(-2 * ownerGrace), "10.244.1.9u-z": time.Now()}
	if err := r.reviewRecords(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	if _, ok := gone["10.244.1.9u-z"]; ok {
		t.Error("what has no record any more is remembered for ever")
	}
	if err := r.writer.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got []string
	all, _ := r.book.All()
	for _, rec := range all {
		got = append(got, fmt.Sprint(rec.GetPodName(), rec.GetNode()))
	}
	if len(got) != 2 || got[0] != "n1" || got[1] != "bn1" {
		t.Errorf("records left: %q, want those of the node and of b", got)
	}
	r.source.Apply(source.Batch{Deletes: []source.Key{n1}})
	// Once the source has nodes, one that it does not have is gone.
	node := &identityv1.AddressRecord{Node: "n1", NodeAddress: true}
	if !Alive(r.source, node) {
		t.Error("a node is taken for gone while the source has no nodes at all")
	}
	r.source.Apply(source.Batch{Upserts: []source.Object{{Key: source.Key{Kind: object.KindNode, Name: "n2"}, Value: &corev1.Node{}}}})
	if Alive(r.source, node) {
		t.Error("a node that the source does not have lives on")
	}
	// S6: while something cannot be read, everybody lives.
	r.source.Apply(source.Batch{Unsynced: []string{"cluster: no such folder"}})
	if !Alive(r.source, node) || !Alive(r.source, &identityv1.AddressRecord{PodUid: "u-a", PodNamespace: "default", PodName: "a"}) {
		t.Error("an owner is taken for gone while the source is not synced")
	}
}

func TestRecordsFollowTheGeneration(t *testing.T) {
	r := start(t)
	r.withPod(t, "a", "one")
	first := r.mustRegister(t, "a", 2)
	if err := r.log.NewGeneration(t.Context(), time.Now(), 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new generation is replayed", func() error {
		if r.view.Position().Generation == first.GetGeneration() {
			return errors.New("it is not")
		}
		return nil
	}, r.view.Changed)
	if err := r.reviewRecords(t.Context(), since{}); err != nil {
		t.Fatal(err)
	}
	if err := r.writer.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	all, _ := r.book.All()
	if len(all) != 1 || all[0].GetGeneration() == first.GetGeneration() {
		t.Errorf("records %v, want one of the new generation", all)
	}
}
