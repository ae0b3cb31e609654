package merge

import (
	"net/netip"
	"slices"
	"strings"

	"weir.dev/weir/engine/rule"
)

// Matches are the selectors that match d, sorted: the peer's class. The prefix
// of d is matched by every prefix that covers it, not by the longest alone, and
// what they say adds up with what d's identity, entity and names say.
func (x *Index) Matches(d PeerDesc) []rule.ID {
	var at []int
	if d.Identity != 0 {
		at = append(at, x.byIdentity[d.Identity]...)
	}
	at = x.confine(at, x.matchPrefixes(d))
	at = append(at, x.byEntity[d.Entity]...)
	if d.Entity == rule.World && d.Identity == 0 && len(d.Names) > 0 {
		for _, i := range x.named {
			if anyName(x.selectors[i].Names, d.Names) {
				at = append(at, i)
			}
		}
	}
	slices.Sort(at)
	at = slices.Compact(at)
	ids := make([]rule.ID, len(at))
	for i, p := range at {
		ids[i] = x.selectors[p].ID // positions are in the order of the IDs
	}
	return ids
}

// confine joins what a peer's identity and its prefixes match; of a selector
// whose identities are meant within its prefixes, both must.
func (x *Index) confine(identity, prefixes []int) []int {
	var at []int
	for _, i := range identity {
		if !x.selectors[i].Within || slices.Contains(prefixes, i) {
			at = append(at, i)
		}
	}
	for _, i := range prefixes {
		if !x.selectors[i].Within {
			at = append(at, i)
		}
	}
	return at
}

func (x *Index) matchPrefixes(d PeerDesc) []int {
	if !d.Prefix.IsValid() || len(x.byPrefix) == 0 {
		return nil
	}
	addr, length := d.Prefix.Addr(), d.Prefix.Bits()
	if addr.Is4In6() && length >= 96 {
		addr, length = addr.Unmap(), length-96
	}
	var at []int
	for bits := 0; bits <= length; bits++ {
		covering, err := addr.Prefix(bits)
		if err != nil {
			return nil
		}
		for _, use := range x.byPrefix[covering] {
			if x.prefixApplies(use, d) && !excepted(use.except, addr, length) {
				at = append(at, use.selector)
			}
		}
	}
	return at
}

// prefixApplies says whether prefixes of the selector may match such a peer.
func (x *Index) prefixApplies(use prefixUse, d PeerDesc) bool {
	s := &x.selectors[use.selector]
	switch {
	case d.Identity != 0 || d.Entity == rule.Endpoints:
		return s.PrefixesMatchPods
	case d.Entity == rule.Host || d.Entity == rule.RemoteNode:
		return s.PrefixesMatchNodes
	}
	return d.Entity == rule.World
}

func excepted(excepts []netip.Prefix, addr netip.Addr, length int) bool {
	return slices.ContainsFunc(excepts, func(e netip.Prefix) bool {
		return e.Bits() <= length && e.Contains(addr)
	})
}

// Prefixes are all prefixes and excepts of the policy's selectors, sorted: two
// addresses that the same longest of them covers are matched by the same
// prefixes. What no prefix covers is not in the list.
func (x *Index) Prefixes() []netip.Prefix {
	seen := make(map[netip.Prefix]bool, len(x.byPrefix))
	for p, uses := range x.byPrefix {
		seen[p] = true
		for _, use := range uses {
			for _, e := range use.except {
				seen[e] = true
			}
		}
	}
	prefixes := make([]netip.Prefix, 0, len(seen))
	for p := range seen {
		prefixes = append(prefixes, p)
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return prefixes
}

func anyName(patterns, names []string) bool {
	for _, p := range patterns {
		for _, n := range names {
			if nameMatches(p, n) {
				return true
			}
		}
	}
	return false
}

// nameMatches says whether a DNS name is meant by a pattern: a star stands for
// any number of characters of one label, a pattern of one star for every name,
// and a leading "**." for one or more labels.
func nameMatches(pattern, name string) bool {
	if pattern == "*" {
		return name != ""
	}
	for strings.HasPrefix(pattern, "**.") {
		pattern = pattern[len("**."):]
		label, tail, _ := strings.Cut(name, ".")
		if label == "" {
			return false
		}
		name = tail
		if !strings.HasPrefix(pattern, "**.") {
			// What is left of the pattern has as many labels as it matches.
			for strings.Count(name, ".") > strings.Count(pattern, ".") {
				_, name, _ = strings.Cut(name, ".")
			}
		}
	}
	for {
		label, patterns, more := strings.Cut(pattern, ".")
		part, tail, moreName := strings.Cut(name, ".")
		if more != moreName || !labelMatches(label, part) {
			return false
		}
		if !more {
			return true
		}
		pattern, name = patterns, tail
	}
}

// labelMatches matches one label, in time of the product of the lengths.
func labelMatches(pattern, label string) bool {
	star, mark := -1, 0
	p := 0
	for i := 0; i < len(label); {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && pattern[p] == label[i]:
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
