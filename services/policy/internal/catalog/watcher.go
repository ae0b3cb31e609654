package catalog

import (
	"slices"
	"sync"

	"weir.dev/weir/engine/resolve"
	"weir.dev/weir/engine/rule"
)

// A Watcher is one stream's: it learns whether its node's state may have
// changed, without computing it. Its methods but Close are called by one
// goroutine, beside the catalog's own.
type Watcher struct {
	catalog *Catalog
	wake    chan struct{} // capacity 1

	mu         sync.Mutex
	dirty      bool
	identities []rule.IdentityHash // sorted
	selectors  map[rule.ID]struct{}
	services   bool
}

// Watch returns a watcher of no identities. Its owner closes it.
func (c *Catalog) Watch() *Watcher {
	w := &Watcher{catalog: c, wake: make(chan struct{}, 1), dirty: true}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchers[w] = struct{}{}
	return w
}

// Close ends the watcher.
func (w *Watcher) Close() {
	w.catalog.mu.Lock()
	defer w.catalog.mu.Unlock()
	delete(w.catalog.watchers, w)
}

// Wake receives after each change of the position.
func (w *Watcher) Wake() <-chan struct{} { return w.wake }

// Subscribe replaces the identities.
func (w *Watcher) Subscribe(identities []rule.IdentityHash) {
	ids := slices.Clone(identities)
	slices.SortFunc(ids, func(a, b rule.IdentityHash) int { return slices.Compare(a[:], b[:]) })
	w.mu.Lock()
	w.identities = slices.Compact(ids)
	w.mu.Unlock()
	w.mark()
}

// mark says that everything may be different.
func (w *Watcher) mark() {
	w.mu.Lock()
	w.dirty = true
	w.mu.Unlock()
	w.signal()
}

func (w *Watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// touch says what changed; replaced, that the generation did.
func (w *Watcher) touch(c resolve.Changes, replaced bool) {
	w.mu.Lock()
	w.dirty = w.dirty || replaced || w.concerns(c)
	w.mu.Unlock()
	w.signal()
}

func (w *Watcher) concerns(c resolve.Changes) bool {
	if c.Services && w.services {
		return true
	}
	for _, id := range c.Selectors {
		if _, ok := w.selectors[id]; ok {
			return true
		}
	}
	for _, id := range c.Identities {
		if _, ok := slices.BinarySearchFunc(w.identities, id, func(a, b rule.IdentityHash) int { return slices.Compare(a[:], b[:]) }); ok {
			return true
		}
	}
	return false
}

// Take returns the position, and the node's state if it may differ from the
// one taken before (fresh). ok is false before there is a state to serve.
func (w *Watcher) Take() (state resolve.NodeState, pos Position, fresh, ok bool) {
	c := w.catalog
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.served() == nil {
		return resolve.NodeState{}, Position{}, false, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.dirty {
		return resolve.NodeState{}, c.cur.pos, false, true
	}
	state = c.cur.state.Node(w.identities)
	w.dirty = false
	w.services = len(state.Services) > 0 || slices.ContainsFunc(state.Rules, func(r rule.Rule) bool { return r.Direction == rule.Egress })
	w.selectors = make(map[rule.ID]struct{}, len(state.Selectors))
	for _, s := range state.Selectors {
		w.selectors[s.ID] = struct{}{}
	}
	return state, c.cur.pos, true, true
}

// Identities are those that were subscribed to.
func (w *Watcher) Identities() []rule.IdentityHash {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.identities
}
