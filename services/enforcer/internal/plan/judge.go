package plan

import (
	"net/netip"
	"slices"
	"sort"

	"weir.dev/weir/engine/rule"
)

// Why a Packet is denied, as far as the judgement itself decides. Names and
// numbers are those of enum weir_reason.
type Reason uint8

const (
	ReasonNone           Reason = 0
	ReasonNoRule         Reason = 1 // the cell says deny; user space tells which rule
	ReasonPending        Reason = 3
	ReasonClosed         Reason = 4
	ReasonSpoofedSource  Reason = 5
	ReasonNotForPod      Reason = 6
	ReasonNoBackend      Reason = 12
	ReasonBackendsDiffer Reason = 13
)

// Packet is what a judgement asks about: the first of a flow, as one endpoint
// sees it in one direction.
type Packet struct {
	Ifindex  uint32
	Ingress  bool       // judged at the endpoint's ingress; else its egress
	Own      netip.Addr // the endpoint's end
	Peer     netip.Addr // the other end
	Protocol uint8
	Port     uint16 // the responder's; ICMP: type
}

// Judgement is what is said of a Packet.
type Judgement struct {
	Verdict rule.Verdict
	Reason  Reason // why it is denied
	Peer    Peer
	Class   Class
	Row     Row
}

// view is what a judgement looks up; what is not there is the zero value.
type view interface {
	endpoint(ifindex uint32) (addrs []netip.Addr, rows Rows, ok bool)
	service(ServiceKey) (backends []Backend, ok bool)
	resolve(netip.Addr) PeerRef
	class(Peer) Class
	cell(CellKey) (m PortMap, ok bool)
	pair(RuleSetPair) rule.Verdict
}

// judge judges a packet without conntrack, as the programs do. What they ask of
// the kernel (is a packet from an address of this node masqueraded?) it does not
// know: such an address is the node.
func judge(v view, p Packet) Judgement {
	addrs, rows, known := v.endpoint(p.Ifindex)
	if !known {
		return Judgement{Reason: ReasonClosed}
	}
	if !slices.Contains(addrs, p.Own) {
		if p.Ingress {
			return Judgement{Reason: ReasonNotForPod}
		}
		return Judgement{Reason: ReasonSpoofedSource}
	}
	row := rows.Egress
	if p.Ingress {
		row = rows.Ingress
	}
	if row == RowClosed {
		return Judgement{Reason: ReasonClosed}
	}
	if !p.Ingress {
		if backends, is := v.service(ServiceKey{p.Peer, p.Protocol, p.Port}); is {
			return judgeService(v, row, p.Protocol, backends)
		}
	}
	ref := v.resolve(p.Peer)
	if ref.Flags&flagsPending != 0 {
		return Judgement{Reason: ReasonPending, Peer: ref.Peer, Row: row}
	}
	return judgePeer(v, row, ref.Peer, p.Protocol, p.Port)
}

func judgePeer(v view, row Row, peer Peer, protocol uint8, port uint16) Judgement {
	j := Judgement{Peer: peer, Row: row}
	if peer != NoPeer {
		j.Class = v.class(peer)
	}
	if j.Class == NoClass {
		j.Reason = ReasonPending
		return j
	}
	if row == RowOpen {
		j.Verdict = rule.Allowed
		return j
	}
	m, ok := v.cell(CellKey{row, j.Class})
	if !ok {
		m, _ = v.cell(CellKey{row, DefaultClass})
	}
	start := uint32(protocol)<<16 | uint32(port)
	if i := sort.Search(len(m), func(i int) bool { return m[i].Start > start }); i > 0 {
		j.Verdict = m[i-1].Verdict
	}
	if j.Verdict == rule.Denied {
		j.Reason = ReasonNoRule
	}
	return j
}

// judgeService allows what all backends allow. An endpoint that no policy
// selects does not lose a service for having too many backends, or none.
func judgeService(v view, row Row, protocol uint8, backends []Backend) Judgement {
	if row == RowOpen {
		return Judgement{Verdict: rule.Allowed, Row: row}
	}
	if len(backends) == 0 || len(backends) > MaxBackends {
		return Judgement{Reason: ReasonNoBackend, Row: row}
	}
	all := judgePeer(v, row, backends[0].Peer, protocol, backends[0].Port)
	for _, b := range backends[1:] {
		all = bothBackends(v, all, judgePeer(v, row, b.Peer, protocol, b.Port))
	}
	return all
}

// bothBackends is the verdict that two backends' verdicts permit together.
func bothBackends(v view, a, b Judgement) Judgement {
	switch {
	case a.Reason == ReasonPending:
		return a
	case b.Reason == ReasonPending:
		return b
	case a.Verdict == b.Verdict:
		return a
	case a.Verdict == rule.Denied || b.Verdict == rule.Denied:
		return Judgement{Reason: ReasonBackendsDiffer, Row: a.Row}
	case a.Verdict == rule.Allowed:
		return b
	case b.Verdict == rule.Allowed:
		return a
	}
	a.Verdict = v.pair(RuleSetPair{min(a.Verdict, b.Verdict), max(a.Verdict, b.Verdict)})
	if a.Verdict < rule.FirstRuleSet {
		return Judgement{Reason: ReasonBackendsDiffer, Row: a.Row}
	}
	return a
}

// Judge judges by a State. It may be used by several goroutines.
type Judge struct {
	state *State
	cover cover
}

// NewJudge returns a Judge by s, which must not change while it is used.
func NewJudge(s State) *Judge { return &Judge{&s, newCover(s.Prefixes)} }

// Judge judges a packet.
func (j *Judge) Judge(p Packet) Judgement { return judge(j, p) }

// Flags are what is known of an address, besides its peer.
func (j *Judge) Flags(a netip.Addr) Flags { return j.resolve(a).Flags }

func (j *Judge) endpoint(ifindex uint32) ([]netip.Addr, Rows, bool) {
	e, ok := j.state.Endpoints[ifindex]
	return e.Addrs, rowsOf(e), ok
}

func (j *Judge) service(k ServiceKey) ([]Backend, bool) {
	backends, ok := j.state.Services[k]
	return backends, ok
}

func (j *Judge) resolve(a netip.Addr) PeerRef {
	if ref, ok := j.state.Addresses[a]; ok {
		return ref
	}
	return j.cover.above(refKey{widen(netip.PrefixFrom(a, a.BitLen())), exact})
}

func (j *Judge) class(p Peer) Class { return j.state.Classes[p] }

func (j *Judge) cell(k CellKey) (PortMap, bool) {
	m, ok := j.state.Cells[k]
	return m, ok
}

func (j *Judge) pair(k RuleSetPair) rule.Verdict { return j.state.Pairs[k] }
