package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"weir.dev/weir/engine/rule"
)

// Image is what the maps hold, side by side.
type Image struct {
	Word      uint64 // its low bit is the live side
	Endpoints map[uint32]EndpointImage
	Addresses map[netip.Addr]PeerRef
	Prefixes  map[netip.Prefix]PeerRef
	Classes   [2]map[Peer]Class
	Cells     [2]map[CellKey]Extent
	Ranges    [2]map[uint32]Range // what is not there is zero
	Services  [2]map[ServiceKey]Extent
	Backends  [2]map[uint32]Backend
	Pairs     map[RuleSetPair]rule.Verdict
}

// NewImage returns the image of empty maps.
func NewImage(word uint64) *Image {
	im := &Image{
		Word:      word,
		Endpoints: map[uint32]EndpointImage{},
		Addresses: map[netip.Addr]PeerRef{},
		Prefixes:  map[netip.Prefix]PeerRef{},
		Pairs:     map[RuleSetPair]rule.Verdict{},
	}
	for side := range 2 {
		im.Classes[side] = map[Peer]Class{}
		im.Cells[side] = map[CellKey]Extent{}
		im.Ranges[side] = map[uint32]Range{}
		im.Services[side] = map[ServiceKey]Extent{}
		im.Backends[side] = map[uint32]Backend{}
	}
	return im
}

// Live returns the live side.
func (im *Image) Live() uint8 { return uint8(im.Word & 1) }

// State returns what the live side says.
func (im *Image) State() State {
	live := im.Live()
	s := State{
		Endpoints: make(map[uint32]Endpoint, len(im.Endpoints)),
		Addresses: maps.Clone(im.Addresses),
		Prefixes:  maps.Clone(im.Prefixes),
		Classes:   maps.Clone(im.Classes[live]),
		Cells:     make(map[CellKey]PortMap, len(im.Cells[live])),
		Services:  make(map[ServiceKey][]Backend, len(im.Services[live])),
		Pairs:     maps.Clone(im.Pairs),
	}
	for ifindex, e := range im.Endpoints {
		s.Endpoints[ifindex] = Endpoint{
			ID: e.ID, Egress: e.Rows[live].Egress, Ingress: e.Rows[live].Ingress,
			PodMAC: e.PodMAC, HostMAC: e.HostMAC, Addrs: e.Addrs,
		}
	}
	for key, x := range im.Cells[live] {
		s.Cells[key] = entries[Range](im.Ranges[live], x)
	}
	for key, x := range im.Services[live] {
		s.Services[key] = entries[Backend](im.Backends[live], x)
	}
	return s
}

func entries[T any](from map[uint32]T, x Extent) []T {
	list := make([]T, 0, x.N)
	for i := range x.N {
		list = append(list, from[x.First+i])
	}
	return list
}

// restore returns the writes that make the resting side say what the live side
// says, at the same places. They end with a move of the word: whoever wrote
// before may have changed what an address means and not come to move it.
func (im *Image) restore() []Op {
	live := im.Live()
	rest := 1 - live
	ops := []Op{Wait{}}
	for _, i := range extentIndexes(im.Cells[live]) {
		if v := im.Ranges[live][i]; im.Ranges[rest][i] != v {
			ops = append(ops, RangeWrite{Side: rest, Index: i, Value: v})
		}
	}
	for _, i := range extentIndexes(im.Services[live]) {
		if v := im.Backends[live][i]; im.Backends[rest][i] != v {
			ops = append(ops, BackendWrite{Side: rest, Index: i, Value: v})
		}
	}
	for _, d := range diffMaps(im.Cells[rest], im.Cells[live], compareCells) {
		ops = append(ops, CellWrite{Side: rest, Key: d.key, Value: d.value, Delete: d.gone})
	}
	for _, d := range diffMaps(im.Services[rest], im.Services[live], compareServices) {
		ops = append(ops, ServiceWrite{Side: rest, Key: d.key, Value: d.value, Delete: d.gone})
	}
	for _, d := range diffMaps(im.Classes[rest], im.Classes[live], cmp.Compare[Peer]) {
		ops = append(ops, ClassWrite{Side: rest, Peer: d.key, Class: d.value})
	}
	for _, ifindex := range slices.Sorted(maps.Keys(im.Endpoints)) {
		e := im.Endpoints[ifindex]
		if e.Rows[rest] != e.Rows[live] {
			e.Rows[rest] = e.Rows[live]
			ops = append(ops, EndpointWrite{Ifindex: ifindex, Value: e})
		}
	}
	return append(ops, Flip{Word: im.Word + 1}, Wait{})
}

// extentIndexes lists every index that the extents cover, sorted, once each.
func extentIndexes[K comparable](m map[K]Extent) []uint32 {
	seen := map[uint32]struct{}{}
	for _, x := range m {
		for i := range x.N {
			seen[x.First+i] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// change is one key whose value differs. A gone key has the zero value.
type change[K, V any] struct {
	key   K
	value V
	gone  bool
}

func diffMaps[K, V comparable](from, to map[K]V, compare func(a, b K) int) []change[K, V] {
	return diffMapsFunc(from, to, func(a, b V) bool { return a == b }, compare)
}

// diffMapsFunc lists what takes from to to, in the order of the keys.
func diffMapsFunc[K comparable, V any](from, to map[K]V, equal func(a, b V) bool, compare func(a, b K) int) []change[K, V] {
	var changes []change[K, V]
	stay := 0
	for k, v := range to {
		was, there := from[k]
		if there {
			stay++
		}
		if !there || !equal(was, v) {
			changes = append(changes, change[K, V]{key: k, value: v})
		}
	}
	if stay < len(from) {
		for k := range from {
			if _, stays := to[k]; !stays {
				changes = append(changes, change[K, V]{key: k, gone: true})
			}
		}
	}
	slices.SortFunc(changes, func(a, b change[K, V]) int { return compare(a.key, b.key) })
	return changes
}

func compareCells(a, b CellKey) int {
	return cmp.Or(cmp.Compare(a.Row, b.Row), cmp.Compare(a.Class, b.Class))
}

func compareServices(a, b ServiceKey) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

func comparePairs(a, b RuleSetPair) int {
	return cmp.Or(cmp.Compare(a.A, b.A), cmp.Compare(a.B, b.B))
}
