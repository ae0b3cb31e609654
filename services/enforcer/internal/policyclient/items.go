package policyclient

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/policyitem"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// items is what the client holds of the policy. A value is never written once
// it is in use: with makes the next one, and shares what did not change.
type items struct {
	generation uint64 // 0: nothing is held
	byKey      map[policyitem.Key]item
}

// item is one item as received, its version, and the value that it means: a
// rule.Subject, rule.Selector, []rule.Rule, rule.RuleSet or rule.Service.
type item struct {
	proto   *policyv1.Item
	version uint64
	value   any
}

func newItems() items { return items{byKey: map[policyitem.Key]item{}} }

func (h items) digest() []byte {
	held := make(map[policyitem.Key]uint64, len(h.byKey))
	for k, it := range h.byKey {
		held[k] = it.version
	}
	return policyitem.Digest(held)
}

func (h items) versions() []*policyv1.ItemVersion {
	out := make([]*policyv1.ItemVersion, 0, len(h.byKey))
	for k, it := range h.byKey {
		out = append(out, &policyv1.ItemVersion{Kind: k.Kind, Key: []byte(k.Key), Version: it.version})
	}
	return out
}

// with is what is held after d. h is not changed.
func (h items) with(d *difference) (items, error) {
	next := items{generation: d.at.Generation, byKey: map[policyitem.Key]item{}}
	if !d.full {
		next.byKey = maps.Clone(h.byKey)
	}
	for _, r := range d.removals {
		delete(next.byKey, policyitem.Key{Kind: r.GetKind(), Key: string(r.GetKey())})
	}
	for _, c := range d.changes {
		it, err := h.changed(c)
		if err != nil {
			return items{}, err
		}
		if err := next.put(it); err != nil {
			return items{}, err
		}
	}
	for _, it := range d.upserts {
		if err := next.put(it); err != nil {
			return items{}, err
		}
	}
	return next, nil
}

func (h items) put(it *policyv1.Item) error {
	key, err := policyitem.KeyOf(it)
	if err != nil {
		return err
	}
	version, err := policyitem.Version(it)
	if err != nil {
		return err
	}
	value, err := valueOf(it)
	if err != nil {
		return fmt.Errorf("policy item %s %x: %w", key.Kind, key.Key, err)
	}
	h.byKey[key] = item{it, version, value}
	return nil
}

// changed is the selector that c makes of the one held.
func (h items) changed(c *policyv1.SelectorChange) (*policyv1.Item, error) {
	old, ok := h.byKey[policyitem.Key{Kind: policyv1.ItemKind_ITEM_KIND_SELECTOR, Key: string(c.GetId())}]
	if !ok || old.version != c.GetFrom() {
		return nil, fmt.Errorf("%w: selector %x changes from version %x, which is not held", ErrDigest, c.GetId(), c.GetFrom())
	}
	sel := proto.CloneOf(old.proto.GetSelector())
	members := make(map[uint64]bool, len(sel.Identities)+len(c.GetAdded()))
	for _, m := range sel.Identities {
		members[m] = true
	}
	for _, m := range c.GetRemoved() {
		delete(members, m)
	}
	for _, m := range c.GetAdded() {
		members[m] = true
	}
	sel.Identities = slices.Sorted(maps.Keys(members))
	return &policyv1.Item{Item: &policyv1.Item_Selector{Selector: sel}}, nil
}

// state assembles what the items mean. A rule that names a selector or a rule
// set that is not there is an error: it could deny less than was written.
func (h items) state() (State, error) {
	var s State
	selectors, ruleSets := map[rule.ID]bool{}, map[rule.ID]bool{}
	for _, it := range h.byKey {
		switch v := it.value.(type) {
		case rule.Subject:
			s.Subjects = append(s.Subjects, v)
		case rule.Selector:
			s.Policy.Selectors = append(s.Policy.Selectors, v)
			selectors[v.ID] = true
		case []rule.Rule:
			s.Policy.Rules = append(s.Policy.Rules, v...)
		case rule.RuleSet:
			s.Policy.RuleSets = append(s.Policy.RuleSets, v)
			ruleSets[v.ID] = true
		case rule.Service:
			s.Services = append(s.Services, v)
		}
	}
	for _, r := range s.Policy.Rules {
		if r.Action != rule.Isolate && !selectors[r.Peer] {
			return State{}, fmt.Errorf("rule %x of %s %s/%s names peer selector %x, which is not held",
				r.ID, r.Origin.Kind, r.Origin.Namespace, r.Origin.Name, r.Peer)
		}
		if r.RuleSet != (rule.ID{}) && !ruleSets[r.RuleSet] {
			return State{}, fmt.Errorf("rule %x of %s %s/%s names rule set %x, which is not held",
				r.ID, r.Origin.Kind, r.Origin.Namespace, r.Origin.Name, r.RuleSet)
		}
	}
	slices.SortFunc(s.Subjects, func(a, b rule.Subject) int { return bytes.Compare(a.Identity[:], b.Identity[:]) })
	slices.SortFunc(s.Policy.Selectors, func(a, b rule.Selector) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	slices.SortFunc(s.Policy.Rules, func(a, b rule.Rule) int {
		return cmp.Or(bytes.Compare(a.ID[:], b.ID[:]), cmp.Compare(a.Direction, b.Direction))
	})
	slices.SortFunc(s.Policy.RuleSets, func(a, b rule.RuleSet) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	slices.SortFunc(s.Services, func(a, b rule.Service) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	return s, nil
}
