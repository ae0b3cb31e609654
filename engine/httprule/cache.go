package httprule

import (
	"sync"
	"sync/atomic"
	"unicode/utf8"
)

// A cache holds the states of the automaton that have been needed so far. A
// full cache is left to the requests that read it, and replaced.
type cache struct {
	tree  *tree
	start *state

	mu      sync.Mutex // of what follows, and of writing into states
	states  map[string]*state
	threads int // in all states: what memory the cache takes
}

// A state is a set of threads and where each symbol leads.
type state struct {
	set
	next  []atomic.Pointer[state] // by rune class and end of field
	conds sync.Map                // condition symbol → *state
	rule  uint32
	ok    bool
}

func newCache(t *tree) *cache {
	c := &cache{tree: t, states: map[string]*state{}}
	c.start = c.intern(t.start())
	return c
}

// intern returns the state of a set. The caller holds mu or is alone.
func (c *cache) intern(s set) *state {
	key := s.key()
	if st := c.states[key]; st != nil {
		return st
	}
	st := &state{set: s, next: make([]atomic.Pointer[state], c.tree.end()+1)}
	st.rule, st.ok = c.tree.accepted(s)
	c.states[key] = st
	c.threads += 2*len(s.threads) + len(st.next) + 16
	return st
}

// A run is one request on its way through the automaton.
type run struct {
	m     *Matcher
	cache *cache
	at    *state // nil: the cache is full, and slow is where we are
	slow  set
	work  *work
}

// field reads one field and its end; false says that nothing can match any more.
func (r *run) field(s string) bool {
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			r.step(r.m.tree.ascii[c])
			i++
		} else {
			ru, n := utf8.DecodeRuneInString(s[i:])
			r.step(r.m.tree.class(ru))
			i += n
		}
		if r.dead() {
			return false
		}
	}
	r.step(r.m.tree.end())
	return !r.dead()
}

func (r *run) dead() bool {
	if r.at != nil {
		return len(r.at.threads) == 0
	}
	return len(r.slow.threads) == 0
}

func (r *run) accepted() (uint32, bool) {
	if r.at != nil {
		return r.at.rule, r.at.ok
	}
	return r.m.tree.accepted(r.slow)
}

func (r *run) step(symbol int32) {
	r.work.symbols++
	if r.at == nil {
		r.slow = r.m.tree.step(r.slow, symbol, r.work)
		return
	}
	if symbol <= r.m.tree.end() {
		if next := r.at.next[symbol].Load(); next != nil {
			r.at = next
			return
		}
	} else if next, ok := r.at.conds.Load(symbol); ok {
		r.at = next.(*state)
		return
	}
	r.extend(symbol)
}

// extend makes the state that the symbol leads to, or leaves a full cache.
func (r *run) extend(symbol int32) {
	c := r.cache
	next := c.tree.step(r.at.set, symbol, r.work)
	c.mu.Lock()
	full := c.threads > r.m.limit
	if !full {
		st := c.intern(next)
		if symbol <= c.tree.end() {
			r.at.next[symbol].Store(st)
		} else {
			r.at.conds.Store(symbol, st)
			c.threads += 8
		}
		r.at = st
	}
	c.mu.Unlock()
	if !full {
		return
	}
	r.at, r.slow = nil, next
	if r.m.cache.Load() == c {
		r.m.cache.CompareAndSwap(c, newCache(c.tree))
	}
}
