package desired

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// services fills where each Service's address leads. A backend whose address is
// pending has no peer, and is denied as such.
func (x *build) services() error {
	for _, s := range x.in.Services {
		key := plan.ServiceKey{Addr: s.Addr, Protocol: s.Protocol, Port: s.Port}
		var backends []plan.Backend
		for _, b := range s.Backends {
			backends = append(backends, plan.Backend{Peer: x.backendPeer(b.Addr), Port: b.Port})
		}
		slices.SortFunc(backends, func(a, b plan.Backend) int {
			return cmp.Or(cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Port, b.Port))
		})
		backends = slices.Compact(backends)
		if len(backends) > plan.MaxBackends {
			backends = nil
		}
		x.state.Services[key] = backends
		x.explain.services[key] = s
	}
	return nil
}

// backendPeer is the peer that a packet to addr would find.
func (x *build) backendPeer(addr netip.Addr) plan.Peer {
	if ref, ok := x.state.Addresses[addr]; ok {
		return ref.Peer
	}
	for bits := addr.BitLen(); bits >= 0; bits-- {
		p, err := addr.Prefix(bits)
		if err != nil {
			return plan.NoPeer
		}
		if ref, ok := x.state.Prefixes[p]; ok {
			return ref.Peer
		}
	}
	return plan.NoPeer
}

// pairs combines the rule sets that backends of one Service demand together, in
// the order in which the datapath folds them: backend by backend.
func (x *build) pairs() error {
	byClass := make(map[plan.Class]numberedClass, len(x.classes))
	for _, c := range x.classes {
		byClass[c.number] = c
	}
	for _, r := range x.rows {
		if r.Direction != rule.Egress {
			continue
		}
		for _, key := range slices.SortedFunc(maps.Keys(x.state.Services), compareServices) {
			if err := x.fold(r, key, byClass); err != nil {
				return err
			}
		}
	}
	return nil
}

func compareServices(a, b plan.ServiceKey) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

func (x *build) fold(r numberedRow, key plan.ServiceKey, byClass map[plan.Class]numberedClass) error {
	var all []rule.ID // that so stands for, sorted
	so := rule.Allowed
	for _, b := range x.state.Services[key] {
		class, ok := byClass[x.state.Classes[b.Peer]]
		if !ok {
			return nil // pending: denied
		}
		v := x.judge(r, class.matched, class.entity).ports.Verdict(key.Protocol, b.Port)
		if v.Kind == merge.Deny {
			return nil
		}
		if v.Kind == merge.Allow {
			continue
		}
		next, err := x.builder.ruleSets.of([]rule.ID{v.RuleSet})
		if err != nil {
			return err
		}
		if all = union(all, v.RuleSet); so == rule.Allowed || so == next {
			so = next
			continue
		}
		both, err := x.builder.ruleSets.of(all)
		if err != nil {
			return err
		}
		x.state.Pairs[plan.RuleSetPair{A: min(so, next), B: max(so, next)}] = both
		so = both
	}
	return nil
}

// union is ids with id, sorted. ids is not changed.
func union(ids []rule.ID, id rule.ID) []rule.ID {
	i, there := slices.BinarySearchFunc(ids, id, rule.ID.Compare)
	if there {
		return ids
	}
	return slices.Insert(slices.Clone(ids), i, id)
}
