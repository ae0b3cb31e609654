package plan_test

import (
	"net/netip"
	"testing"

	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/bpf/judgetest"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// TestTable: the model passes the table that the programs pass in bpf/tests.
func TestTable(t *testing.T) {
	m, _ := realize(t, stateOf(judgetest.Policy()))
	for _, c := range judgetest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			p := c.Packet
			j := m.Judge(plan.Packet{Ifindex: uint32(p.Index + 1), Ingress: p.Ingress, Own: p.Own, Peer: p.Peer, Protocol: p.Protocol, Port: p.Port})
			if j.Verdict != rule.Verdict(c.Verdict) || bpf.Reason(j.Reason) != c.Reason {
				t.Errorf("%+v: verdict %d for reason %s, want %d, %s", p, j.Verdict, bpf.Reason(j.Reason), c.Verdict, c.Reason)
			}
		})
	}
}

func stateOf(j judgetest.State) plan.State {
	s := plan.State{
		Endpoints: map[uint32]plan.Endpoint{}, Addresses: map[netip.Addr]plan.PeerRef{}, Prefixes: map[netip.Prefix]plan.PeerRef{},
		Classes: map[plan.Peer]plan.Class{}, Cells: map[plan.CellKey]plan.PortMap{}, Services: map[plan.ServiceKey][]plan.Backend{},
		Pairs: map[plan.RuleSetPair]rule.Verdict{},
	}
	for _, e := range j.Endpoints {
		n := uint32(e.Index + 1)
		s.Endpoints[n] = plan.Endpoint{ID: n, Egress: plan.Row(e.Egress), Ingress: plan.Row(e.Ingress), Addrs: e.Addrs}
	}
	for _, a := range j.Addresses {
		s.Addresses[a.Addr] = plan.PeerRef{Peer: plan.Peer(a.Peer), Flags: plan.Flags(a.Flags)}
	}
	for _, p := range j.Prefixes {
		s.Prefixes[p.Prefix] = plan.PeerRef{Peer: plan.Peer(p.Peer), Flags: plan.Flags(p.Flags)}
	}
	for peer, class := range j.Classes {
		s.Classes[plan.Peer(peer)] = plan.Class(class)
	}
	for _, c := range j.Cells {
		var m plan.PortMap
		for _, r := range c.Ranges {
			m = append(m, plan.Range{Start: uint32(r.Protocol)<<16 | uint32(r.Port), Verdict: rule.Verdict(r.Verdict)})
		}
		s.Cells[plan.CellKey{Row: plan.Row(c.Row), Class: plan.Class(c.Class)}] = m
	}
	for _, v := range j.Services {
		var list []plan.Backend
		for _, b := range v.Backends {
			list = append(list, plan.Backend{Peer: plan.Peer(b.Peer), Port: b.Port})
		}
		s.Services[plan.ServiceKey{Addr: v.Addr, Protocol: v.Protocol, Port: v.Port}] = list
	}
	for _, p := range j.Pairs {
		s.Pairs[plan.RuleSetPair{A: rule.Verdict(p.A), B: rule.Verdict(p.B)}] = rule.Verdict(p.Verdict)
	}
	return s
}
