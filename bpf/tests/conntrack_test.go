package tests

import (
	"net/netip"
	"testing"

	"weir.dev/weir/bpf/datapath"
)

// established takes a flow of A to B through its handshake on both interfaces.
func (l *lab) established(f frame) {
	l.Helper()
	l.want("SYN leaves A", l.fromPod(0, f), next, 0)
	l.want("SYN reaches B", l.toPod(1, f), next, 0)
	l.want("SYN-ACK leaves B", l.fromPod(1, f.back().with(syn|ack)), next, 0)
	l.want("SYN-ACK reaches A", l.toPod(0, f.back().with(syn|ack)), next, 0)
	l.want("ACK leaves A", l.fromPod(0, f.with(ack)), next, 0)
	l.want("ACK reaches B", l.toPod(1, f.with(ack)), next, 0)
}

// An answer alone makes no connection: whoever sends SYNs gets answers.
func TestAnsweredSYNIsNotEstablished(t *testing.T) {
	l := newPods(t)
	f := aToB(80)
	for range 2 {
		l.fromPod(0, f)
		l.toPod(1, f)
		l.fromPod(1, f.back().with(syn|ack))
		l.toPod(0, f.back().with(syn|ack))
	}
	if ct, _ := l.ct(f); ct.Flags&datapath.CTEstablished != 0 {
		t.Errorf("established after a SYN and its answer: flags %#x", ct.Flags)
	}
}

// One entry serves both directions and both pods, each with a slot of its own.
func TestEstablished(t *testing.T) {
	l := newPods(t)
	f := aToB(80)
	l.established(f)
	ct, _ := l.ct(f)
	for slot, want := range map[int]uint32{datapath.SlotEgress: l.ifs[0], datapath.SlotIngress: l.ifs[1]} {
		got := ct.Slot[slot]
		if got.Ifindex != want || got.Word != firstWord || got.Verdict != datapath.Allow {
			t.Errorf("slot %d is %+v, want interface %d, word %d, allowed", slot, got, want, firstWord)
		}
		if ct.Endpoint[slot] != want+100 {
			t.Errorf("slot %d was made by endpoint %d, want %d", slot, ct.Endpoint[slot], want+100)
		}
	}
	if ct.Flags != datapath.CTAInitiates|datapath.CTSeenReply|datapath.CTEstablished {
		t.Errorf("flags %#x, want A's SYN, an answer, and more of A", ct.Flags)
	}
	if ct.Owner != l.ifs[0]+100 {
		t.Errorf("the entry is of endpoint %d's quota, want %d", ct.Owner, l.ifs[0]+100)
	}
	if n := len(l.flows()); n != 2 {
		t.Errorf("%d flow events, want one a judgement", n)
	}
}

// The ends of a flow are noted, and forgotten by the next SYN.
func TestEnds(t *testing.T) {
	l := newPods(t)
	f := aToB(80)
	l.established(f)
	l.fromPod(0, f.with(fin|ack))
	l.toPod(0, f.back().with(fin|ack))
	if ct, _ := l.ct(f); ct.Flags&(datapath.CTFINA|datapath.CTFINB) != datapath.CTFINA|datapath.CTFINB {
		t.Errorf("flags %#x lack a FIN", ct.Flags)
	}
	l.fromPod(0, f.with(rst))
	if ct, _ := l.ct(f); ct.Flags&datapath.CTRST == 0 {
		t.Errorf("flags %#x lack the reset", ct.Flags)
	}
	l.fromPod(0, f)
	if ct, _ := l.ct(f); ct.Flags != datapath.CTAInitiates {
		t.Errorf("flags %#x, want those of a fresh SYN", ct.Flags)
	}
}

// Under a new word each side judges again: what is still allowed goes on and is
// written under the new word, what is not is cut.
func TestFlip(t *testing.T) {
	l := newPods(t)
	f := aToB(80)
	l.established(f)
	l.flow(f, "allowed again")

	l.cellOf(0, rowB, peerA) // B's ingress admits nothing from now on
	l.flip(firstWord + 2)
	l.want("A still sends", l.fromPod(0, f.with(ack)), next, 0)
	l.want("B does not get it", l.toPod(1, f.with(ack)), drop, datapath.ReasonNoRule)
	l.want("B's answer is of the same slot", l.fromPod(1, f.back().with(ack)), drop, datapath.ReasonNoRule)
	if ct, _ := l.ct(f); ct.Flags&datapath.CTDenied == 0 {
		t.Errorf("flags %#x are not marked as denied", ct.Flags)
	}
}

// flow flips to the same policy and sends one packet each way.
func (l *lab) flow(f frame, what string) {
	l.Helper()
	l.flip(firstWord + 1)
	l.want(what, l.fromPod(0, f.with(ack)), next, 0)
	if ct, _ := l.ct(f); ct.Slot[datapath.SlotEgress].Word != firstWord+1 {
		l.Errorf("%s: slot has word %d", what, ct.Slot[datapath.SlotEgress].Word)
	}
	l.flip(firstWord + 2)
}

// A reset of a flow that conntrack holds passes once; with data it does not, nor
// does one of an unknown flow.
func TestReset(t *testing.T) {
	l := newPods(t)
	f := aToB(80)
	l.established(f)
	l.cellOf(0, rowB, peerA)
	l.flip(firstWord + 2)

	loud := f.with(rst)
	loud.payload = []byte("data")
	l.want("a reset with data", l.toPod(1, loud), drop, datapath.ReasonNoRule)
	l.want("a reset from B", l.fromPod(1, f.back().with(rst)), next, 0)
	l.want("another", l.fromPod(1, f.back().with(rst)), drop, datapath.ReasonNoRule)
	if ct, _ := l.ct(f); ct.Flags&datapath.CTRST == 0 {
		t.Errorf("flags %#x do not say that the flow is over", ct.Flags)
	}

	unknown := aToB(22).with(rst)
	unknown.sport = 50000
	l.pods(rowA, datapath.RowOpen, rowB, rowB)
	l.want("a reset of no flow", l.toPod(1, unknown), drop, datapath.ReasonNoRule)
}

// A reset that is ahead of what the peer has received is answered with a bare
// ACK, and that with a reset that the peer takes: each passes once, in this order
// alone (threat P9).
func TestP9ResetThatIsAnswered(t *testing.T) {
	l := newPods(t)
	f := aToB(80)
	l.established(f)
	l.cellOf(0, rowB, peerA)
	l.flip(firstWord + 2)

	loud := f.with(ack)
	loud.payload = []byte("data")
	l.want("an ACK before any reset", l.toPod(1, f.with(ack)), drop, datapath.ReasonNoRule)
	l.want("the reset", l.fromPod(1, f.back().with(rst|ack)), next, 0)
	l.want("another reset", l.fromPod(1, f.back().with(rst)), drop, datapath.ReasonNoRule)
	l.want("data", l.toPod(1, loud), drop, datapath.ReasonNoRule)
	l.want("a SYN", l.toPod(1, f.with(syn|ack)), drop, datapath.ReasonNoRule)
	l.want("the answer", l.toPod(1, f.with(ack)), next, 0)
	l.want("another answer", l.toPod(1, f.with(ack)), drop, datapath.ReasonNoRule)
	l.want("the reset that the peer takes", l.fromPod(1, f.back().with(rst)), next, 0)
	l.want("one more", l.fromPod(1, f.back().with(rst)), drop, datapath.ReasonNoRule)
	l.want("and an answer", l.toPod(1, f.with(ack)), drop, datapath.ReasonNoRule)
}

// A plain connection whose verdict becomes HTTP is cut: it cannot be judged from
// the middle. A new one is steered.
func TestHTTPStarted(t *testing.T) {
	l := newPods(t)
	f := aToB(80)
	l.established(f)
	l.cellOf(0, rowB, peerA, only(tcp, 80, ruleSet)...)
	l.flip(firstWord + 2)
	l.want("data", l.toPod(1, f.with(ack)), drop, datapath.ReasonHTTPStarted)
	l.want("the answer", l.fromPod(1, f.back().with(ack)), drop, datapath.ReasonHTTPStarted)
	l.want("a new connection", l.toPod(1, f), redirect, 0)
	l.want("goes on", l.toPod(1, f.with(ack)), redirect, 0)
	l.want("and back", l.fromPod(1, f.back().with(ack)), redirect, 0)
}

// P7: through the proxy or not is fixed at the SYN, whatever policy says later.
func TestP7(t *testing.T) {
	l := newPods(t)
	f := aToB(80)
	l.cell(rowB, peerA, only(tcp, 80, ruleSet)...)
	l.want("SYN", l.toPod(1, f), redirect, 0)

	l.cell(rowB, peerA, only(tcp, 80, datapath.Allow)...)
	l.flip(firstWord + 2)
	l.want("allowed without rules", l.toPod(1, f.with(ack)), redirect, 0)
	l.want("its answer", l.fromPod(1, f.back().with(ack)), redirect, 0)
	ct, _ := l.ct(f)
	if s := ct.Slot[datapath.SlotIngress]; s.Verdict != datapath.Allow || s.Word != firstWord+2 {
		t.Errorf("slot is %+v, want allowed under the new word", s)
	}
	l.want("the pod's FIN is of the leg to the proxy", l.fromPod(1, f.back().with(fin|ack)), redirect, 0)
	if ct, _ := l.ct(f); ct.Flags&(datapath.CTFINA|datapath.CTFINB) != 0 {
		t.Errorf("flags %#x say that the flow ends", ct.Flags)
	}
}

// P8: a flood takes the flooding endpoint's quota and no more. With none left it
// is judged packet by packet; HTTP is refused, for the proxy's packets would match
// no slot.
func TestP8(t *testing.T) {
	sizes := small
	sizes.CtQuota = 2
	l := newLab(t, sizes)
	l.pods(rowA, datapath.RowOpen, datapath.RowOpen, datapath.RowOpen)
	l.cell(rowA, datapath.ClassDefault, only(tcp, 80, datapath.Allow)...)
	f := aToB(80)
	for range 2 {
		f.sport++
		l.want("within the quota", l.fromPod(0, f), next, 0)
	}
	f.sport++
	l.want("over it", l.fromPod(0, f), next, 0)
	if _, held := l.ct(f); held {
		t.Error("an entry over the quota")
	}
	l.want("and on", l.fromPod(0, f.with(ack)), next, 0)
	l.cell(rowA, datapath.ClassDefault, only(tcp, 80, ruleSet)...)
	l.flip(firstWord + 2)
	f.sport++
	l.want("HTTP over it", l.fromPod(0, f), drop, datapath.ReasonNoProxy)

	l.put(datapath.MapQuotaFreed, l.ifs[0]+100, uint32(1))
	l.want("when one was freed", l.fromPod(0, f), redirect, 0)
	other := f.back()
	other.dport, other.sport = 80, 1000
	l.want("another endpoint's quota is its own", l.fromPod(1, other), next, 0)
	if _, held := l.ct(other); !held {
		t.Error("no entry for another endpoint")
	}
}

// HTTP rules for what is no TCP cannot be kept, so it is dropped.
func TestHTTPOverUDP(t *testing.T) {
	l := newPods(t)
	l.cell(rowA, datapath.ClassDefault, only(udp, 80, ruleSet)...)
	f := aToB(80)
	f.protocol = udp
	l.want("UDP", l.fromPod(0, f), drop, datapath.ReasonNoProxy)
}

// Answers of a flow without connections belong to it as long as it is young.
func TestUDP(t *testing.T) {
	l := newPods(t)
	l.cell(rowA, datapath.ClassDefault, only(udp, 53, datapath.Allow)...)
	l.pods(rowA, rowB, datapath.RowOpen, datapath.RowOpen)
	f := aToB(53)
	f.protocol = udp
	answer := f.back()
	l.want("an answer before the question", l.toPod(0, answer), drop, datapath.ReasonNoRule)
	l.want("the question", l.fromPod(0, f), next, 0)
	l.want("the answer", l.toPod(0, answer), next, 0)
	l.flip(firstWord + 1)
	l.want("an answer under a new word", l.toPod(0, answer), next, 0)

	src, dst := f.ends()
	key, _ := datapath.CtKey(src, dst, udp, 0)
	ct, _ := l.ct(f)
	ct.LastSeen -= 1000
	ct.Tick--
	l.put(datapath.MapCtAny, key, ct)
	l.want("an answer long after", l.toPod(0, answer), drop, datapath.ReasonNoRule)
}

// P6: an address means someone else now. Flows of who had it are judged again
// under the next word, and what was judged at another interface does not count.
func TestP6(t *testing.T) {
	t.Run("relabelled", func(t *testing.T) {
		l := newPods(t)
		f := aToB(80)
		l.established(f)
		l.peer(a4, peerWorld, 0) // which B does not admit
		l.flip(firstWord + 2)
		l.want("A's next packet", l.toPod(1, f.with(ack)), drop, datapath.ReasonNoRule)
		l.want("B's answer", l.fromPod(1, f.back().with(ack)), drop, datapath.ReasonNoRule)
	})
	t.Run("reused by another pod of the node, with the same port", func(t *testing.T) {
		l := newPods(t)
		f := aToB(80)
		l.established(f)
		l.endpoint(endpoint{ifindex: l.ifs[2], egress: rowB, ingress: rowB, addrs: []netip.Addr{a4}})
		l.want("the other's packet", l.fromPod(2, f.with(ack)), drop, datapath.ReasonNoRule)
		l.want("the other's SYN", l.fromPod(2, f), drop, datapath.ReasonNoRule)
	})
	t.Run("pending", func(t *testing.T) {
		l := newPods(t)
		f := aToB(80)
		l.established(f)
		l.peer(a4, peerA, datapath.AddrPending)
		l.flip(firstWord + 2)
		l.want("A's next packet", l.toPod(1, f.with(ack)), drop, datapath.ReasonPending)
	})
}

// P9: the reset that cuts a proxied flow still reaches the proxy, which may tell
// the other leg.
func TestP9Proxied(t *testing.T) {
	l := newPods(t)
	l.cell(rowA, datapath.ClassDefault, only(tcp, 80, ruleSet)...)
	f := aToB(80)
	l.want("SYN", l.fromPod(0, f), redirect, 0)
	l.cell(rowA, datapath.ClassDefault)
	l.flip(firstWord + 2)
	l.want("data", l.fromPod(0, f.with(ack)), drop, datapath.ReasonNoRule)
	l.want("reset", l.fromPod(0, f.with(rst)), redirect, 0)
	l.want("the proxy's reset of the other leg", l.run(datapath.FromProxyOut, l.ifs[5], l.ifs[5], f.with(rst).bytes()), redirect, 0)
	l.want("another reset", l.fromPod(0, f.with(rst)), drop, datapath.ReasonNoRule)
}
