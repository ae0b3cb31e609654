package plan

import (
	"net/netip"
	"slices"

	"pgregory.net/rapid"
	"weir.dev/weir/engine/rule"
)

var testLimits = Limits{
	Endpoints: 16, Addresses: 64, Prefixes: 64, Peers: 256, Cells: 256, Ranges: 128, Services: 64, Backends: 64, Pairs: 64,
}

var (
	testAddrs = []netip.Addr{
		netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.1.1"),
		netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("1.1.1.1"),
		netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2"),
	}
	testPrefixes = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/16"),
		netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("10.0.0.1/32"),
		netip.MustParsePrefix("::/0"), netip.MustParsePrefix("fd00::/64"),
	}
	testOwn      = []netip.Addr{netip.MustParseAddr("10.0.7.1"), netip.MustParseAddr("10.0.7.2"), netip.MustParseAddr("10.0.7.3")}
	testPorts    = []uint16{80, 81, 443}
	testPortMaps = []PortMap{
		nil,
		{{0, rule.Denied}},
		{{0, rule.Allowed}},
		{{0, rule.Denied}, {6<<16 | 80, rule.Allowed}, {6<<16 | 81, rule.Denied}},
		{{0, rule.Denied}, {6<<16 | 80, 2}, {6<<16 | 81, rule.Allowed}, {6<<16 | 82, rule.Denied}},
		{{0, rule.Denied}, {6<<16 | 80, 3}, {6<<16 | 443, 2}, {6<<16 | 444, rule.Denied}},
		{{0, 4}},
	}
	testPairs = map[RuleSetPair]rule.Verdict{{2, 3}: 5, {2, 4}: 6, {3, 4}: 7, {4, 5}: 8}
)

func drawRef(t *rapid.T) PeerRef {
	flags := rapid.SampledFrom([]Flags{0, 0, 0, 0, FlagPending, FlagCluster, FlagRemoteNode}).Draw(t, "flags")
	return PeerRef{Peer: Peer(rapid.Uint32Range(0, 6).Draw(t, "peer")), Flags: flags}
}

func drawState(t *rapid.T) State {
	s := State{
		Endpoints: map[uint32]Endpoint{}, Addresses: map[netip.Addr]PeerRef{}, Prefixes: map[netip.Prefix]PeerRef{},
		Classes: map[Peer]Class{}, Cells: map[CellKey]PortMap{}, Services: map[ServiceKey][]Backend{}, Pairs: map[RuleSetPair]rule.Verdict{},
	}
	for _, a := range testAddrs {
		if rapid.Bool().Draw(t, "address") {
			s.Addresses[a] = drawRef(t)
		}
	}
	for _, p := range testPrefixes {
		if rapid.Bool().Draw(t, "prefix") {
			s.Prefixes[p] = drawRef(t)
		}
	}
	for p := Peer(1); p <= 6; p++ {
		if c := Class(rapid.Uint32Range(0, 3).Draw(t, "class")); c != NoClass {
			s.Classes[p] = c
		}
	}
	for r := FirstRow; r < FirstRow+3; r++ {
		for _, c := range []Class{1, 2, 3, DefaultClass} {
			if rapid.Bool().Draw(t, "cell") {
				s.Cells[CellKey{r, c}] = rapid.SampledFrom(testPortMaps).Draw(t, "port map")
			}
		}
	}
	for ifindex := uint32(1); ifindex <= 2; ifindex++ {
		if rapid.IntRange(0, 3).Draw(t, "endpoint") > 0 {
			s.Endpoints[ifindex] = drawEndpoint(t, ifindex)
		}
	}
	for _, a := range []netip.Addr{testAddrs[1], netip.MustParseAddr("10.96.0.1")} {
		if rapid.Bool().Draw(t, "service") {
			s.Services[ServiceKey{a, 6, 80}] = drawBackends(t)
		}
	}
	for pair, v := range testPairs {
		s.Pairs[pair] = v
	}
	if rapid.Bool().Draw(t, "unused pair") {
		s.Pairs[RuleSetPair{20, 21}] = 22
	}
	return s
}

func drawEndpoint(t *rapid.T, ifindex uint32) Endpoint {
	rows := rapid.SampledFrom([]Row{RowClosed, RowOpen, FirstRow, FirstRow + 1, FirstRow + 2})
	e := Endpoint{ID: 10*ifindex + rapid.Uint32Range(0, 1).Draw(t, "id"), Egress: rows.Draw(t, "egress"), Ingress: rows.Draw(t, "ingress")}
	for _, a := range testOwn {
		if rapid.IntRange(0, 3).Draw(t, "own") > 0 {
			e.Addrs = append(e.Addrs, a)
		}
	}
	return e
}

func drawBackends(t *rapid.T) []Backend {
	var list []Backend
	for p := Peer(0); p <= 6; p++ {
		if rapid.IntRange(0, 2).Draw(t, "backend") == 0 {
			list = append(list, Backend{p, rapid.SampledFrom(testPorts).Draw(t, "port")})
		}
	}
	return list
}

// drawChange returns a state a few steps away: the usual case.
func drawChange(t *rapid.T, s State) State {
	other := drawState(t)
	n := s
	pick := func(what string) bool { return rapid.IntRange(0, 2).Draw(t, what) == 0 }
	n.Addresses, n.Prefixes = mix(s.Addresses, other.Addresses, pick), mix(s.Prefixes, other.Prefixes, pick)
	n.Endpoints, n.Classes = mix(s.Endpoints, other.Endpoints, pick), mix(s.Classes, other.Classes, pick)
	if rapid.Bool().Draw(t, "cells change") {
		n.Cells = mix(s.Cells, other.Cells, pick)
	}
	if rapid.Bool().Draw(t, "services change") {
		n.Services = mix(s.Services, other.Services, pick)
	}
	n.Pairs = other.Pairs
	return n
}

func mix[K comparable, V any](a, b map[K]V, pick func(string) bool) map[K]V {
	m := map[K]V{}
	keys := map[K]bool{}
	var order []K
	for _, from := range []map[K]V{a, b} {
		for k := range from {
			if !keys[k] {
				keys[k] = true
				order = append(order, k)
			}
		}
	}
	slices.SortFunc(order, func(a, b K) int { return compareAny(a, b) })
	for _, k := range order {
		from := a
		if pick("new") {
			from = b
		}
		if v, ok := from[k]; ok {
			m[k] = v
		}
	}
	return m
}

// flows are packets that tell states apart.
func flows() []Packet {
	var list []Packet
	peers := append(slices.Clone(testAddrs), netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("10.0.200.1"), netip.MustParseAddr("fd99::1"))
	for ifindex := uint32(1); ifindex <= 2; ifindex++ {
		for _, own := range testOwn {
			for _, peer := range peers {
				for _, port := range testPorts {
					for _, ingress := range []bool{false, true} {
						list = append(list, Packet{Ifindex: ifindex, Ingress: ingress, Own: own, Peer: peer, Protocol: 6, Port: port})
					}
				}
			}
		}
	}
	return list
}
