// Package rules holds the rule sets that the node's proxy judges requests by,
// under the numbers that conntrack slots carry.
//
// A rule set is compiled once, when it becomes known, and then only read. A
// number that is not known, and a rule set that cannot be compiled, let
// nothing pass. The package imports engine/httprule, engine/rule and
// the standard library. A Table may be used by any number of goroutines.
package rules

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weir.dev/weir/engine/httprule"
	"weir.dev/weir/engine/rule"
)

// Reasons of denials.
const (
	ReasonDenied    = "http-denied"         // no rule lets the request pass
	ReasonAmbiguous = "http-ambiguous-path" // only a pattern would, and the path has several readings
)

// A Decision is what a rule set says of a request. The zero Decision denies.
type Decision struct {
	Allowed bool
	Rule    int    // index of the first rule that matched, -1: none
	Reason  string // of a denial
}

// A Set is a compiled rule set: every one of its parts must let a request pass.
// A Set without parts lets none pass.
type Set struct{ parts []*httprule.Guard }

// Compile makes a Set that demands all of the given rule sets.
func Compile(all [][]rule.HTTPRule) (*Set, error) {
	s := &Set{}
	for i, rules := range all {
		g, err := httprule.NewGuard(rules)
		if err != nil {
			return nil, fmt.Errorf("part %d: %w", i, err)
		}
		s.parts = append(s.parts, g)
	}
	return s, nil
}

// Judge decides a request. The rule of a Decision is one of the first part.
func (s *Set) Judge(r httprule.Request) Decision {
	d := Decision{Allowed: len(s.parts) > 0, Rule: -1}
	for i, p := range s.parts {
		index, ok, ambiguous := p.Match(r)
		switch {
		case ambiguous:
			return Decision{Rule: -1, Reason: ReasonAmbiguous}
		case !ok:
			return Decision{Rule: -1, Reason: ReasonDenied}
		case i == 0:
			d.Rule = index
		}
	}
	if !d.Allowed {
		d.Reason = ReasonDenied
	}
	return d
}

// linger is how long a forgotten Set still judges: a request that came just
// before the policy changed is read after it, and its slot names the Set of its
// time.
const linger = 10 * time.Second

// A Table holds Sets by their numbers, which mean the same for ever. The zero
// Table holds none.
type Table struct {
	mu    sync.Mutex // of writers
	known atomic.Pointer[known]
}

// known is what a Table holds. It is not changed.
type known struct {
	sets   map[uint32]*Set
	former map[uint32]former
}

// former is a Set that was forgotten.
type former struct {
	*Set
	until time.Time
}

// Get returns the Set with that number, or nil.
func (t *Table) Get(number uint32) *Set {
	k := t.known.Load()
	if k == nil {
		return nil
	}
	if set := k.sets[number]; set != nil {
		return set
	}
	if f := k.former[number]; time.Now().Before(f.until) {
		return f.Set
	}
	return nil
}

// Apply makes sets known; with complete, all others are forgotten.
func (t *Table) Apply(sets map[uint32]*Set, complete bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, next := time.Now(), &known{sets: map[uint32]*Set{}, former: map[uint32]former{}}
	if old := t.known.Load(); old != nil {
		for number, f := range old.former {
			if now.Before(f.until) {
				next.former[number] = f
			}
		}
		for number, set := range old.sets {
			if complete {
				next.former[number] = former{set, now.Add(linger)}
			} else {
				next.sets[number] = set
			}
		}
	}
	maps.Copy(next.sets, sets)
	t.known.Store(next)
}

// Numbers returns the known numbers, ascending.
func (t *Table) Numbers() []uint32 {
	k := t.known.Load()
	if k == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(k.sets))
}
