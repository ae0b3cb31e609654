// Package plantest draws states, and the packets that tell them apart, for the
// tests of whatever writes or judges by a plan.State. For tests only.
package plantest

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"pgregory.net/rapid"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// World is what states are made of: few of everything, so that they collide.
type World struct {
	Ifindexes []uint32
	Own       []netip.Addr // of endpoints
	Addrs     []netip.Addr // of peers
	Services  []netip.Addr
	Strangers []netip.Addr // in no state
	Prefixes  []netip.Prefix
	Ports     []uint16
	PortMaps  []plan.PortMap
}

// NewWorld returns a world of endpoints at these interfaces.
func NewWorld(ifindexes ...uint32) *World {
	const tcp = uint32(rule.TCP) << 16
	return &World{
		Ifindexes: ifindexes,
		Own:       addrs("10.0.7.1", "10.0.7.2", "10.0.7.3"),
		Addrs:     addrs("10.0.0.1", "10.0.0.2", "10.0.1.1", "10.9.9.9", "1.1.1.1", "fd00::1", "fd00::2"),
		Services:  addrs("10.0.0.2", "10.96.0.1"),
		Strangers: addrs("10.0.200.1", "fd99::1"),
		Prefixes:  prefixes("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/24", "10.0.0.1/32", "::/0", "fd00::/64"),
		Ports:     []uint16{80, 81, 443},
		PortMaps: []plan.PortMap{
			nil,
			{{Start: 0, Verdict: rule.Denied}},
			{{Start: 0, Verdict: rule.Allowed}},
			{{Start: 0}, {Start: tcp | 80, Verdict: rule.Allowed}, {Start: tcp | 81}},
			{{Start: 0}, {Start: tcp | 80, Verdict: 2}, {Start: tcp | 81, Verdict: rule.Allowed}, {Start: tcp | 82}},
			{{Start: 0}, {Start: tcp | 80, Verdict: 3}, {Start: tcp | 443, Verdict: 2}, {Start: tcp | 444}},
			{{Start: 0, Verdict: 4}},
		},
	}
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// Limits are of maps that hold any two states of a World.
func Limits() plan.Limits {
	return plan.Limits{
		Endpoints: 16, Addresses: 64, Prefixes: 64, Peers: 256, Cells: 256, Ranges: 128, Services: 64, Backends: 64, Pairs: 64,
	}
}

// peers and classes that states use.
const (
	lastPeer  = plan.Peer(6)
	lastClass = plan.Class(3)
	lastRow   = plan.FirstRow + 2
)

// State draws a state.
func (w *World) State(t *rapid.T) plan.State {
	s := plan.State{
		Endpoints: map[uint32]plan.Endpoint{}, Addresses: map[netip.Addr]plan.PeerRef{}, Prefixes: map[netip.Prefix]plan.PeerRef{},
		Classes: map[plan.Peer]plan.Class{}, Cells: map[plan.CellKey]plan.PortMap{}, Services: map[plan.ServiceKey][]plan.Backend{},
		// A pair follows from its rule sets' content, so all states agree on it.
		Pairs: map[plan.RuleSetPair]rule.Verdict{{A: 2, B: 3}: 5, {A: 2, B: 4}: 6, {A: 3, B: 4}: 7, {A: 4, B: 5}: 8},
	}
	for _, a := range w.Addrs {
		if rapid.Bool().Draw(t, "address") {
			s.Addresses[a] = ref(t)
		}
	}
	for _, p := range w.Prefixes {
		if rapid.Bool().Draw(t, "prefix") {
			s.Prefixes[p] = ref(t)
		}
	}
	for p := plan.Peer(1); p <= lastPeer; p++ {
		if c := plan.Class(rapid.Uint32Range(0, uint32(lastClass)).Draw(t, "class")); c != plan.NoClass {
			s.Classes[p] = c
		}
	}
	for r := plan.FirstRow; r <= lastRow; r++ {
		for _, c := range []plan.Class{1, 2, lastClass, plan.DefaultClass} {
			if rapid.Bool().Draw(t, "cell") {
				s.Cells[plan.CellKey{Row: r, Class: c}] = rapid.SampledFrom(w.PortMaps).Draw(t, "port map")
			}
		}
	}
	for _, ifindex := range w.Ifindexes {
		if rapid.IntRange(0, 3).Draw(t, "endpoint") > 0 {
			s.Endpoints[ifindex] = w.endpoint(t, ifindex)
		}
	}
	for _, a := range w.Services {
		if rapid.Bool().Draw(t, "service") {
			s.Services[plan.ServiceKey{Addr: a, Protocol: rule.TCP, Port: 80}] = w.backends(t)
		}
	}
	if rapid.Bool().Draw(t, "unused pair") {
		s.Pairs[plan.RuleSetPair{A: 20, B: 21}] = 22
	}
	return s
}

func ref(t *rapid.T) plan.PeerRef {
	flags := rapid.SampledFrom([]plan.Flags{0, 0, 0, 0, plan.FlagPending, plan.FlagCluster, plan.FlagRemoteNode}).Draw(t, "flags")
	return plan.PeerRef{Peer: plan.Peer(rapid.Uint32Range(0, uint32(lastPeer)).Draw(t, "peer")), Flags: flags}
}

func (w *World) endpoint(t *rapid.T, ifindex uint32) plan.Endpoint {
	rows := rapid.SampledFrom([]plan.Row{plan.RowClosed, plan.RowOpen, plan.FirstRow, plan.FirstRow + 1, lastRow})
	e := plan.Endpoint{
		ID:     10*ifindex + rapid.Uint32Range(0, 1).Draw(t, "id"),
		Egress: rows.Draw(t, "egress"), Ingress: rows.Draw(t, "ingress"),
	}
	for _, a := range w.Own {
		if rapid.IntRange(0, 3).Draw(t, "own") > 0 {
			e.Addrs = append(e.Addrs, a)
		}
	}
	return e
}

func (w *World) backends(t *rapid.T) []plan.Backend {
	var list []plan.Backend
	for p := plan.NoPeer; p <= lastPeer; p++ {
		if rapid.IntRange(0, 2).Draw(t, "backend") == 0 {
			list = append(list, plan.Backend{Peer: p, Port: rapid.SampledFrom(w.Ports).Draw(t, "port")})
		}
	}
	return list
}

// Change draws a state that has much in common with s.
func (w *World) Change(t *rapid.T, s plan.State) plan.State {
	other := w.State(t)
	next := plan.State{
		Addresses: mix(t, s.Addresses, other.Addresses), Prefixes: mix(t, s.Prefixes, other.Prefixes),
		Endpoints: mix(t, s.Endpoints, other.Endpoints), Classes: mix(t, s.Classes, other.Classes),
		Cells: s.Cells, Services: s.Services, Pairs: other.Pairs,
	}
	if rapid.Bool().Draw(t, "cells change") {
		next.Cells = mix(t, s.Cells, other.Cells)
	}
	if rapid.Bool().Draw(t, "services change") {
		next.Services = mix(t, s.Services, other.Services)
	}
	return next
}

// mix takes most keys from a, the others from b.
func mix[K comparable, V any](t *rapid.T, a, b map[K]V) map[K]V {
	keys := maps.Clone(a)
	maps.Copy(keys, b)
	order := slices.SortedFunc(maps.Keys(keys), func(x, y K) int { return cmp.Compare(fmt.Sprint(x), fmt.Sprint(y)) })
	mixed := map[K]V{}
	for _, k := range order {
		from := a
		if rapid.IntRange(0, 2).Draw(t, "new") == 0 {
			from = b
		}
		if v, ok := from[k]; ok {
			mixed[k] = v
		}
	}
	return mixed
}

// Packets are one of each kind that states tell apart.
func (w *World) Packets() []plan.Packet {
	var list []plan.Packet
	for _, ifindex := range w.Ifindexes {
		for _, own := range w.Own {
			for _, peer := range slices.Concat(w.Addrs, w.Services, w.Strangers) {
				for _, port := range w.Ports {
					for _, ingress := range []bool{false, true} {
						list = append(list, plan.Packet{Ifindex: ifindex, Ingress: ingress, Own: own, Peer: peer, Protocol: rule.TCP, Port: port})
					}
				}
			}
		}
	}
	return list
}

// Replaced tells whether an interface is another endpoint's in b than in a:
// between them it is nobody's for a moment, and denied.
func Replaced(a, b plan.State, ifindex uint32) bool {
	return a.Endpoints[ifindex].ID != b.Endpoints[ifindex].ID
}
