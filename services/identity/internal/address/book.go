// Package address keeps the address records: which pod or node an address is
// of, and what identity that has. Every write is a compare-and-set on the
// record that was read, so a late removal never takes away a new owner.
//
// It imports proto and the kit. A Book is safe for concurrent use.
package address

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/logkey"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
)

// Key is the key of an address's record: the hex of its 16 bytes.
func Key(a netip.Addr) string {
	b := a.Unmap().As16()
	return hex.EncodeToString(b[:])
}

// addrOf reads a key. The address is unmapped.
func addrOf(key string) (netip.Addr, error) {
	b, err := hex.DecodeString(key)
	if err != nil || len(b) != 16 {
		return netip.Addr{}, fmt.Errorf("key %q is not the hex of 16 bytes", key)
	}
	return netip.AddrFrom16([16]byte(b)).Unmap(), nil
}

// A Record is what is known of an address.
type Record struct {
	*identityv1.AddressRecord // never written to
	Sequence                  uint64
}

// owner is whom a record's address is of, for the index.
func (r Record) owner() string {
	if r.GetNodeAddress() {
		return "node/" + r.GetNode()
	}
	return "pod/" + r.GetPodUid()
}

// Book is what a replica has replayed of the address stream. It must be made by
// NewBook.
type Book struct {
	mu      sync.RWMutex
	records map[netip.Addr]Record
	owned   map[string]map[netip.Addr]struct{}
	// removed is when this replica saw the removal of an address that has no
	// record: it was public by then. What it meant is not kept: the stream holds
	// only the last write of a key, so the record before may not have been seen.
	// What is older than Quarantine is forgotten.
	removed  map[netip.Addr]time.Time
	head     bus.Head
	complete bool
	changed  chan struct{} // closed at the next change
}

// NewBook returns a book that has replayed nothing.
func NewBook() *Book {
	b := &Book{changed: make(chan struct{})}
	b.reset()
	return b
}

func (b *Book) reset() {
	b.records = map[netip.Addr]Record{}
	b.owned = map[string]map[netip.Addr]struct{}{}
	b.removed = map[netip.Addr]time.Time{}
}

// Follow replays the address stream until ctx ends.
func (b *Book) Follow(ctx context.Context, open bus.Opener, log *slog.Logger) {
	bus.Follow(ctx, open, log, func(batch bus.Batch) {
		for _, err := range b.apply(batch) {
			log.Error("address record cannot be read", logkey.Error, err)
		}
	})
}

func (b *Book) apply(batch bus.Batch) (bad []error) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if batch.Reset {
		b.reset()
	}
	maps.DeleteFunc(b.removed, func(_ netip.Addr, seen time.Time) bool { return now.Sub(seen) >= Quarantine })
	for _, e := range batch.Entries {
		a, err := addrOf(e.Key)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		b.drop(a)
		if e.Removed {
			b.removed[a] = now
			continue
		}
		r := Record{&identityv1.AddressRecord{}, e.Revision}
		if err := proto.Unmarshal(e.Value, r.AddressRecord); err != nil {
			bad = append(bad, fmt.Errorf("record of %s: %w", a, err))
			continue // no record: the address is pending everywhere
		}
		delete(b.removed, a)
		b.add(a, r)
	}
	b.head, b.complete = batch.Head, batch.Complete
	close(b.changed)
	b.changed = make(chan struct{})
	return bad
}

func (b *Book) add(a netip.Addr, r Record) {
	b.records[a] = r
	if b.owned[r.owner()] == nil {
		b.owned[r.owner()] = map[netip.Addr]struct{}{}
	}
	b.owned[r.owner()][a] = struct{}{}
}

func (b *Book) drop(a netip.Addr) {
	r, ok := b.records[a]
	if !ok {
		return
	}
	delete(b.records, a)
	delete(b.owned[r.owner()], a)
	if len(b.owned[r.owner()]) == 0 {
		delete(b.owned, r.owner())
	}
}

// Get returns the record of an address.
func (b *Book) Get(a netip.Addr) (Record, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	r, ok := b.records[a.Unmap()]
	return r, ok
}

// OfPod returns the addresses of a pod, sorted.
func (b *Book) OfPod(uid string) []netip.Addr { return b.of("pod/" + uid) }

// OfNode returns a node's own addresses, sorted.
func (b *Book) OfNode(node string) []netip.Addr { return b.of("node/" + node) }

func (b *Book) of(owner string) []netip.Addr {
	b.mu.RLock()
	defer b.mu.RUnlock()
	out := make([]netip.Addr, 0, len(b.owned[owner]))
	for a := range b.owned[owner] {
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// All returns every record, sorted by address, and the head that they are of.
func (b *Book) All() ([]Record, bus.Head) {
	b.mu.RLock()
	out := make([]Record, 0, len(b.records))
	for _, r := range b.records {
		out = append(out, r)
	}
	head := b.head
	b.mu.RUnlock()
	slices.SortFunc(out, func(x, y Record) int { return slices.Compare(x.GetAddress(), y.GetAddress()) })
	return out, head
}

// Len is the number of records.
func (b *Book) Len() int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return len(b.records)
}

// Head tells where the book is, and whether it has reached the head that the
// stream had at the start.
func (b *Book) Head() (bus.Head, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.head, b.complete
}

// Changed is closed at the next change.
func (b *Book) Changed() <-chan struct{} {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.changed
}

// WaitFor returns when the book is complete and at the sequence at least.
func (b *Book) WaitFor(ctx context.Context, sequence uint64) error {
	for {
		b.mu.RLock()
		done, changed := b.complete && b.head.Sequence >= sequence, b.changed
		b.mu.RUnlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// quiet tells how long an address without a record has to stay so: the end of
// what it meant must have been public for a while before it means anything.
func (b *Book) quiet(a netip.Addr, now time.Time) time.Duration {
	b.mu.RLock()
	defer b.mu.RUnlock()
	seen, ok := b.removed[a]
	if !ok {
		return 0
	}
	return max(seen.Add(Quarantine).Sub(now), 0)
}
