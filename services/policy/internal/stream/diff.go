package stream

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"

	"weir.dev/weir/internal/policyitem"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/policy/internal/catalog"
)

// maxPart is about how large one message of a difference may be.
const maxPart = 1 << 20

// Held is what a client holds.
type Held struct {
	Versions map[policyitem.Key]uint64
	// selectors are those that this stream has sent, by key: a change of their
	// members can be told as a difference.
	selectors map[policyitem.Key]*policyv1.Selector
}

// NewHeld is what a client says that it holds.
func NewHeld(items []*policyv1.ItemVersion) Held {
	h := Held{Versions: make(map[policyitem.Key]uint64, len(items)), selectors: map[policyitem.Key]*policyv1.Selector{}}
	for _, i := range items {
		h.Versions[policyitem.Key{Kind: i.GetKind(), Key: string(i.GetKey())}] = i.GetVersion()
	}
	return h
}

// Difference is what has to be sent.
type Difference struct {
	Full            bool
	Upserts         []Item
	Removals        []*policyv1.ItemKey
	SelectorChanges []*policyv1.SelectorChange
	Digest          []byte
	// After is what the client holds when it has applied it.
	After Held
}

// Empty tells that nothing but the position changes.
func (d *Difference) Empty() bool {
	return !d.Full && len(d.Upserts) == 0 && len(d.Removals) == 0 && len(d.SelectorChanges) == 0
}

// Diff finds the difference from what a client holds to items. A full one names
// everything, whatever the client holds.
func Diff(held Held, items []Item, full bool) Difference {
	d := Difference{Full: full, After: Held{
		Versions:  make(map[policyitem.Key]uint64, len(items)),
		selectors: map[policyitem.Key]*policyv1.Selector{},
	}}
	for _, it := range items {
		d.After.Versions[it.Key] = it.Version
		sel := it.Proto.GetSelector()
		if sel != nil {
			d.After.selectors[it.Key] = sel
		}
		version, has := held.Versions[it.Key]
		switch {
		case has && version == it.Version && !full:
		case has && !full && sel != nil:
			if c := selectorChange(held.selectors[it.Key], sel, version); c != nil && proto.Size(c) < it.Size {
				d.SelectorChanges = append(d.SelectorChanges, c)
				continue
			}
			d.Upserts = append(d.Upserts, it)
		default:
			d.Upserts = append(d.Upserts, it)
		}
	}
	if !full {
		for k := range held.Versions {
			if _, still := d.After.Versions[k]; !still {
				d.Removals = append(d.Removals, &policyv1.ItemKey{Kind: k.Kind, Key: []byte(k.Key)})
			}
		}
		slices.SortFunc(d.Removals, func(a, b *policyv1.ItemKey) int {
			return cmp.Or(cmp.Compare(a.GetKind(), b.GetKind()), slices.Compare(a.GetKey(), b.GetKey()))
		})
	}
	d.Digest = policyitem.Digest(d.After.Versions)
	return d
}

// selectorChange is the difference of two selectors that differ in nothing but
// their identities; nil if they do, or if old is not known.
func selectorChange(old, next *policyv1.Selector, from uint64) *policyv1.SelectorChange {
	if old == nil || !sameButMembers(old, next) {
		return nil
	}
	c := &policyv1.SelectorChange{Id: next.GetId(), From: from}
	was, is := old.GetIdentities(), next.GetIdentities()
	for len(was) > 0 || len(is) > 0 {
		switch {
		case len(was) == 0 || len(is) > 0 && is[0] < was[0]:
			c.Added = append(c.Added, is[0])
			is = is[1:]
		case len(is) == 0 || was[0] < is[0]:
			c.Removed = append(c.Removed, was[0])
			was = was[1:]
		default:
			was, is = was[1:], is[1:]
		}
	}
	return c
}

func sameButMembers(a, b *policyv1.Selector) bool {
	bare := func(s *policyv1.Selector) *policyv1.Selector {
		return &policyv1.Selector{
			Id: s.GetId(), Prefixes: s.GetPrefixes(), Entities: s.GetEntities(), Names: s.GetNames(),
			PrefixesMatchPods: s.GetPrefixesMatchPods(), PrefixesMatchNodes: s.GetPrefixesMatchNodes(), Within: s.GetWithin(),
			Text: s.GetText(),
		}
	}
	return proto.Equal(bare(a), bare(b))
}

// Parts cuts a difference into messages that share a nonce.
func (d *Difference) Parts(pos catalog.Position, nonce uint64) []*policyv1.WatchPolicyResponse {
	var parts []*policyv1.WatchPolicyResponse
	size := 0
	part := func(add int) *policyv1.WatchPolicyResponse {
		if len(parts) == 0 || size+add > maxPart && size > 0 {
			parts = append(parts, &policyv1.WatchPolicyResponse{
				Generation: pos.Generation, Revision: pos.Revision, Nonce: nonce, Full: d.Full,
			})
			size = 0
		}
		size += add
		return parts[len(parts)-1]
	}
	part(0)
	for _, k := range d.Removals {
		p := part(proto.Size(k) + 4)
		p.Removals = append(p.Removals, k)
	}
	for _, c := range d.SelectorChanges {
		p := part(proto.Size(c) + 4)
		p.SelectorChanges = append(p.SelectorChanges, c)
	}
	for _, it := range d.Upserts {
		p := part(it.Size + 4)
		p.Upserts = append(p.Upserts, it.Proto)
	}
	last := parts[len(parts)-1]
	last.End, last.Digest = true, d.Digest
	return parts
}
