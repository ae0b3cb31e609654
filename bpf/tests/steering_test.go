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

// TestP5 runs all pairs of {deny, allow, HTTP} at egress and ingress, between
// pods of one node and of two. The app must see the client's own address, and
// exactly the proxies that the policy names must see the connection.
func TestP5(t *testing.T) {
	one := newNode(t)
	pairOnOneNode := newPair(t, one, one)
	pairOnTwoNodes := newPair(t, newNode(t), newNode(t))
	pairOnTwoNodes.join(t)
	verdicts := []uint32{datapath.Deny, datapath.Allow, ruleSet}
	for _, v6 := range []bool{false, true} {
		for _, egress := range verdicts {
			for _, ingress := range verdicts {
				name := fmt.Sprintf("IPv6=%t/egress=%d/ingress=%d", v6, egress, ingress)
				t.Run("one node/"+name, func(t *testing.T) { pairOnOneNode.try(t, v6, egress, ingress) })
				t.Run("two nodes/"+name, func(t *testing.T) { pairOnTwoNodes.try(t, v6, egress, ingress) })
			}
		}
	}
}

// pair is a client and a server pod, on nodes that may be the same.
type pair struct {
	clientNode, serverNode *node
	client, server         *pod
	in, out                *relay
	word                   uint64
	port                   uint16
}

func newPair(t testing.TB, clientNode, serverNode *node) *pair {
	p := &pair{clientNode: clientNode, serverNode: serverNode, word: firstWord, port: 40000}
	p.client, p.server = clientNode.pod(t, 2), serverNode.pod(t, 3)
	for _, n := range []*node{clientNode, serverNode} {
		for _, v6 := range []bool{false, true} {
			n.peer(p.client.addr(v6), peerA, 0)
			n.peer(p.server.addr(v6), peerB, 0)
		}
	}
	clientNode.rows(p.client, peerA, rowA, datapath.RowOpen)
	serverNode.rows(p.server, peerB, datapath.RowOpen, rowB)
	p.in = serverNode.startRelay(t, serverNode.in, datapath.MapListenersIn)
	p.out = clientNode.startRelay(t, clientNode.out, datapath.MapListenersOut)
	for _, v6 := range []bool{false, true} {
		p.server.serveWhoami(t, netip.AddrPortFrom(p.server.addr(v6), 80))
	}
	return p
}

// join lays a link between the two nodes, and the routes over it.
func (p *pair) join(t testing.TB) {
	a, b := p.clientNode, p.serverNode
	a.veth(t, "fabric", b.namespace, "fabric")
	for _, n := range []*node{a, b} {
		n.up(t, "fabric")
	}
	for _, v6 := range []bool{false, true} {
		p.fabricRoute(t, a, b, p.server.addr(v6))
		p.fabricRoute(t, b, a, p.client.addr(v6))
	}
}

func (p *pair) fabricRoute(t testing.TB, from, to *node, addr netip.Addr) {
	from.route(t, "fabric", hostNet(addr), netip.Addr{})
	from.neighbour(t, "fabric", addr, to.link(t, "fabric").Attrs().HardwareAddr)
}

// policy puts verdicts for the server's port 80 in force, under a new word, and
// takes another client port.
func (p *pair) policy(egress, ingress uint32) {
	p.clientNode.cell(rowA, peerB, only(tcp, 80, egress)...)
	p.serverNode.cell(rowB, peerA, only(tcp, 80, ingress)...)
	p.word += 2 // the same side: both are written alike
	p.port++
	p.clientNode.flip(p.word)
	p.serverNode.flip(p.word)
}

// try makes one request under a policy.
func (p *pair) try(t *testing.T, v6 bool, egress, ingress uint32) {
	p.policy(egress, ingress)
	p.reach(t, netip.AddrPortFrom(p.client.addr(v6), p.port), netip.AddrPortFrom(p.server.addr(v6), 80), egress, ingress)
}

// reach makes one request and holds the answer, and the ways it took, against
// the policy in force.
func (p *pair) reach(t *testing.T, client, server netip.AddrPort, egress, ingress uint32) {
	t.Helper()
	in, out := p.in.conns.Load(), p.out.conns.Load()
	limit := patience
	denied := egress == datapath.Deny || ingress == datapath.Deny
	if denied {
		limit = refusal
	}
	got, err := exchange(p.client.namespace, client, server, limit)
	want := client.String() + " hello"
	switch {
	case denied && err == nil:
		t.Errorf("a denied request was answered with %q", got)
	case !denied && err != nil:
		t.Errorf("no answer: %v", err)
	case !denied && got != want:
		t.Errorf("answered %q, want %q", got, want)
	}
	if got, want := p.out.conns.Load()-out, b2i(egress == ruleSet); got != want {
		t.Errorf("weir-out saw %d connections, want %d", got, want)
	}
	if got, want := p.in.conns.Load()-in, b2i(ingress == ruleSet && egress != datapath.Deny); got != want {
		t.Errorf("weir-in saw %d connections, want %d", got, want)
	}
	if t.Failed() {
		p.clientNode.logDrops(t)
		p.serverNode.logDrops(t)
	}
}

// How long to wait for an answer that ought not to come, and for one that ought
// to, on a busy machine.
const (
	refusal  = 200 * time.Millisecond
	patience = 5 * time.Second
)

// exchange says hello on a new connection, twice, and returns the last answer.
// It waits for the connection until limit.
func exchange(ns *namespace, from, to netip.AddrPort, limit time.Duration) (string, error) {
	c, err := ns.dial(from, to, false, limit)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
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
