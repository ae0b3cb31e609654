package address_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/natstest"
	"weir.dev/weir/internal/tlsconf"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	"weir.dev/weir/services/identity/internal/address"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// records is a bucket with a book and a writer for which pods live as long as
// the test says.
type records struct {
	t      *testing.T
	open   bus.Opener
	book   *address.Book
	writer *address.Writer
	dead   map[string]bool // by pod uid
}

func start(t *testing.T) *records {
	t.Helper()
	js := natstest.Start(t).JetStream(t, tlsconf.Identity, "identity-0")
	open := bus.Cached(func(ctx context.Context) (jetstream.KeyValue, error) { return bus.AddressRecords(ctx, js) })
	r := &records{t: t, open: open, dead: map[string]bool{}}
	r.replica()
	return r
}

// replica replaces the book and the writer by those of a replica that has just
// started.
func (r *records) replica() {
	r.t.Helper()
	r.book = address.NewBook()
	r.writer = address.NewWriter(r.open, r.book, func(rec *identityv1.AddressRecord) bool { return !r.dead[rec.GetPodUid()] })
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.book.Follow(ctx, r.open, slog.New(slog.DiscardHandler))
	}()
	r.t.Cleanup(func() { stop(); <-done })
}

var pod = netip.MustParseAddr("10.244.1.2")

func record(uid string, identity byte) *identityv1.AddressRecord {
	b := pod.As16()
	return &identityv1.AddressRecord{Address: b[:], PodUid: uid, Node: "n1", Identity: []byte{identity}}
}

// claim returns how long a claim took.
func (r *records) claim(rec *identityv1.AddressRecord) time.Duration {
	r.t.Helper()
	began := time.Now()
	if _, err := r.writer.Claim(r.t.Context(), rec); err != nil {
		r.t.Fatal(err)
	}
	return time.Since(began)
}

func (r *records) release(rec *identityv1.AddressRecord) bool {
	r.t.Helper()
	ok, err := r.writer.Release(r.t.Context(), pod, rec)
	if err != nil {
		r.t.Fatal(err)
	}
	return ok
}

func TestAddressThatMeantAnotherIdentityWaits(t *testing.T) {
	r := start(t)
	if took := r.claim(record("a", 1)); took > address.Quarantine/2 {
		t.Errorf("a new address took %v", took)
	}
	if !r.release(record("a", 1)) {
		t.Fatal("the owner could not release")
	}
	if took := r.claim(record("c", 2)); took < address.Quarantine*9/10 {
		t.Errorf("another identity took %v, want %v", took, address.Quarantine)
	}
	// A replica that has just started does not know what the address meant.
	if !r.release(record("c", 2)) {
		t.Fatal("the owner could not release")
	}
	r.replica()
	if took := r.claim(record("d", 2)); took < address.Quarantine*9/10 {
		t.Errorf("at a new replica it took %v, want %v", took, address.Quarantine)
	}
}

func TestOwners(t *testing.T) {
	r := start(t)
	r.claim(record("a", 1))
	if _, err := r.writer.Claim(t.Context(), record("b", 1)); !errors.Is(err, address.ErrOwned) {
		t.Errorf("the address of a live pod: %v, want ErrOwned", err)
	}
	// The owner's own record may change: it was relabelled.
	if took := r.claim(record("a", 2)); took > address.Quarantine/2 {
		t.Errorf("its owner's other identity took %v", took)
	}
	if r.release(record("b", 1)) {
		t.Error("a stranger released the address")
	}
	r.dead["a"] = true
	if took := r.claim(record("b", 1)); took < address.Quarantine*9/10 {
		t.Errorf("a dead pod's address took %v, want %v", took, address.Quarantine)
	}
	if r.release(record("a", 2)) {
		t.Error("the dead pod's late release removed the new owner")
	}
	r.dead["b"] = true
	if took := r.claim(record("c", 1)); took > address.Quarantine/2 {
		t.Errorf("a dead pod's address for its like took %v, want no wait: it means the same", took)
	}
	if err := r.writer.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	rec, ok := r.book.Get(pod)
	if !ok || rec.GetPodUid() != "c" {
		t.Errorf("the record is %v, want c's", rec)
	}
}
