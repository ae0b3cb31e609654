package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"weir.dev/weir/engine/rule"
)

// check refuses a state that the maps cannot hold, or that is none. Peers of the
// planner's own may stay from realized: a planner that died left them.
func (l Limits) check(realized, s State) error {
	for _, m := range []struct {
		name    string
		n, most int
	}{
		{"endpoints", len(s.Endpoints), l.Endpoints},
		{"addresses", len(s.Addresses), l.Addresses},
		{"prefixes", len(s.Prefixes), l.Prefixes},
		{"cells", 2 * len(s.Cells), l.Cells},
		{"services", 2 * len(s.Services), l.Services},
		{"pairs", len(s.Pairs), l.Pairs},
	} {
		if m.n > m.most {
			return fmt.Errorf("weir_%s holds %d entries, %d are wanted: raise its size", m.name, m.most, m.n)
		}
	}
	for ifindex, e := range s.Endpoints {
		if e.ID == 0 || len(e.Addrs) > MaxEndpointAddrs {
			return fmt.Errorf("endpoint at interface %d has number %d and %d addresses: at least 1, at most %d", ifindex, e.ID, len(e.Addrs), MaxEndpointAddrs)
		}
	}
	for a := range s.Addresses {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			return fmt.Errorf("address %v is mapped, has a zone or is none", a)
		}
	}
	for p := range s.Prefixes {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			return fmt.Errorf("prefix %v is mapped, not masked or none", p)
		}
	}
	for p, c := range s.Classes {
		own := p >= l.PeerLimit() && realized.Classes[p] != c
		if p == NoPeer || own || c == DefaultClass {
			return fmt.Errorf("peer %d of class %d: peers go from 1 to %d, classes to %d", p, c, l.PeerLimit()-1, DefaultClass-1)
		}
	}
	return l.checkCells(s)
}

func (l Limits) checkCells(s State) error {
	for key, m := range s.Cells {
		if key.Row < FirstRow || key.Class == NoClass {
			return fmt.Errorf("cell %+v: rows begin at %d, classes at %d", key, FirstRow, FirstClass)
		}
		if len(m) > 0 && m[0].Start != 0 {
			return fmt.Errorf("port map of cell %+v begins at %#x, not at 0", key, m[0].Start)
		}
		for i := 1; i < len(m); i++ {
			if m[i-1].Start >= m[i].Start {
				return fmt.Errorf("port map of cell %+v does not ascend at %#x", key, m[i].Start)
			}
		}
	}
	for pair, v := range s.Pairs {
		if pair.A < rule.FirstRuleSet || pair.A >= pair.B || v < rule.FirstRuleSet {
			return fmt.Errorf("rule set %d stands for %d and %d: no such pair", v, pair.A, pair.B)
		}
	}
	return nil
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
