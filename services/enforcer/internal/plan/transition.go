package plan

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"

	"weir.dev/weir/engine/rule"
)

// transition is one way from a state to another, in the making.
type transition struct {
	from, to   *State
	limits     Limits
	word       uint64
	live, rest uint8

	endpoints []change[uint32, Endpoint]
	classes   []change[Peer, Class]
	cells     []change[CellKey, PortMap]
	services  []change[ServiceKey, []Backend]
	pairs     []change[RuleSetPair, rule.Verdict]
	refs      []refChange // longest first

	reachFrom, reachTo *reach // what packets can reach in from and in to, once asked
	compact            bool   // every cell and service gets a new place

	cellAt    map[CellKey]Extent
	serviceAt map[ServiceKey]Extent
	newRanges []RangeWrite // without side
	newBacks  []BackendWrite
}

func (t *transition) compare() {
	t.endpoints = diffMapsFunc(t.from.Endpoints, t.to.Endpoints, Endpoint.equal, cmp.Compare[uint32])
	t.classes = diffMaps(t.from.Classes, t.to.Classes, cmp.Compare[Peer])
	t.cells = diffMapsFunc(t.from.Cells, t.to.Cells, slices.Equal[PortMap], compareCells)
	t.services = diffMapsFunc(t.from.Services, t.to.Services, slices.Equal[[]Backend], compareServices)
	t.pairs = diffMaps(t.from.Pairs, t.to.Pairs, comparePairs)
	t.refs = diffRefs(t.from, t.to)
}

// seen is what packets can reach in from, willBe what in to. Few changes ask,
// and the answer costs a look at every address.
func (t *transition) seen() *reach   { return reachOf(&t.reachFrom, t.from) }
func (t *transition) willBe() *reach { return reachOf(&t.reachTo, t.to) }

func reachOf(r **reach, s *State) *reach {
	if *r == nil {
		*r = newReach(s)
	}
	return *r
}

func (e Endpoint) equal(o Endpoint) bool {
	return e.ID == o.ID && e.Egress == o.Egress && e.Ingress == o.Ingress &&
		e.PodMAC == o.PodMAC && e.HostMAC == o.HostMAC && slices.Equal(e.Addrs, o.Addrs)
}

func (t *transition) empty() bool {
	return len(t.endpoints)+len(t.classes)+len(t.cells)+len(t.services)+len(t.pairs)+len(t.refs) == 0
}

// loud tells whether a packet could see the sided writes, or there is no room
// for new cells beside old ones: then they go to the resting side first, and the
// word moves.
func (t *transition) loud() bool {
	return t.compact || t.crowded() || len(t.services) > 0 ||
		slices.ContainsFunc(t.endpoints, t.endpointLoud) ||
		slices.ContainsFunc(t.classes, func(c change[Peer, Class]) bool { return t.classWhen(c) == loud }) ||
		slices.ContainsFunc(t.cells, func(c change[CellKey, PortMap]) bool { return t.cellWhen(c) == loud })
}

// crowded: the map does not hold the cells of both states, on both sides.
func (t *transition) crowded() bool {
	return 2*(len(t.to.Cells)+len(goneOf(t.cells))) > t.limits.Cells
}

// endpointLoud: the same endpoint has other rows. A closed one denies every
// packet until the one write that opens it, and has no flows to judge anew.
func (t *transition) endpointLoud(c change[uint32, Endpoint]) bool {
	was, there := t.from.Endpoints[c.key]
	if !there || c.gone || was.ID != c.value.ID {
		return false
	}
	return was.Egress != c.value.Egress && was.Egress != RowClosed ||
		was.Ingress != c.value.Ingress && was.Ingress != RowClosed
}

// when a sided write may be done in place.
type when uint8

const (
	loud   when = iota // never: a packet can see it
	before             // before addresses and endpoints of to are written
	after              // when no packet can see it any more
)

func (t *transition) classWhen(c change[Peer, Class]) when {
	switch {
	case c.gone && !t.willBe().peers[c.key]:
		return after
	case !t.seen().peers[c.key]:
		return before
	case !t.willBe().peers[c.key]:
		return after
	}
	return loud
}

func (t *transition) cellWhen(c change[CellKey, PortMap]) when {
	seen, willBe := t.seen().cell(c.key), t.willBe().cell(c.key)
	switch {
	case c.gone && !willBe:
		return after
	case !seen:
		return before
	case !willBe:
		return after
	}
	return loud
}

// reach is what packets can reach in a state.
type reach struct {
	peers   map[Peer]bool
	classes map[Class]bool
	rows    map[Row]bool
}

func newReach(s *State) *reach {
	r := &reach{peers: map[Peer]bool{}, classes: map[Class]bool{DefaultClass: true}, rows: map[Row]bool{}}
	for _, ref := range s.Addresses {
		r.peers[ref.Peer] = true
	}
	for _, ref := range s.Prefixes {
		r.peers[ref.Peer] = true
	}
	for _, backends := range s.Services {
		for _, b := range backends {
			r.peers[b.Peer] = true
		}
	}
	for p := range r.peers {
		r.classes[s.Classes[p]] = true
	}
	for _, e := range s.Endpoints {
		r.rows[e.Egress], r.rows[e.Ingress] = true, true
	}
	return r
}

func (r *reach) cell(k CellKey) bool { return r.rows[k.Row] && r.classes[k.Class] }

// place finds a place for each new or changed port map and list of backends.
func (t *transition) place(ranges *extents[Range], backends *extents[Backend]) error {
	t.cellAt, t.serviceAt = map[CellKey]Extent{}, map[ServiceKey]Extent{}
	t.newRanges, t.newBacks = nil, nil
	for _, c := range t.cells {
		at, isNew, err := ranges.take(c.value)
		if err != nil {
			return err
		}
		t.cellAt[c.key] = at
		for i := range at.N {
			if isNew {
				t.newRanges = append(t.newRanges, RangeWrite{Index: at.First + i, Value: c.value[i]})
			}
		}
	}
	for _, c := range t.services {
		list := c.value
		if len(list) > MaxBackends {
			list = nil // denied
		}
		at, isNew, err := backends.take(list)
		if err != nil {
			return err
		}
		t.serviceAt[c.key] = at
		for i := range at.N {
			if isNew {
				t.newBacks = append(t.newBacks, BackendWrite{Index: at.First + i, Value: list[i]})
			}
		}
	}
	return nil
}

// placeAnew makes every cell and every service a changed one.
func (t *transition) placeAnew() {
	t.compact = true
	t.cells = append(allOf(t.to.Cells, compareCells), goneOf(t.cells)...)
	t.services = append(allOf(t.to.Services, compareServices), goneOf(t.services)...)
}

func allOf[K comparable, V any](m map[K]V, compare func(a, b K) int) []change[K, V] {
	var all []change[K, V]
	for _, k := range slices.SortedFunc(maps.Keys(m), compare) {
		all = append(all, change[K, V]{key: k, value: m[k]})
	}
	return all
}

func goneOf[K comparable, V any](changes []change[K, V]) []change[K, V] {
	return slices.DeleteFunc(slices.Clone(changes), func(c change[K, V]) bool { return !c.gone })
}

// giveBack gives back the places of what from has and to has not. They are not
// taken before the next plan, when the old side has been brought up.
func (t *transition) giveBack(ranges *extents[Range], backends *extents[Backend]) {
	for _, c := range t.cells {
		ranges.give(t.from.Cells[c.key])
	}
	for _, c := range t.services {
		if list := t.from.Services[c.key]; len(list) <= MaxBackends {
			backends.give(list)
		}
	}
}

func encodeRanges(list []Range) string {
	b := make([]byte, 0, 8*len(list))
	for _, r := range list {
		b = binary.BigEndian.AppendUint32(b, r.Start)
		b = binary.BigEndian.AppendUint32(b, uint32(r.Verdict))
	}
	return string(b)
}

func encodeBackends(list []Backend) string {
	b := make([]byte, 0, 6*len(list))
	for _, r := range list {
		b = binary.BigEndian.AppendUint32(b, uint32(r.Peer))
		b = binary.BigEndian.AppendUint16(b, r.Port)
	}
	return string(b)
}
