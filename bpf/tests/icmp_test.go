package tests

import (
	"net/netip"
	"testing"

	"weir.dev/weir/bpf/datapath"
)

var router = netip.MustParseAddr("10.200.0.254")

// icmpError is what a router says to the sender of a datagram.
func icmpError(icmpType uint8, about frame) frame {
	f := frame{src: router, dst: about.src, protocol: icmp, icmpType: icmpType, payload: about.datagram()[:28]}
	if about.src.Is6() {
		f.src, f.protocol = netip.MustParseAddr("2001:db8::fe"), icmpv6
		f.payload = about.datagram()[:48]
	}
	return f
}

// Errors follow the flow they are about, wherever they come from.
func TestICMPErrors(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		l := newPods(t)
		f := aToB(80)
		tooBig := uint8(3)
		if v6 {
			f.src, f.dst, tooBig = a6, b6, 2
		}
		l.want("about nothing", l.toPod(0, icmpError(tooBig, f)), drop, datapath.ReasonICMPError)
		l.established(f)
		l.want("to A, about what A sent", l.toPod(0, icmpError(tooBig, f)), next, 0)
		l.want("to B, about what B sent", l.toPod(1, icmpError(tooBig, f.back())), next, 0)
		other := f
		other.sport++
		l.want("about another flow", l.toPod(0, icmpError(tooBig, other)), drop, datapath.ReasonICMPError)
		l.want("to B, about what A sent", l.toPod(1, icmpError(tooBig, f)), drop, datapath.ReasonNotForPod)
		stray := icmpError(tooBig, f)
		stray.dst = f.dst
		l.want("sent to B, about what A sent", l.toPod(1, stray), drop, datapath.ReasonICMPError)

		own := icmpError(tooBig, f)
		own.src = f.dst
		l.want("from B, about what A sent", l.fromPod(1, own), next, 0)
		elsewhere := icmpError(tooBig, f.back())
		elsewhere.src, elsewhere.dst = f.src, stranger
		if v6 {
			elsewhere.dst = netip.MustParseAddr("2001:db8::66")
		}
		l.want("from A to a stranger, about what B sent", l.fromPod(0, elsewhere), drop, datapath.ReasonICMPError)
		l.want("from A, in B's name", l.fromPod(0, own), drop, datapath.ReasonSpoofedSource)

		l.cellOf(0, rowA, peerB)
		l.flip(firstWord + 2)
		l.want("about what is denied now", l.toPod(0, icmpError(tooBig, f)), drop, datapath.ReasonNoRule)
		if ct, _ := l.ct(f); ct.Flags&datapath.CTDenied != 0 {
			t.Error("an error marked its flow")
		}
	}
}

// An error about a leg of a proxied flow goes to the proxy, which sent it (P14).
func TestP14(t *testing.T) {
	l := newPods(t)
	f := aToB(80)
	l.cell(rowA, datapath.ClassDefault, only(tcp, 80, ruleSet)...)
	l.want("SYN", l.fromPod(0, f), redirect, 0)
	l.want("too big", l.toPod(0, icmpError(3, f)), redirect, 0)
}

func TestRedirects(t *testing.T) {
	l := newPods(t)
	f := aToB(80)
	l.established(f)
	l.want("a router's redirect", l.toPod(0, icmpError(5, f)), drop, datapath.ReasonICMPError)
}

// Echoes are flows of their id; the answer is judged as the question.
func TestEcho(t *testing.T) {
	l := newPods(t)
	l.cell(rowA, datapath.ClassDefault, only(icmp, 8, datapath.Allow)...)
	l.pods(rowA, rowB, datapath.RowOpen, datapath.RowOpen)
	ping := frame{srcMAC: macA, src: a4, dst: b4, protocol: icmp, icmpType: 8, icmpID: 5}
	pong := ping.back()
	pong.icmpType = 0
	l.want("an answer to nothing", l.toPod(0, pong), drop, datapath.ReasonUnknownFlow)
	l.want("question", l.fromPod(0, ping), next, 0)
	l.want("answer", l.toPod(0, pong), next, 0)
	l.flip(firstWord + 1)
	l.want("answer under a new word", l.toPod(0, pong), next, 0)
	pong.icmpID = 6
	l.want("answer with another id", l.toPod(0, pong), drop, datapath.ReasonUnknownFlow)
}

// Neighbour discovery passes with the pod's own addresses only, and no pod is a
// router.
func TestNeighbourDiscovery(t *testing.T) {
	linkLocal := netip.MustParseAddr("fe80::ff:fe00:a") // of macA
	all := netip.MustParseAddr("ff02::1")
	l := newPods(t)
	nd := func(icmpType uint8, src, target netip.Addr, hopLimit uint8) frame {
		f := frame{srcMAC: macA, src: src, dst: all, protocol: icmpv6, hopLimit: hopLimit}
		t := target.As16()
		f.l4 = append([]byte{icmpType, 0, 0, 0, 0, 0, 0, 0}, t[:]...)
		return f
	}
	unspecified := netip.IPv6Unspecified()
	tests := []struct {
		name string
		f    frame
		ret  int32
	}{
		{"solicitation", nd(135, a6, b6, 255), next},
		{"from the link-local address", nd(135, linkLocal, b6, 255), next},
		{"from another's link-local address", nd(135, netip.MustParseAddr("fe80::ff:fe00:b"), b6, 255), drop},
		{"duplicate address detection", nd(135, unspecified, a6, 255), next},
		{"from another's address", nd(135, b6, a6, 255), drop},
		{"from afar", nd(135, a6, b6, 64), drop},
		{"advertisement", nd(136, a6, a6, 255), next},
		{"of the link-local address", nd(136, linkLocal, linkLocal, 255), next},
		{"of another's address", nd(136, a6, b6, 255), drop},
		{"router solicitation", nd(133, linkLocal, unspecified, 255), next},
		{"router advertisement", nd(134, linkLocal, unspecified, 255), drop},
		{"redirect", nd(137, linkLocal, b6, 255), drop},
		{"listener report", nd(143, linkLocal, unspecified, 1), next},
		{"listener query", nd(130, linkLocal, unspecified, 1), drop},
	}
	for _, tt := range tests {
		l.want(tt.name, l.fromPod(0, tt.f), tt.ret, datapath.ReasonBadNDP)
	}
	to := func(dst netip.Addr, f frame) frame {
		f.dst = dst
		return f
	}
	outsider := netip.MustParseAddr("2001:db8::66")
	l.want("to a pod's address", l.fromPod(0, to(b6, nd(135, a6, b6, 255))), next, 0)
	l.want("to an outsider", l.fromPod(0, to(outsider, nd(135, a6, outsider, 255))), drop, datapath.ReasonBadNDP)
	l.want("a report to a pod", l.fromPod(0, to(b6, nd(131, a6, unspecified, 64))), drop, datapath.ReasonBadNDP)
	l.want("a report to a pod, arriving", l.toPod(1, to(b6, nd(131, a6, unspecified, 64))), drop, datapath.ReasonBadNDP)
	quoting := frame{src: a6, dst: b6, protocol: icmpv6, icmpType: 1, hopLimit: 255}
	quoting.payload = nd(131, b6, unspecified, 1).datagram()
	copy(quoting.payload[24:40], a6.AsSlice())
	l.want("an error that quotes a report", l.fromPod(0, quoting), drop, datapath.ReasonICMPError)
	l.want("to a pod, from its router", l.toPod(0, nd(134, netip.MustParseAddr("fe80::1"), unspecified, 255)), next, 0)
	l.want("to a pod, from afar", l.toPod(0, nd(135, b6, a6, 64)), drop, datapath.ReasonBadNDP)
	other := nd(136, b6, b6, 255)
	other.dst = b6
	l.want("for another", l.toPod(0, other), drop, datapath.ReasonBadNDP)
}
