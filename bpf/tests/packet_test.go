package tests

import (
	"net/netip"
	"testing"

	"weir.dev/weir/bpf/datapath"
)

// The pods of a lab, its neighbours and what they may do: pod 0 is A, pod 1 is B.
// A may open TCP 80 at B; B's ingress admits A there and nothing else.
var (
	a4       = netip.MustParseAddr("10.244.1.2")
	a6       = netip.MustParseAddr("fd00:244:1::2")
	b4       = netip.MustParseAddr("10.244.1.3")
	b6       = netip.MustParseAddr("fd00:244:1::3")
	stranger = netip.MustParseAddr("192.0.2.9")
	thisNode = netip.MustParseAddr("10.200.0.1")
	macA     = [6]byte{0x02, 0, 0, 0, 0, 0xa}
	macB     = [6]byte{0x02, 0, 0, 0, 0, 0xb}
	macHost  = [6]byte{0x02, 0, 0, 0, 0, 0xff}
)

const (
	peerWorld = 12
	peerHost  = 13
)

func newPods(t testing.TB) *lab {
	t.Helper()
	l := newLab(t, small)
	l.pods(rowA, datapath.RowOpen, datapath.RowOpen, rowB)
	l.prefix(netip.MustParsePrefix("0.0.0.0/0"), peerWorld, 0)
	l.prefix(netip.MustParsePrefix("2000::/3"), peerWorld, 0)
	l.peer(thisNode, peerHost, datapath.AddrHost)
	l.cell(rowA, datapath.ClassDefault, only(tcp, 80, datapath.Allow)...)
	l.cell(rowB, peerA, only(tcp, 80, datapath.Allow)...)
	l.cell(rowB, datapath.ClassDefault)
	return l
}

// pods gives A and B their rows.
func (l *lab) pods(aEgress, aIngress, bEgress, bIngress uint32) {
	l.Helper()
	l.endpoint(endpoint{ifindex: l.ifs[0], egress: aEgress, ingress: aIngress, podMAC: macA, hostMAC: macHost, addrs: []netip.Addr{a4, a6}})
	l.endpoint(endpoint{ifindex: l.ifs[1], egress: bEgress, ingress: bIngress, podMAC: macB, hostMAC: macHost, addrs: []netip.Addr{b4, b6}})
	l.peer(a4, peerA, 0)
	l.peer(a6, peerA, 0)
	l.peer(b4, peerB, 0)
	l.peer(b6, peerB, 0)
}

// aToB begins a flow from A to B's port.
func aToB(port uint16) frame {
	return frame{
		srcMAC: macA, dstMAC: macHost, src: a4, dst: b4,
		protocol: tcp, sport: 40000, dport: port, flags: syn,
	}
}

// P1: an entry counts for the interface it was judged on only, and a pod speaks
// from its own addresses only.
func TestP1(t *testing.T) {
	t.Run("a bridge floods A's frame for B to C, whose policy is open", func(t *testing.T) {
		l := newPods(t)
		l.endpoint(endpoint{ifindex: l.ifs[2], egress: 1, ingress: 1, addrs: []netip.Addr{stranger}})
		f := aToB(22)
		l.want("flooded to C", l.toPod(2, f), drop, datapath.ReasonNotForPod)
		if _, held := l.ct(f); held {
			t.Error("the flood left an entry")
		}
		l.want("A's next packet", l.toPod(1, f), drop, datapath.ReasonNoRule)
	})
	t.Run("C sends inside A's live tuple", func(t *testing.T) {
		l := newPods(t)
		l.endpoint(endpoint{ifindex: l.ifs[2], egress: 1, ingress: 1, addrs: []netip.Addr{stranger}})
		f := aToB(80)
		l.want("A's SYN leaves", l.fromPod(0, f), next, 0)
		before, _ := l.ct(f)
		l.want("C's forgery", l.fromPod(2, f.with(ack)), drop, datapath.ReasonSpoofedSource)
		l.want("C's forged reset", l.fromPod(2, f.with(rst)), drop, datapath.ReasonSpoofedSource)
		if after, _ := l.ct(f); after != before {
			t.Errorf("the forgery changed the entry: %+v, was %+v", after, before)
		}
	})
	t.Run("an unknown interface is closed", func(t *testing.T) {
		l := newPods(t)
		l.want("SYN", l.fromPod(3, aToB(80)), drop, datapath.ReasonClosed)
	})
	t.Run("IPv6 of another", func(t *testing.T) {
		l := newPods(t)
		f := aToB(80)
		f.src, f.dst = b6, a6
		l.want("SYN", l.fromPod(0, f), drop, datapath.ReasonSpoofedSource)
	})
}

// arp is an ARP packet.
func arp(sender netip.Addr, mac [6]byte) []byte {
	b := append(append([]byte{255, 255, 255, 255, 255, 255}, mac[:]...), 0x08, 0x06)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(append(b, mac[:]...), sender.AsSlice()...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, b4.AsSlice()...)
}

// P2: nothing but untagged ARP with the own sender, IPv4 and IPv6.
func TestP2(t *testing.T) {
	l := newPods(t)
	ethertype := func(t uint16) []byte {
		b := aToB(80).bytes()
		b[12], b[13] = byte(t>>8), byte(t)
		return b
	}
	tagged := func(tags ...uint16) []byte {
		f := aToB(80)
		f.tags = tags
		return f.bytes()
	}
	tests := []struct {
		name   string
		frame  []byte
		ret    int32
		reason datapath.Reason
	}{
		{"no tag", tagged(), next, 0},
		{"one tag", tagged(etherVLAN), drop, datapath.ReasonBadEthertype},
		{"two tags", tagged(etherVLAN, etherVLAN), drop, datapath.ReasonBadEthertype},
		{"three tags", tagged(etherQinQ, etherVLAN, etherVLAN), drop, datapath.ReasonBadEthertype},
		{"802.1ad", tagged(etherQinQ), drop, datapath.ReasonBadEthertype},
		{"MPLS", ethertype(0x8847), drop, datapath.ReasonBadEthertype},
		{"802.3 length", ethertype(0x0040), drop, datapath.ReasonBadEthertype},
		{"IPv4 said to be IPv6", ethertype(etherIPv6), drop, datapath.ReasonMalformed},
		{"own ARP", arp(a4, macA), next, 0},
		{"ARP for another's address", arp(b4, macA), drop, datapath.ReasonBadARP},
		{"ARP with another's MAC", arp(a4, macB), drop, datapath.ReasonBadARP},
		{"short ARP", arp(a4, macA)[:30], drop, datapath.ReasonBadARP},
	}
	for _, tt := range tests {
		l.want(tt.name, l.run(datapath.FromPod, l.ifs[0], l.ifs[0], tt.frame), tt.ret, tt.reason)
	}
	l.want("ARP to the pod", l.run(datapath.ToPod, l.ifs[0], l.ifs[1], arp(b4, macB)), next, 0)
}

// P3: whatever comes before a SYN, the SYN is judged by the sender's rules.
func TestP3(t *testing.T) {
	for name, flags := range map[string]uint8{"ACK": ack, "FIN": fin | ack, "RST": rst, "SYN and ACK": syn | ack, "nothing": 0} {
		t.Run(name, func(t *testing.T) {
			l := newPods(t)
			early := aToB(22).with(flags)
			l.toPod(1, early)
			early.payload = []byte("data")
			l.toPod(1, early)
			l.drops()
			l.want("then a SYN", l.toPod(1, aToB(22)), drop, datapath.ReasonNoRule)
			l.want("and its retransmission", l.toPod(1, aToB(22)), drop, datapath.ReasonNoRule)
		})
	}
	t.Run("the receiver's rights are no way around the sender's", func(t *testing.T) {
		for name, flags := range map[string]uint8{"ACK": ack, "FIN": fin | ack, "RST": rst, "SYN and ACK": syn | ack, "nothing": 0} {
			l := newPods(t)
			l.want(name+" to the receiver", l.toPod(1, aToB(22).with(flags)), drop, datapath.ReasonNoRule)
			l.want(name+" from the sender", l.fromPod(0, aToB(22).with(flags)), drop, datapath.ReasonNoRule)
		}
	})
	t.Run("an answer is picked up after conntrack was lost", func(t *testing.T) {
		l := newPods(t)
		l.pickUp()
		answer := aToB(80).back()
		l.cell(rowB, datapath.ClassDefault)
		l.pods(rowA, rowB, rowB, rowB)
		l.cell(rowB, peerA, only(tcp, 80, datapath.Allow)...)
		l.want("answer first", l.fromPod(1, answer.with(ack)), next, 0)
	})
	t.Run("a guessed entry is marked and given up at a SYN that is allowed", func(t *testing.T) {
		l := newPods(t)
		f := aToB(80)
		l.want("from the middle", l.toPod(1, f.with(ack)), next, 0)
		if ct, _ := l.ct(f); ct.Flags&datapath.CTGuessed == 0 {
			t.Errorf("flags %#x are not marked as guessed", ct.Flags)
		}
		l.want("SYN", l.toPod(1, f), next, 0)
		if ct, _ := l.ct(f); ct.Flags&datapath.CTGuessed != 0 {
			t.Errorf("flags %#x are still marked as guessed", ct.Flags)
		}
	})
}

// P12: a tunnel to a node would be taken apart there, and what is in it delivered
// as from anybody.
func TestP12(t *testing.T) {
	to := func(dst netip.Addr, protocol uint8, port uint16) frame {
		return frame{srcMAC: macA, src: a4, dst: dst, protocol: protocol, sport: 5000, dport: port}
	}
	l := newPods(t)
	l.pods(datapath.RowOpen, datapath.RowOpen, datapath.RowOpen, rowB)
	l.want("VXLAN", l.fromPod(0, to(thisNode, udp, 4789)), drop, datapath.ReasonTunnel)
	l.want("VXLAN on Linux's port", l.fromPod(0, to(thisNode, udp, 8472)), drop, datapath.ReasonTunnel)
	l.want("Geneve", l.fromPod(0, to(thisNode, udp, 6081)), drop, datapath.ReasonTunnel)
	l.want("IPIP", l.fromPod(0, to(thisNode, 4, 0)), drop, datapath.ReasonTunnel)
	l.want("IPv6 in IPv4", l.fromPod(0, to(thisNode, 41, 0)), drop, datapath.ReasonTunnel)
	l.want("GRE", l.fromPod(0, to(thisNode, 47, 0)), drop, datapath.ReasonTunnel)
	l.want("other UDP to the node", l.fromPod(0, to(thisNode, udp, 53)), next, 0)
	for _, many := range []string{"255.255.255.255", "224.0.0.1", "239.1.1.1"} {
		l.want("VXLAN to "+many, l.fromPod(0, to(netip.MustParseAddr(many), udp, 4789)), drop, datapath.ReasonTunnel)
	}
	all := to(netip.MustParseAddr("ff02::1"), udp, 4789)
	all.src = a6
	l.prefix(netip.MustParsePrefix("::/0"), peerWorld, 0)
	l.want("VXLAN to all nodes of the link", l.fromPod(0, all), drop, datapath.ReasonTunnel)
	l.want("VXLAN to a pod is a pod's affair", l.fromPod(0, to(b4, udp, 4789)), next, 0)

	l.put(datapath.MapConfig, uint32(0), datapath.WeirConfig{AllowTunnels: 1, InNsid: -1, OutNsid: -1})
	l.want("switched on", l.fromPod(0, to(thisNode, udp, 4789)), next, 0)
}

// Headers that are not what they seem, or cannot be read to their end.
func TestMalformed(t *testing.T) {
	l := newPods(t)
	whole := aToB(80).bytes()
	cut := func(n int) []byte { return whole[:n] }
	changed := func(at int, v byte) []byte {
		b := append([]byte{}, whole...)
		b[at] = v
		return b
	}
	options := func(o ...byte) []byte {
		f := aToB(80)
		f.options = o
		return f.bytes()
	}
	tests := []struct {
		name  string
		frame []byte
		ret   int32
	}{
		{"no TCP header", cut(14 + 20), drop},
		{"half a TCP header", cut(14 + 20 + 10), drop},
		{"version 5", changed(14, 0x55), drop},
		{"header length 16", changed(14, 0x44), drop},
		{"header longer than the datagram", changed(14, 0x4f), drop},
		{"longer than the frame", changed(16, 0xff), drop},
		{"data offset 4", changed(14+20+12, 0x40), drop},
		{"data offset behind the end", changed(14+20+12, 0xf0), drop},
		{"padding behind the datagram", append(whole[:len(whole):len(whole)], 0, 0, 0), next},
		{"record route", options(7, 7, 4, 0, 0, 0, 0, 0), next},
		{"no-ops", options(1, 1, 1, 1), next},
		{"router alert", options(148, 4, 0, 0), next},
		{"loose source route", options(131, 7, 4, 10, 0, 0, 1, 0), drop},
		{"strict source route behind a no-op", options(1, 137, 7, 4, 10, 0, 0, 1), drop},
		{"option of length 0", options(7, 0, 0, 0), drop},
	}
	for _, tt := range tests {
		l.want(tt.name, l.run(datapath.FromPod, l.ifs[0], l.ifs[0], tt.frame), tt.ret, datapath.ReasonMalformed)
	}
	mapped := aToB(80)
	mapped.src, mapped.dst = netip.AddrFrom16(a4.As16()), netip.AddrFrom16(b4.As16())
	l.want("IPv4-mapped addresses on the wire", l.fromPod(0, mapped), drop, datapath.ReasonMalformed)
}
