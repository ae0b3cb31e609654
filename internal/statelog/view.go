package statelog

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/protobuf/proto"
)

// ErrNotReplayed reports a replica that has not yet replayed the log.
var ErrNotReplayed = errors.New("the state log is not replayed yet")

// An Entry is the last value of a key.
type Entry struct {
	Value    proto.Message // never written to
	Revision uint64
}

// Position is where a replica is in the log.
type Position struct {
	Generation uint64
	Revision   uint64
	Complete   bool // the head seen at the start of replaying is reached
}

// A View keeps the last value of every key. It must be made by NewView.
type View struct {
	mu      sync.RWMutex
	entries map[Key]Entry
	pos     Position
	highest Position      // of the generation, complete
	changed chan struct{} // closed at the next change
}

// NewView returns an empty view that has replayed nothing.
func NewView() *View {
	return &View{entries: map[Key]Entry{}, changed: make(chan struct{})}
}

// Apply takes a batch in. After a Reset the view is not complete until the
// replay is; whoever serves from it asks Ready first.
func (v *View) Apply(b Batch) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if b.Reset {
		v.entries = map[Key]Entry{}
	}
	for _, e := range b.Events {
		if e.Value == nil {
			delete(v.entries, e.Key)
			continue
		}
		v.entries[e.Key] = Entry{e.Value, e.Revision}
	}
	v.pos = Position{b.Generation, b.Revision, b.Complete}
	if v.pos.Complete && (v.pos.Generation != v.highest.Generation || v.pos.Revision > v.highest.Revision) {
		v.highest = v.pos
	}
	close(v.changed)
	v.changed = make(chan struct{})
}

// Get returns the last value of key.
func (v *View) Get(key Key) (Entry, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	e, ok := v.entries[key]
	return e, ok
}

// Each calls f with every entry of the kind, in no order, until it returns
// false. f must not call the view.
func (v *View) Each(kind Kind, f func(Key, Entry) bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for k, e := range v.entries {
		if k.Kind() == kind && !f(k, e) {
			return
		}
	}
}

// Position tells where the view is.
func (v *View) Position() Position {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.pos
}

// LostTail tells whether the log, replayed again, ends before what it held when
// it was replayed before: it came back from an older disk.
func (v *View) LostTail() bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.pos.Complete && v.pos.Generation == v.highest.Generation && v.pos.Revision < v.highest.Revision
}

// Changed is closed at the next change.
func (v *View) Changed() <-chan struct{} {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.changed
}

// Ready is nil once the head seen at the start is reached and the log has a
// generation.
func (v *View) Ready() error {
	if p := v.Position(); !p.Complete || p.Generation == 0 {
		return ErrNotReplayed
	}
	return nil
}

// WaitFor returns when the view is complete and at the revision at least.
func (v *View) WaitFor(ctx context.Context, revision uint64) error {
	for {
		v.mu.RLock()
		pos, changed := v.pos, v.changed
		v.mu.RUnlock()
		if pos.Complete && pos.Revision >= revision {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
