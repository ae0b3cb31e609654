package merge

import (
	"slices"
	"sort"

	"weir.dev/weir/engine/rule"
)

// lastKey is the last of all packets' keys: protocol<<16 | port.
const lastKey = 255<<16 | 0xffff

// Key is where a packet falls in a port map. Of a protocol without ports the
// port is ignored; of ICMP it is the type.
func Key(protocol uint8, port uint16) uint32 {
	if !hasPorts(protocol) {
		port = 0
	}
	return uint32(protocol)<<16 | uint32(port)
}

func hasPorts(protocol uint8) bool {
	switch protocol {
	case rule.TCP, rule.UDP, rule.SCTP, rule.ICMP, rule.ICMPv6:
		return true
	}
	return false
}

// Verdict is what m says of packets of a protocol to a port. An empty map denies.
func (m PortMap) Verdict(protocol uint8, port uint16) PortVerdict {
	key := Key(protocol, port)
	i := sort.Search(len(m), func(i int) bool { return m[i].Start > key })
	if i == 0 {
		return PortVerdict{}
	}
	return m[i-1].Verdict
}

// At is the range that packets of a protocol to a port fall in.
func (a Attribution) At(protocol uint8, port uint16) AttributedRange {
	key := Key(protocol, port)
	i := sort.Search(len(a), func(i int) bool { return a[i].Start > key })
	if i == 0 {
		return AttributedRange{}
	}
	return a[i-1]
}

// same says that nothing but the start differs.
func (r AttributedRange) same(o AttributedRange) bool {
	return r.Rule == o.Rule && slices.Equal(r.Isolated, o.Isolated)
}

// span is a half-open interval of keys.
type span struct{ lo, end uint32 }

// compile turns a rule's ports into disjoint spans, ascending, none adjacent.
func compile(r rule.Rule) compiled {
	var spans []span
	for _, p := range r.Ports {
		if s, ok := newSpan(p); ok {
			spans = append(spans, s)
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return int(int64(a.lo) - int64(b.lo)) })
	joined := spans[:0]
	for _, s := range spans {
		if n := len(joined); n > 0 && s.lo <= joined[n-1].end {
			joined[n-1].end = max(joined[n-1].end, s.end)
			continue
		}
		joined = append(joined, s)
	}
	return compiled{Rule: r, spans: joined}
}

// newSpan widens what has no further keys, so that equal meanings are equal
// spans: a protocol without ports is wholly meant or not at all, and an ICMP
// type is one byte.
func newSpan(p rule.PortRange) (span, bool) {
	if p.Any {
		return span{0, lastKey + 1}, true
	}
	lo, hi := uint32(p.Lo), uint32(p.Hi)
	switch {
	case !hasPorts(p.Protocol) && lo > 0:
		return span{}, false
	case !hasPorts(p.Protocol):
		hi = 0xffff
	case (p.Protocol == rule.ICMP || p.Protocol == rule.ICMPv6) && hi >= 0xff:
		hi = 0xffff
	}
	base := uint32(p.Protocol) << 16
	return span{base + lo, base + hi + 1}, true
}
