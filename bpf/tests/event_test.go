package tests

import (
	"net/netip"
	"testing"

	"weir.dev/weir/bpf/datapath"
)

// An event says who, where, under which word and by what it was judged.
func TestEvents(t *testing.T) {
	l := newPods(t)
	f := aToB(22)
	l.toPod(1, f)
	drops := l.drops()
	if len(drops) != 1 {
		t.Fatalf("%d events, want one", len(drops))
	}
	got := drops[0]
	if got.Time == 0 {
		t.Error("the event has no time")
	}
	got.Time = 0
	want := datapath.WeirEvent{
		Word: firstWord, Src: addr16(a4), Dst: addr16(b4),
		Sport: datapath.NetworkOrder(40000), Dport: datapath.NetworkOrder(22),
		Protocol: tcp, Kind: uint8(datapath.EventDrop), Reason: uint8(datapath.ReasonNoRule),
		Ingress: 1, Ifindex: l.ifs[1], Endpoint: l.ifs[1] + 100,
		Peer: peerA, ClassId: peerA, Row: rowB, Port: 22, TcpFlags: syn,
	}
	if got != want {
		t.Errorf("event %+v, want %+v", got, want)
	}
}

// A packet from the middle of nothing is told of as what its sender did.
func TestEventOfUnknownFlow(t *testing.T) {
	l := newPods(t)
	l.pods(rowA, rowB, rowA, rowB)
	f := aToB(22).with(ack)
	l.fromPod(0, f)
	drops := l.drops()
	if len(drops) != 1 || drops[0].Ingress != 0 || drops[0].Row != rowA || drops[0].Port != 22 {
		t.Errorf("events %+v, want one of A's egress to port 22", drops)
	}
}

// Events that find their ring full are counted, and the packets dropped as ever.
func TestLostEvents(t *testing.T) {
	l := newPods(t)
	f := aToB(22)
	l.timed(t, l.Programs[datapath.ToPod], l.ifs[1], f.bytes(), 10000)
	told := len(l.drops())
	lost := l.lost(0)
	if lost == 0 || uint64(told)+lost != 10000 {
		t.Errorf("%d events told and %d lost, want 10000 together, some of them lost", told, lost)
	}
	if got := l.counted(datapath.ReasonNoRule, true); got != 10000 {
		t.Errorf("%d drops counted, want 10000", got)
	}
}

func (k *kernel) lost(ring uint32) uint64 {
	k.Helper()
	var perCPU []uint64
	if err := k.Maps[datapath.MapLost].Lookup(ring, &perCPU); err != nil {
		k.Fatal(err)
	}
	var sum uint64
	for _, n := range perCPU {
		sum += n
	}
	return sum
}

func TestReasonNames(t *testing.T) {
	for reason, want := range map[datapath.Reason]string{
		datapath.ReasonNone: "none", datapath.ReasonNoRule: "no-rule",
		datapath.ReasonHTTPStarted: "http-started", datapath.ReasonCount - 1: "bad-ndp",
		datapath.ReasonCount: "unknown", 255: "unknown",
	} {
		if got := reason.String(); got != want {
			t.Errorf("reason %d is %q, want %q", uint8(reason), got, want)
		}
	}
}

// The key in Go is the key in the kernel, whichever end sends.
func TestCtKey(t *testing.T) {
	a, b := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("[fd00::1]:443")
	c := netip.MustParseAddrPort("10.0.0.1:8080")
	for _, ends := range [][2]netip.AddrPort{{a, b}, {a, c}, {b, b}, {c, netip.MustParseAddrPort("10.0.0.2:1")}} {
		there, first := datapath.CtKey(ends[0], ends[1], tcp, 0)
		back, last := datapath.CtKey(ends[1], ends[0], tcp, 0)
		if there != back || first == last && ends[0] != ends[1] {
			t.Errorf("keys of %v differ: %+v and %+v, %t and %t", ends, there, back, first, last)
		}
	}
	// Keys of all other tests are looked up by CtKey after the programs wrote them.
}
