package tests

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"weir.dev/weir/bpf/datapath"
)

const (
	tcp     = 6
	peerA   = 10
	peerB   = 11
	rowA    = 2
	rowB    = 3
	ruleSet = 7
)

// TestP5 runs all pairs of {deny, allow, HTTP} at egress and ingress of a flow
// between two pods of one node. The app must see the client's own address, and
// exactly the proxies that the policy names must see the connection.
func TestP5(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, egress := range []uint32{datapath.Deny, datapath.Allow, ruleSet} {
			for _, ingress := range []uint32{datapath.Deny, datapath.Allow, ruleSet} {
				name := fmt.Sprintf("IPv6=%t/egress=%d/ingress=%d", v6, egress, ingress)
				t.Run(name, func(t *testing.T) { steerPair(t, v6, egress, ingress) })
			}
		}
	}
}

func steerPair(t *testing.T, v6 bool, egress, ingress uint32) {
	n := newNode(t)
	a, b := n.pod(t, 2), n.pod(t, 3)
	n.rows(a, peerA, rowA, datapath.RowOpen)
	n.rows(b, peerB, datapath.RowOpen, rowB)
	n.cell(rowA, peerB, only(tcp, 80, egress)...)
	n.cell(rowB, peerA, only(tcp, 80, ingress)...)
	in, out := n.startRelays(t)
	server := netip.AddrPortFrom(b.addr(v6), 80)
	client := netip.AddrPortFrom(a.addr(v6), 40000)
	b.serveWhoami(t, server)

	got, err := exchange(a.namespace, client, server)
	denied := egress == datapath.Deny || ingress == datapath.Deny
	want := client.String() + " hello"
	switch {
	case denied && err == nil:
		t.Errorf("a denied request was answered with %q", got)
	case !denied && err != nil:
		t.Errorf("no answer: %v", err)
	case !denied && got != want:
		t.Errorf("answered %q, want %q", got, want)
	}
	if want := b2i(egress == ruleSet); out.conns.Load() != want {
		t.Errorf("weir-out saw %d connections, want %d", out.conns.Load(), want)
	}
	if want := b2i(ingress == ruleSet && egress != datapath.Deny); in.conns.Load() != want {
		t.Errorf("weir-in saw %d connections, want %d", in.conns.Load(), want)
	}
	if t.Failed() {
		n.logDrops(t)
	}
}

// exchange says hello on a new connection, twice, and returns the last answer.
func exchange(ns *namespace, from, to netip.AddrPort) (string, error) {
	c, err := ns.dial(from, to, false, 500*time.Millisecond)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	buf := make([]byte, 128)
	var n int
	for range 2 {
		if _, err := c.Write([]byte("hello")); err != nil {
			return "", err
		}
		if n, err = c.Read(buf); err != nil {
			return "", err
		}
	}
	return string(buf[:n]), nil
}

func (n *node) logDrops(t testing.TB) {
	for _, e := range n.drops() {
		t.Logf("drop %s: if %d ingress %d %v:%d → %v:%d flags %#x peer %d row %d",
			datapath.Reason(e.Reason), e.Ifindex, e.Ingress,
			netip.AddrFrom16(e.Src.A).Unmap(), be16(e.Sport), netip.AddrFrom16(e.Dst.A).Unmap(), be16(e.Dport),
			e.TcpFlags, e.Peer, e.Row)
	}
}

func be16(v uint16) uint16 { return v<<8 | v>>8 }

func b2i(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
