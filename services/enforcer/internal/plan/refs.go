package plan

import (
	"cmp"
	"net/netip"
	"slices"
)

// exact is the length of a full address: longer than any prefix, for the hash
// is asked before the LPM.
const exact = 129

// refKey is an address or a prefix.
type refKey struct {
	prefix netip.Prefix // widened: of 16 bytes, IPv4 mapped
	length int          // bits of the prefix, or exact
}

// refChange is an address or a prefix whose reference changes.
type refChange struct {
	key        refKey
	inFrom     bool    // from has this very key
	inTo       bool    // to has it
	was, will  PeerRef // what it stands for: by itself, or by what covers it
	over       PeerRef // in from: what stands for it if it is not there itself
	overWill   PeerRef // in to
	addr       netip.Addr
	fromPrefix netip.Prefix
}

// put is the write that makes the key stand for ref.
func (r refChange) put(ref PeerRef) Op {
	if r.key.length == exact {
		return AddressWrite{Addr: r.addr, Value: ref}
	}
	return PrefixWrite{Prefix: r.fromPrefix, Value: ref}
}

// del is the write that takes the key out.
func (r refChange) del() Op {
	if r.key.length == exact {
		return AddressWrite{Addr: r.addr, Delete: true}
	}
	return PrefixWrite{Prefix: r.fromPrefix, Delete: true}
}

// settle is the write that makes the key what to says.
func (r refChange) settle() Op {
	if r.inTo {
		return r.put(r.will)
	}
	return r.del()
}

func diffRefs(from, to *State) []refChange {
	var changes []refChange
	was, will := newCover(from.Prefixes), newCover(to.Prefixes)
	for _, d := range diffMaps(from.Addresses, to.Addresses, netip.Addr.Compare) {
		r := refChange{key: refKey{widen(netip.PrefixFrom(d.key, d.key.BitLen())), exact}, addr: d.key}
		r.was, r.inFrom = from.Addresses[d.key]
		r.will, r.inTo = d.value, !d.gone
		changes = append(changes, r.covered(was, will))
	}
	for _, d := range diffMaps(from.Prefixes, to.Prefixes, netip.Prefix.Compare) {
		wide := widen(d.key)
		r := refChange{key: refKey{wide, wide.Bits()}, fromPrefix: d.key}
		r.was, r.inFrom = from.Prefixes[d.key]
		r.will, r.inTo = d.value, !d.gone
		changes = append(changes, r.covered(was, will))
	}
	slices.SortStableFunc(changes, func(a, b refChange) int { return cmp.Compare(b.key.length, a.key.length) })
	return changes
}

// covered fills in what stands for the key if it is not there itself.
func (r refChange) covered(from, to cover) refChange {
	r.over, r.overWill = from.above(r.key), to.above(r.key)
	if !r.inFrom {
		r.was = r.over
	}
	if !r.inTo {
		r.will = r.overWill
	}
	return r
}

// inOrder sorts writes so that what covers a key is never seen in its place:
// additions from the longest on, then changes, then removals from the shortest on.
func inOrder(changes []refChange) []refChange {
	group := func(r refChange) int {
		switch {
		case !r.inFrom:
			return 0
		case r.inTo:
			return 1
		}
		return 2
	}
	sorted := slices.Clone(changes)
	slices.SortStableFunc(sorted, func(a, b refChange) int {
		if c := cmp.Compare(group(a), group(b)); c != 0 {
			return c
		}
		if group(a) == 2 {
			return cmp.Compare(a.key.length, b.key.length)
		}
		return cmp.Compare(b.key.length, a.key.length)
	})
	return sorted
}

// cover finds the longest prefix, as the LPM does.
type cover struct {
	refs    map[netip.Prefix]PeerRef // widened
	lengths []int                    // that occur, longest first
}

func newCover(prefixes map[netip.Prefix]PeerRef) cover {
	c := cover{refs: make(map[netip.Prefix]PeerRef, len(prefixes))}
	seen := [129]bool{}
	for p, ref := range prefixes {
		wide := widen(p)
		c.refs[wide], seen[wide.Bits()] = ref, true
	}
	for length := 128; length >= 0; length-- {
		if seen[length] {
			c.lengths = append(c.lengths, length)
		}
	}
	return c
}

// above returns what covers a key: the longest prefix that is shorter than it.
func (c cover) above(k refKey) PeerRef {
	for _, length := range c.lengths {
		if length >= k.length {
			continue
		}
		p, err := k.prefix.Addr().Prefix(length)
		if err != nil {
			continue
		}
		if ref, ok := c.refs[p]; ok {
			return ref
		}
	}
	return PeerRef{}
}

// widen returns the prefix as the kernel has it, of 16 bytes, IPv4 mapped.
func widen(p netip.Prefix) netip.Prefix {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return netip.PrefixFrom(netip.AddrFrom16(p.Addr().As16()), bits).Masked()
}
