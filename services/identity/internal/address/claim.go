package address

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"weir.dev/weir/internal/bus"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
)

// Quarantine is how long the removal of an address must have been public before
// the address may mean anything again.
const Quarantine = time.Second

// tries bounds how often a write is tried again because another writer was
// faster.
const tries = 16

// Errors of claims.
var (
	ErrOwned     = errors.New("the address has a live owner")
	ErrContended = errors.New("other writers are always faster")
)

// Writer writes address records.
type Writer struct {
	open bus.Opener
	book *Book
	// alive tells whether a record's owner still is.
	alive func(*identityv1.AddressRecord) bool
}

// NewWriter returns a writer into the bucket that the book replays, which open
// opens for each write: it should remember it.
func NewWriter(open bus.Opener, book *Book, alive func(*identityv1.AddressRecord) bool) *Writer {
	return &Writer{open, book, alive}
}

// sameOwner tells whether two records name the same pod or the same node.
func sameOwner(a, b *identityv1.AddressRecord) bool {
	return a.GetNodeAddress() == b.GetNodeAddress() && a.GetPodUid() == b.GetPodUid() && a.GetNode() == b.GetNode()
}

// Claim makes r the record of its address and returns the sequence at which it
// entered the stream. An address that a live pod or node has is refused with
// ErrOwned; one that last meant another identity is waited for.
func (w *Writer) Claim(ctx context.Context, r *identityv1.AddressRecord) (uint64, error) {
	a, ok := netip.AddrFromSlice(r.GetAddress())
	if !ok {
		return 0, fmt.Errorf("claim address %x: it has %d bytes, want 16", r.GetAddress(), len(r.GetAddress()))
	}
	a = a.Unmap()
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return 0, fmt.Errorf("claim %s: %w", a, err)
	}
	kv, err := w.open(ctx)
	if err != nil {
		return 0, err
	}
	for range tries {
		seq, err := w.claim(ctx, kv, a, r, text)
		if errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			continue // somebody wrote in between
		}
		if err != nil {
			return 0, fmt.Errorf("claim %s: %w", a, err)
		}
		return seq, nil
	}
	return 0, fmt.Errorf("claim %s: %w", a, ErrContended)
}

func (w *Writer) claim(ctx context.Context, kv jetstream.KeyValue, a netip.Addr, r *identityv1.AddressRecord, text []byte) (uint64, error) {
	entry, err := kv.Get(ctx, Key(a))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return w.create(ctx, kv, a, text)
	}
	if err != nil {
		return 0, err
	}
	cur := &identityv1.AddressRecord{}
	readable := proto.Unmarshal(entry.Value(), cur) == nil
	switch {
	case readable && proto.Equal(cur, r):
		return entry.Revision(), nil
	case readable && sameOwner(cur, r):
		return kv.Update(ctx, Key(a), text, entry.Revision())
	case readable && w.alive(cur):
		return 0, fmt.Errorf("%w: %s", ErrOwned, ownerText(cur))
	case readable && !r.GetNodeAddress() && !cur.GetNodeAddress() && bytes.Equal(cur.GetIdentity(), r.GetIdentity()):
		return kv.Update(ctx, Key(a), text, entry.Revision()) // it means the same, without a gap
	}
	// Its owner is gone. The removal is made public, and then create waits.
	if err := kv.Delete(ctx, Key(a), jetstream.LastRevision(entry.Revision())); err != nil {
		return 0, err
	}
	return w.create(ctx, kv, a, text)
}

// create writes the first record after a removal, or ever.
func (w *Writer) create(ctx context.Context, kv jetstream.KeyValue, a netip.Addr, text []byte) (uint64, error) {
	head, err := bus.HeadOf(ctx, kv)
	if err != nil {
		return 0, err
	}
	if err := w.book.WaitFor(ctx, head.Sequence); err != nil { // it knows the removal, if there was one
		return 0, err
	}
	if left := w.book.quiet(a, time.Now()); left > 0 {
		t := time.NewTimer(left)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return kv.Create(ctx, Key(a), text)
}

func ownerText(r *identityv1.AddressRecord) string {
	if r.GetNodeAddress() {
		return "node " + r.GetNode()
	}
	return fmt.Sprintf("pod %s/%s (uid %s) on node %s", r.GetPodNamespace(), r.GetPodName(), r.GetPodUid(), r.GetNode())
}

// Release removes the record of an address if it still names the owner that r
// names. It tells whether it removed one: an address with another owner by now
// is left alone.
func (w *Writer) Release(ctx context.Context, a netip.Addr, r *identityv1.AddressRecord) (bool, error) {
	kv, err := w.open(ctx)
	if err != nil {
		return false, err
	}
	for range tries {
		entry, err := kv.Get(ctx, Key(a))
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("release %s: %w", a, err)
		}
		cur := &identityv1.AddressRecord{}
		if err := proto.Unmarshal(entry.Value(), cur); err != nil || !sameOwner(cur, r) {
			return false, nil
		}
		err = kv.Delete(ctx, Key(a), jetstream.LastRevision(entry.Revision()))
		if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("release %s: %w", a, err)
		}
		return true, nil
	}
	return false, fmt.Errorf("release %s: %w", a, ErrContended)
}

// CatchUp returns when the book has seen everything that the stream held when
// it was called.
func (w *Writer) CatchUp(ctx context.Context) error {
	head, err := w.Head(ctx)
	if err != nil {
		return err
	}
	return w.book.WaitFor(ctx, head.Sequence)
}

// Head asks the server for the head of the address stream.
func (w *Writer) Head(ctx context.Context) (bus.Head, error) {
	kv, err := w.open(ctx)
	if err != nil {
		return bus.Head{}, err
	}
	return bus.HeadOf(ctx, kv)
}
