package plan

import (
	"context"
	"errors"
	"maps"
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
	Port     uint16 // destination port; ICMP: type
}

// Judgement is what is said of a Packet.
type Judgement struct {
	Verdict rule.Verdict
	Reason  Reason // why it is denied
	Peer    Peer
	Class   Class
	Row     Row
}

// Model holds an Image in memory and judges as the programs in the kernel do.
// It is a Target. Not safe for concurrent use.
type Model struct{ Image *Image }

// NewModel returns a model of maps that are empty.
func NewModel(word uint64) *Model { return &Model{NewImage(word)} }

// Judge judges a packet on the live side, without conntrack.
func (m *Model) Judge(p Packet) Judgement {
	im, side := m.Image, m.Image.Live()
	e, known := im.Endpoints[p.Ifindex]
	if !known {
		return Judgement{Reason: ReasonClosed}
	}
	if !slices.Contains(e.Addrs, p.Own) {
		if p.Ingress {
			return Judgement{Reason: ReasonNotForPod}
		}
		return Judgement{Reason: ReasonSpoofedSource}
	}
	row := e.Rows[side].Egress
	if p.Ingress {
		row = e.Rows[side].Ingress
	}
	if row == RowClosed {
		return Judgement{Reason: ReasonClosed}
	}
	if !p.Ingress {
		if x, is := im.Services[side][ServiceKey{p.Peer, p.Protocol, p.Port}]; is {
			return m.judgeService(row, p.Protocol, x)
		}
	}
	ref := m.resolve(p.Peer)
	if ref.Flags&flagsPending != 0 {
		return Judgement{Reason: ReasonPending, Peer: ref.Peer, Row: row}
	}
	return m.judgePeer(row, ref.Peer, p.Protocol, p.Port)
}

// resolve finds what an address stands for: itself, else its longest prefix.
func (m *Model) resolve(a netip.Addr) PeerRef {
	if ref, ok := m.Image.Addresses[a]; ok {
		return ref
	}
	wide := netip.AddrFrom16(a.As16())
	best, found := PeerRef{}, -1
	for p, ref := range m.Image.Prefixes {
		if w := widen(p); w.Bits() > found && w.Contains(wide) {
			best, found = ref, w.Bits()
		}
	}
	return best
}

func (m *Model) judgePeer(row Row, peer Peer, protocol uint8, port uint16) Judgement {
	im, side := m.Image, m.Image.Live()
	j := Judgement{Peer: peer, Class: im.Classes[side][peer], Row: row}
	if peer == NoPeer || j.Class == NoClass {
		j.Class, j.Reason = NoClass, ReasonPending
		return j
	}
	if row == RowOpen {
		j.Verdict = rule.Allowed
		return j
	}
	cell, ok := im.Cells[side][CellKey{row, j.Class}]
	if !ok {
		cell = im.Cells[side][CellKey{row, DefaultClass}]
	}
	start := uint32(protocol)<<16 | uint32(port)
	ranges := im.Ranges[side]
	i := sort.Search(int(cell.N), func(i int) bool { return ranges[cell.First+uint32(i)].Start > start })
	if i > 0 {
		j.Verdict = ranges[cell.First+uint32(i)-1].Verdict
	}
	if j.Verdict == rule.Denied {
		j.Reason = ReasonNoRule
	}
	return j
}

// judgeService allows what all backends allow.
func (m *Model) judgeService(row Row, protocol uint8, x Extent) Judgement {
	if x.N == 0 {
		return Judgement{Reason: ReasonNoBackend, Row: row}
	}
	var all Judgement
	for i := range x.N {
		b := m.Image.Backends[m.Image.Live()][x.First+i]
		j := m.judgePeer(row, b.Peer, protocol, b.Port)
		if i == 0 {
			all = j
			continue
		}
		all = m.bothBackends(all, j)
	}
	return all
}

// bothBackends is the verdict that two backends' verdicts permit together.
func (m *Model) bothBackends(a, b Judgement) Judgement {
	switch {
	case a.Verdict == b.Verdict:
		return a
	case a.Verdict == rule.Denied || b.Verdict == rule.Denied:
		return Judgement{Reason: ReasonBackendsDiffer, Row: a.Row}
	case a.Verdict == rule.Allowed:
		return b
	case b.Verdict == rule.Allowed:
		return a
	}
	pair := RuleSetPair{min(a.Verdict, b.Verdict), max(a.Verdict, b.Verdict)}
	v := m.Image.Pairs[pair]
	if v < rule.FirstRuleSet {
		return Judgement{Reason: ReasonBackendsDiffer, Row: a.Row}
	}
	a.Verdict = v
	return a
}

// Read returns a copy of the image.
func (m *Model) Read(context.Context) (*Image, error) {
	im := *m.Image
	im.Endpoints = maps.Clone(im.Endpoints)
	im.Addresses = maps.Clone(im.Addresses)
	im.Prefixes = maps.Clone(im.Prefixes)
	im.Pairs = maps.Clone(im.Pairs)
	for side := range 2 {
		im.Classes[side] = maps.Clone(im.Classes[side])
		im.Cells[side] = maps.Clone(im.Cells[side])
		im.Ranges[side] = maps.Clone(im.Ranges[side])
		im.Services[side] = maps.Clone(im.Services[side])
		im.Backends[side] = maps.Clone(im.Backends[side])
	}
	return &im, nil
}

// WriteEndpoints implements Target, as do the other methods below.
func (m *Model) WriteEndpoints(ws []EndpointWrite) error {
	for _, w := range ws {
		put(m.Image.Endpoints, w.Ifindex, w.Value, w.Delete)
	}
	return nil
}

func (m *Model) WriteAddresses(ws []AddressWrite) error {
	for _, w := range ws {
		put(m.Image.Addresses, w.Addr, w.Value, w.Delete)
	}
	return nil
}

func (m *Model) WritePrefixes(ws []PrefixWrite) error {
	for _, w := range ws {
		put(m.Image.Prefixes, w.Prefix, w.Value, w.Delete)
	}
	return nil
}

func (m *Model) WriteClasses(ws []ClassWrite) error {
	for _, w := range ws {
		put(m.Image.Classes[w.Side], w.Peer, w.Class, w.Class == NoClass)
	}
	return nil
}

func (m *Model) WriteCells(ws []CellWrite) error {
	for _, w := range ws {
		put(m.Image.Cells[w.Side], w.Key, w.Value, w.Delete)
	}
	return nil
}

func (m *Model) WriteRanges(ws []RangeWrite) error {
	for _, w := range ws {
		m.Image.Ranges[w.Side][w.Index] = w.Value
	}
	return nil
}

func (m *Model) WriteServices(ws []ServiceWrite) error {
	for _, w := range ws {
		put(m.Image.Services[w.Side], w.Key, w.Value, w.Delete)
	}
	return nil
}

func (m *Model) WriteBackends(ws []BackendWrite) error {
	for _, w := range ws {
		m.Image.Backends[w.Side][w.Index] = w.Value
	}
	return nil
}

func (m *Model) WritePairs(ws []PairWrite) error {
	for _, w := range ws {
		put(m.Image.Pairs, w.Pair, w.Value, w.Delete)
	}
	return nil
}

// Flip moves the word, which never goes back.
func (m *Model) Flip(word uint64) error {
	if word < m.Image.Word {
		return errors.New("the word went back")
	}
	m.Image.Word = word
	return nil
}

func (m *Model) Wait(context.Context) error { return nil }

func put[K comparable, V any](m map[K]V, k K, v V, gone bool) {
	if gone {
		delete(m, k)
		return
	}
	m[k] = v
}
