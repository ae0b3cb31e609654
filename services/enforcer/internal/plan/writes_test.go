package plan_test

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/deptest"
	"weir.dev/weir/services/enforcer/internal/plan"
	"weir.dev/weir/services/enforcer/internal/plan/plantest"
)

// The planner is pure: it reads no clock, no file and no socket.
func TestImports(t *testing.T) {
	deptest.OnlyImports(t, "cmp", "context", "encoding/binary", "errors", "fmt", "maps", "net/netip", "slices", "sort", "weir.dev/weir/engine/rule")
}

// cluster is a small node: two pods of one row, a web class, the world, and
// what is unknown of the cluster.
func cluster() plan.State {
	a, p := netip.MustParseAddr, netip.MustParsePrefix
	http := plan.PortMap{{Start: 0}, {Start: uint32(rule.TCP)<<16 | 80, Verdict: rule.Allowed}, {Start: uint32(rule.TCP)<<16 | 81}}
	return plan.State{
		Endpoints: map[uint32]plan.Endpoint{1: {ID: 1, Egress: plan.RowOpen, Ingress: 2, Addrs: []netip.Addr{a("10.244.1.1")}}, 7: {ID: 7, Addrs: []netip.Addr{a("10.244.1.7")}}},
		Addresses: map[netip.Addr]plan.PeerRef{a("10.244.1.1"): {Peer: 2}, a("10.244.2.1"): {Peer: 3}, a("10.244.2.2"): {Peer: 3}},
		Prefixes: map[netip.Prefix]plan.PeerRef{
			p("0.0.0.0/0"): {Peer: 1}, p("10.244.0.0/16"): {Peer: 0, Flags: plan.FlagCluster},
		},
		Classes: map[plan.Peer]plan.Class{1: 1, 2: 2, 3: 3},
		Cells: map[plan.CellKey]plan.PortMap{
			{Row: 2, Class: plan.DefaultClass}: {{Start: 0}},
			{Row: 2, Class: 3}:                 http,
		},
	}
}

func clone(s plan.State) plan.State {
	s.Endpoints, s.Addresses, s.Prefixes = maps.Clone(s.Endpoints), maps.Clone(s.Addresses), maps.Clone(s.Prefixes)
	s.Classes, s.Cells = maps.Clone(s.Classes), maps.Clone(s.Cells)
	s.Services = maps.Clone(s.Services)
	return s
}

// TestChangeCostsWhatItTouches pins the exact writes of usual changes. Property
// 1 of the design: a new pod of a known identity is one address entry, a new
// identity in known classes one more class entry (on each side), and neither
// moves the word.
func TestChangeCostsWhatItTouches(t *testing.T) {
	a := netip.MustParseAddr
	tests := map[string]struct {
		change func(*plan.State)
		want   []string
	}{
		"nothing changes": {func(*plan.State) {}, nil},
		"a new pod of a known identity": {
			func(s *plan.State) { s.Addresses[a("10.244.2.9")] = plan.PeerRef{Peer: 3} },
			[]string{"AddressWrite"},
		},
		"a new identity in a known class": {
			func(s *plan.State) {
				s.Classes[4] = 3
				s.Addresses[a("10.244.2.9")] = plan.PeerRef{Peer: 4}
			},
			[]string{"ClassWrite", "ClassWrite", "AddressWrite"},
		},
		"a new identity in a new class": {
			func(s *plan.State) {
				s.Classes[4] = 4
				s.Cells[plan.CellKey{Row: 2, Class: 4}] = s.Cells[plan.CellKey{Row: 2, Class: 3}]
				s.Addresses[a("10.244.2.9")] = plan.PeerRef{Peer: 4}
			},
			[]string{"CellWrite", "CellWrite", "ClassWrite", "ClassWrite", "AddressWrite"},
		},
		"a new pod on this node, of a known row": {
			func(s *plan.State) {
				s.Endpoints[2] = plan.Endpoint{ID: 2, Egress: plan.RowOpen, Ingress: 2, Addrs: []netip.Addr{a("10.244.1.9")}}
				s.Addresses[a("10.244.1.9")] = plan.PeerRef{Peer: 2}
			},
			[]string{"AddressWrite", "EndpointWrite"},
		},
		"a closed endpoint opens": {
			func(s *plan.State) {
				s.Endpoints[7] = plan.Endpoint{ID: 7, Egress: plan.RowOpen, Ingress: 5, Addrs: []netip.Addr{a("10.244.1.7")}}
				s.Cells[plan.CellKey{Row: 5, Class: plan.DefaultClass}] = plan.PortMap{{Start: 0}}
			},
			[]string{"CellWrite", "CellWrite", "EndpointWrite"},
		},
		"an endpoint is selected by its first policy": {
			func(s *plan.State) {
				e := s.Endpoints[1]
				e.Egress = 2
				s.Endpoints[1] = e
			},
			[]string{"EndpointWrite", "Flip", "Wait", "EndpointWrite"},
		},
		"a pod goes: its address means nothing any more": {
			func(s *plan.State) { delete(s.Addresses, a("10.244.2.1")) },
			[]string{"AddressWrite", "Flip", "Wait"},
		},
		"a pod is relabelled: its address means someone else": {
			func(s *plan.State) { s.Addresses[a("10.244.2.1")] = plan.PeerRef{Peer: 2} },
			[]string{"AddressWrite", "Flip", "Wait"},
		},
		"a port map changes": {
			func(s *plan.State) {
				s.Cells[plan.CellKey{Row: 2, Class: 3}] = plan.PortMap{{Start: 0, Verdict: rule.Allowed}}
			},
			[]string{"RangeWrite", "CellWrite", "Flip", "Wait", "RangeWrite", "CellWrite"},
		},
		"a port map changes and a pod of a known identity comes": {
			func(s *plan.State) {
				s.Cells[plan.CellKey{Row: 2, Class: 3}] = plan.PortMap{{Start: 0, Verdict: rule.Allowed}}
				s.Addresses[a("10.244.2.9")] = plan.PeerRef{Peer: 3}
			},
			[]string{"RangeWrite", "CellWrite", "Flip", "Wait", "AddressWrite", "RangeWrite", "CellWrite"},
		},
		"a class is split": {
			func(s *plan.State) {
				s.Classes[2] = 4
				s.Cells[plan.CellKey{Row: 2, Class: 4}] = s.Cells[plan.CellKey{Row: 2, Class: 3}]
			},
			[]string{"CellWrite", "ClassWrite", "Flip", "Wait", "CellWrite", "ClassWrite"},
		},
		"an address changes its meaning together with the policy": {
			func(s *plan.State) {
				s.Cells[plan.CellKey{Row: 2, Class: 3}] = plan.PortMap{{Start: 0, Verdict: rule.Allowed}}
				s.Addresses[a("10.244.2.1")] = plan.PeerRef{Peer: 2}
			},
			[]string{
				"ClassWrite", "AddressWrite", // by way of a peer of the planner's own
				"RangeWrite", "CellWrite", "ClassWrite", "Flip", "Wait",
				"AddressWrite", "RangeWrite", "CellWrite", "ClassWrite", "Wait", "ClassWrite",
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m, p := realize(t, cluster())
			var got []string
			m.after = func(_ int, op plan.Op) { got = append(got, strings.TrimPrefix(fmt.Sprintf("%T", op), "plan.")) }
			to := clone(cluster())
			test.change(&to)
			if _, err := p.Apply(t.Context(), to); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("writes (-want +got):\n%s", diff)
			}
		})
	}
}

// TestWritesAreInProportion: however states differ, each difference costs a few
// writes, whatever else the maps hold.
func TestWritesAreInProportion(t *testing.T) {
	world := plantest.NewWorld(1, 2)
	rapid.Check(t, func(t *rapid.T) {
		from := world.State(t)
		to := world.Change(t, from)
		_, p := realize(t, from)
		res, err := p.Apply(t.Context(), to)
		if err != nil {
			t.Fatalf("apply: %v", err)
		}
		entries := 0
		for _, m := range to.Cells {
			entries += len(m)
		}
		for _, list := range to.Services {
			entries += len(list)
		}
		// A reference goes by way of a peer with four classes, if it must.
		most := 2*(differences(from.Cells, to.Cells)+differences(from.Services, to.Services)+differences(from.Classes, to.Classes)) +
			3*differences(from.Endpoints, to.Endpoints) + differences(from.Pairs, to.Pairs) +
			6*(differences(from.Addresses, to.Addresses)+differences(from.Prefixes, to.Prefixes)) + 2*entries
		if res.Writes > most {
			t.Fatalf("%d writes, at most %d are in proportion", res.Writes, most)
		}
		if most == 0 && res.Moved {
			t.Fatalf("the word moved for nothing")
		}
	})
}

func differences[K comparable, V any](a, b map[K]V) int {
	n := 0
	for k, v := range a {
		if w, ok := b[k]; !ok || !reflect.DeepEqual(v, w) {
			n++
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			n++
		}
	}
	return n
}

// TestS18EqualPortMapsAreOne: port maps are content-addressed, whatever rules
// they come from, and renumbering nothing writes nothing.
func TestS18EqualPortMapsAreOne(t *testing.T) {
	s := cluster()
	for c := plan.Class(10); c < 40; c++ {
		s.Cells[plan.CellKey{Row: 2, Class: c}] = plan.PortMap{{Start: 0}, {Start: 6<<16 | 443, Verdict: rule.Allowed}}
	}
	_, p := realize(t, s)
	res, err := p.Apply(t.Context(), clone(s))
	if err != nil || res.Writes != 0 || res.Moved {
		t.Errorf("the same again: %+v, %v; want no write", res, err)
	}
	if want := 1 + 3 + 2; res.Ranges != want {
		t.Errorf("%d ranges are in use, want %d", res.Ranges, want)
	}
}

// TestScatteredPlacesArePutTogether: a port map that finds no place between
// others gets one when all move.
func TestScatteredPlacesArePutTogether(t *testing.T) {
	limits := plantest.Limits()
	limits.Ranges = 16
	m := newStepper(plan.NewModel(2))
	p := plan.NewPlanner(limits, m)
	one := func(v rule.Verdict) plan.PortMap { return plan.PortMap{{Start: 0, Verdict: v}} }
	s := cluster()
	s.Cells = map[plan.CellKey]plan.PortMap{}
	for c := plan.Class(1); c <= 12; c++ {
		s.Cells[plan.CellKey{Row: 2, Class: c}] = one(rule.Verdict(100 + c))
	}
	if _, err := p.Apply(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	to := clone(s)
	for c := plan.Class(2); c <= 12; c += 2 {
		delete(to.Cells, plan.CellKey{Row: 2, Class: c})
	}
	if _, err := p.Apply(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	long := plan.PortMap{}
	for i := range uint32(8) {
		long = append(long, plan.Range{Start: i, Verdict: rule.Verdict(i % 2)})
	}
	from, to := to, clone(to)
	to.Cells[plan.CellKey{Row: 2, Class: plan.DefaultClass}] = long
	watch(t, m, plantest.NewWorld(1).Packets(), from, to)
	res, err := p.Apply(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	if !res.Moved {
		t.Error("everything moved in place")
	}
	wantBothSides(t, m.Model, to)
	if want := 6 + 8; res.Ranges != want {
		t.Errorf("%d ranges are in use, want %d", res.Ranges, want)
	}
}

// TestFullMapIsWrittenAnew: cells that have no room beside those they replace.
func TestFullMapIsWrittenAnew(t *testing.T) {
	limits := plantest.Limits()
	limits.Cells = 8
	room := &bounded{newStepper(plan.NewModel(2)), limits.Cells}
	p := plan.NewPlanner(limits, room)
	s := cluster()
	for i := range plan.Row(3) {
		s.Cells = map[plan.CellKey]plan.PortMap{}
		for c := range plan.Class(4) {
			s.Cells[plan.CellKey{Row: 10 + i, Class: 1 + c}] = plan.PortMap{{Start: 0, Verdict: rule.Allowed}}
		}
		if _, err := p.Apply(t.Context(), clone(s)); err != nil {
			t.Fatalf("row %d: %v", i, err)
		}
		wantBothSides(t, room.Model, s)
	}
}

// bounded refuses cells beyond its room, as the kernel's map does.
type bounded struct {
	*stepper
	room int
}

func (b *bounded) WriteCells(ws []plan.CellWrite) error {
	for _, w := range ws {
		if err := b.stepper.WriteCells([]plan.CellWrite{w}); err != nil {
			return err
		}
		if n := len(b.Image.Cells[0]) + len(b.Image.Cells[1]); n > b.room {
			return fmt.Errorf("%d cells, room for %d", n, b.room)
		}
	}
	return nil
}

func TestImpossibleStatesAreRefused(t *testing.T) {
	tests := map[string]func(*plan.State){
		"a peer of the planner's own": func(s *plan.State) { s.Classes[plantest.Limits().PeerLimit()] = 1 },
		"a cell of an open row":       func(s *plan.State) { s.Cells[plan.CellKey{Row: plan.RowOpen, Class: 1}] = nil },
		"a port map with a hole":      func(s *plan.State) { s.Cells[plan.CellKey{Row: 2, Class: 3}] = plan.PortMap{{Start: 5}} },
		"a port map that is not sorted": func(s *plan.State) {
			s.Cells[plan.CellKey{Row: 2, Class: 3}] = plan.PortMap{{Start: 0}, {Start: 9}, {Start: 9, Verdict: 1}}
		},
		"a mapped address": func(s *plan.State) { s.Addresses[netip.MustParseAddr("::ffff:1.2.3.4")] = plan.PeerRef{Peer: 1} },
		"an endpoint without a number": func(s *plan.State) {
			s.Endpoints[9] = plan.Endpoint{}
		},
		"more cells than the map holds": func(s *plan.State) {
			for c := range plan.Class(plantest.Limits().Cells) {
				s.Cells[plan.CellKey{Row: 2, Class: c + 1}] = nil
			}
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			_, p := realize(t, cluster())
			to := clone(cluster())
			change(&to)
			if res, err := p.Apply(t.Context(), to); err == nil {
				t.Errorf("applied: %+v", res)
			}
		})
	}
}

func TestNumbersGoRound(t *testing.T) {
	n := plan.NewNumbers(2, 6)
	n.Reserve(3)
	var got []uint32
	for range 3 {
		v, err := n.Take()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, v)
	}
	if diff := cmp.Diff([]uint32{2, 4, 5}, got); diff != "" {
		t.Errorf("numbers (-want +got):\n%s", diff)
	}
	if v, err := n.Take(); err == nil {
		t.Errorf("a fifth number of four: %d", v)
	}
	n.Release(4)
	n.Release(3)
	if v, err := n.Take(); err != nil || v != 3 {
		t.Errorf("took %d, %v; want 3", v, err)
	}
}
