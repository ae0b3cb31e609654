package tests

import (
	"testing"

	"weir.dev/weir/bpf/datapath"
	"weir.dev/weir/bpf/judgetest"
)

// apply writes a state of the shared table, on both sides.
func (l *lab) apply(s judgetest.State) {
	l.Helper()
	for _, e := range s.Endpoints {
		l.endpoint(endpoint{ifindex: l.ifs[e.Index], egress: e.Egress, ingress: e.Ingress, addrs: e.Addrs})
	}
	for _, a := range s.Addresses {
		l.put(datapath.MapAddresses, addr16(a.Addr), datapath.WeirPeerRef{Peer: a.Peer, Flags: a.Flags})
	}
	for _, p := range s.Prefixes {
		l.prefix(p.Prefix, p.Peer, p.Flags)
	}
	for peer, class := range s.Classes {
		l.class(peer, class)
	}
	for _, c := range s.Cells {
		var ranges []datapath.WeirRange
		for _, r := range c.Ranges {
			ranges = append(ranges, datapath.WeirRange{Start: start(r.Protocol, r.Port), Verdict: r.Verdict})
		}
		l.cell(c.Row, c.Class, ranges...)
	}
	for _, p := range s.Pairs {
		l.put(datapath.MapBackendSets, datapath.WeirRuleSetPair{A: p.A, B: p.B}, p.Verdict)
	}
	for _, svc := range s.Services {
		l.service(svc)
	}
}

func (l *lab) service(svc judgetest.Service) {
	l.Helper()
	for side := range uint32(2) {
		v := datapath.WeirService{First: l.backends, N: uint32(len(svc.Backends))}
		for i, b := range svc.Backends {
			index := side*small.Backends + v.First + uint32(i)
			l.put(datapath.MapBackends, index, datapath.WeirBackend{Peer: b.Peer, Port: b.Port})
		}
		l.put(datapath.MapServices, datapath.WeirServiceKey{
			Side: side, Addr: addr16(svc.Addr),
			Port: datapath.NetworkOrder(svc.Port), Protocol: svc.Protocol,
		}, v)
	}
	l.backends += uint32(len(svc.Backends))
}

// first is the frame that begins a case's flow.
func first(p judgetest.Packet) frame {
	f := frame{src: p.Own, dst: p.Peer, protocol: p.Protocol, sport: 40000, dport: p.Port, flags: syn}
	if p.Protocol == icmp || p.Protocol == icmpv6 {
		f.icmpType, f.icmpID = uint8(p.Port), 77
	}
	if p.Ingress {
		f.src, f.dst = p.Peer, p.Own
	}
	return f
}

// The programs pass the table that the planner's model passes, under either side.
func TestJudge(t *testing.T) {
	for _, word := range []uint64{firstWord, firstWord + 1} {
		l := newLab(t, small)
		l.apply(judgetest.Policy())
		l.flip(word)
		for _, c := range judgetest.Cases() {
			t.Run(c.Name, func(t *testing.T) { l.judge(t, c) })
		}
	}
}

func (l *lab) judge(t *testing.T, c judgetest.Case) {
	here := l.in(t)
	f := first(c.Packet)
	before := here.counted(c.Reason, c.Packet.Ingress)
	here.flows()
	var r result
	if c.Packet.Ingress {
		r = here.toPod(c.Packet.Index, f)
	} else {
		r = here.fromPod(c.Packet.Index, f)
	}
	ret := int32(next)
	switch {
	case c.Verdict == datapath.Deny:
		ret = drop
	case c.Verdict >= datapath.FirstRuleSet:
		ret = redirect
	}
	here.want("judgement", r, ret, c.Reason)
	if got := here.counted(c.Reason, c.Packet.Ingress) - before; got != 1 {
		t.Errorf("counted %d as %s, want 1", got, c.Reason)
	}
	ct, held := here.ct(f)
	if c.Verdict == datapath.Deny {
		if held {
			t.Error("conntrack has an entry of a flow that was denied")
		}
		return
	}
	slot := ct.Slot[datapath.SlotEgress]
	if c.Packet.Ingress {
		slot = ct.Slot[datapath.SlotIngress]
	}
	if slot.Verdict != c.Verdict || slot.Ifindex != here.ifs[c.Packet.Index] {
		t.Errorf("slot has verdict %d of interface %d, want %d of %d",
			slot.Verdict, slot.Ifindex, c.Verdict, here.ifs[c.Packet.Index])
	}
	flows := here.flows()
	if len(flows) != 1 || flows[0].Verdict != c.Verdict {
		t.Errorf("flow events %+v, want one with verdict %d", flows, c.Verdict)
	}
}
