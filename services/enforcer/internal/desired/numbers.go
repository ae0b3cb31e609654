package desired

import (
	"cmp"
	"fmt"
	"slices"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// numbers gives a key the number it had, as long as some build has named it
// since the last sweep.
type numbers[K comparable] struct {
	free     *plan.Numbers
	byKey    map[K]uint32
	named    map[K]bool // by the build under way
	reserved []uint32   // from before a restart; given back by the first sweep
}

func newNumbers[K comparable](first, limit uint32) *numbers[K] {
	return &numbers[K]{free: plan.NewNumbers(first, limit), byKey: map[K]uint32{}}
}

func (n *numbers[K]) begin() { n.named = make(map[K]bool, len(n.byKey)) }

func (n *numbers[K]) reserve(v uint32) {
	n.free.Reserve(v)
	n.reserved = append(n.reserved, v)
}

func (n *numbers[K]) of(key K) (uint32, error) {
	n.named[key] = true
	if v, ok := n.byKey[key]; ok {
		return v, nil
	}
	v, err := n.free.Take()
	if err != nil {
		return 0, err
	}
	n.byKey[key] = v
	return v, nil
}

func (n *numbers[K]) sweep() {
	for key, v := range n.byKey {
		if !n.named[key] {
			delete(n.byKey, key)
			n.free.Release(v)
		}
	}
	for _, v := range n.reserved {
		n.free.Release(v)
	}
	n.reserved = nil
}

// ruleSetNumbers never gives a number twice: connections in the proxy and slots
// outlive the states that named them.
type ruleSetNumbers struct {
	next  rule.Verdict
	byKey map[string]rule.Verdict
	named map[string][]rule.ID // by the build under way
}

func (n *ruleSetNumbers) begin() { n.named = map[string][]rule.ID{} }

// of is the number of the rule set that passes what all of ids pass. ids are
// sorted and without duplicates.
func (n *ruleSetNumbers) of(ids []rule.ID) (rule.Verdict, error) {
	var key []byte
	for _, id := range ids {
		key = append(key, id[:]...)
	}
	n.named[string(key)] = ids
	if v, ok := n.byKey[string(key)]; ok {
		return v, nil
	}
	if n.next == ^rule.Verdict(0) {
		return 0, fmt.Errorf("rule sets: %w", plan.ErrNumbers)
	}
	v := n.next
	n.next++
	n.byKey[string(key)] = v
	return v, nil
}

func (n *ruleSetNumbers) sweep() {
	for key := range n.byKey {
		if n.named[key] == nil {
			delete(n.byKey, key)
		}
	}
}

// list is every rule set that the build under way named, by number.
func (n *ruleSetNumbers) list(index *merge.Index) ([]RuleSet, error) {
	var out []RuleSet
	for key, ids := range n.named {
		s := RuleSet{Number: n.byKey[key]}
		for _, id := range ids {
			set, ok := index.RuleSet(id)
			if !ok {
				return nil, fmt.Errorf("rule set %s is named by a cell and not known", id)
			}
			s.AllOf = append(s.AllOf, set)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b RuleSet) int { return cmp.Compare(a.Number, b.Number) })
	return out, nil
}
