package tests

import (
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"weir.dev/weir/bpf/datapath"
	"weir.dev/weir/bpf/judgetest"
)

// translation is what kube-proxy does to packets for one destination.
type translation struct {
	from       netip.AddrPort
	to         netip.AddrPort
	masquerade netip.Addr // this source, going to the destination; or none
}

// translate lays translations into the node, behind the pods' veths.
func (n *node) translate(t testing.TB, list ...translation) {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(n.fd)))
	if err != nil {
		t.Fatalf("open nftables: %v", err)
	}
	table := c.AddTable(&nftables.Table{Name: "kube-proxy", Family: nftables.TableFamilyINet})
	pre := c.AddChain(&nftables.Chain{
		Name: "pre", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	post := c.AddChain(&nftables.Chain{
		Name: "post", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	for _, tr := range list {
		family := uint32(unix.NFPROTO_IPV4)
		if tr.to.Addr().Is6() {
			family = unix.NFPROTO_IPV6
		}
		dnat := append(matchAddr(tr.from.Addr(), false), matchPort(tr.from.Port())...)
		dnat = append(dnat,
			&expr.Immediate{Register: 1, Data: tr.to.Addr().AsSlice()},
			&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(tr.to.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2})
		c.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: dnat})
		if tr.masquerade.IsValid() {
			c.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: append(matchAddr(tr.masquerade, true), &expr.Masq{})})
		}
	}
	if err := c.Flush(); err != nil {
		t.Fatalf("write nftables: %v", err)
	}
}

func matchAddr(a netip.Addr, source bool) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(16)
	if a.Is6() {
		family, offset = unix.NFPROTO_IPV6, 24
	}
	if source {
		offset -= uint32(a.BitLen() / 8)
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
	}
}

func matchPort(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{tcp}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

// outside is a client beyond the node, in both families.
type outside struct {
	*namespace
	own  map[bool]netip.Addr // by IPv6
	node map[bool]netip.Addr // the node's own address
}

func (n *node) outside(t testing.TB) *outside {
	t.Helper()
	o := &outside{
		namespace: newNamespace(t),
		own:       map[bool]netip.Addr{false: stranger, true: netip.MustParseAddr("2001:db8::9")},
		node:      map[bool]netip.Addr{false: thisNode, true: netip.MustParseAddr("fd00:200:1::1")},
	}
	n.veth(t, "uplink", o.namespace, "eth0")
	n.up(t, "uplink")
	o.up(t, "eth0")
	for _, v6 := range []bool{false, true} {
		o.address(t, "eth0", o.own[v6])
		o.neighbour(t, "eth0", o.node[v6], n.link(t, "uplink").Attrs().HardwareAddr)
		o.route(t, "eth0", hostNet(o.node[v6]), netip.Addr{})
		n.address(t, "uplink", o.node[v6])
		n.neighbour(t, "uplink", o.own[v6], o.link(t, "eth0").Attrs().HardwareAddr)
		n.route(t, "uplink", hostNet(o.own[v6]), netip.Addr{})
		n.peer(o.own[v6], peerWorld, 0)
		n.peer(o.node[v6], peerHost, datapath.AddrHost)
	}
	return o
}

// P4: a packet with the node's own address is the node's only if the node made
// it. What came through a NodePort was sent by another, and is judged as that.
func TestP4(t *testing.T) {
	n := newNode(t)
	b := n.pod(t, 3)
	o := n.outside(t)
	n.rows(b, peerB, datapath.RowOpen, rowB)
	var list []translation
	for _, v6 := range []bool{false, true} {
		server := netip.AddrPortFrom(b.addr(v6), 80)
		b.serveWhoami(t, server)
		list = append(list, translation{netip.AddrPortFrom(o.node[v6], 30080), server, o.own[v6]})
	}
	n.translate(t, list...)
	n.cell(rowB, datapath.ClassDefault)
	in := n.startRelay(t, n.in, datapath.MapListenersIn)
	word := uint64(firstWord)
	admit := func(t *testing.T, peer, verdict uint32) {
		for _, p := range []uint32{peerHost, peerWorld} {
			n.cell(rowB, p, only(tcp, 80, uint32(b2i(p == peer))*verdict)...)
		}
		word += 2
		n.flip(word)
		n.drops()
	}
	for v6, family := range map[bool]string{false: "IPv4", true: "IPv6"} {
		nodePort := netip.AddrPortFrom(o.node[v6], 30080)
		direct := netip.AddrPortFrom(b.addr(v6), 80)
		from := func(a netip.Addr) netip.AddrPort { word++; word++; return netip.AddrPortFrom(a, uint16(30000+word)) }
		t.Run(family+"/only the node is admitted", func(t *testing.T) {
			admit(t, peerHost, datapath.Allow)
			if got, err := exchange(o.namespace, from(o.own[v6]), nodePort, refusal); err == nil {
				t.Errorf("a stranger is answered %q through the NodePort", got)
			}
			n.wantDrop(t, datapath.ReasonNoRule, peerWorld)
			if _, err := exchange(n.namespace, from(o.node[v6]), direct, patience); err != nil {
				t.Errorf("the node itself is not answered: %v", err)
			}
		})
		t.Run(family+"/the stranger is admitted", func(t *testing.T) {
			admit(t, peerWorld, datapath.Allow)
			c, err := o.dial(from(o.own[v6]), nodePort, false, patience)
			if err != nil {
				t.Fatalf("the stranger is not answered: %v", err)
			}
			defer c.Close()
			echo(t, c, "before")
			admit(t, peerWorld, datapath.Allow)
			echo(t, c, "after")
			if got, err := exchange(n.namespace, from(o.node[v6]), direct, refusal); err == nil {
				t.Errorf("the node is answered %q", got)
			}
		})
		t.Run(family+"/both through the proxy", func(t *testing.T) {
			admit(t, peerWorld, ruleSet)
			before := in.conns.Load()
			c, err := o.dial(from(o.own[v6]), nodePort, false, patience)
			if err != nil {
				t.Fatalf("the stranger is not answered: %v", err)
			}
			defer c.Close()
			echo(t, c, "before")
			admit(t, peerWorld, ruleSet)
			echo(t, c, "after")
			admit(t, peerHost, ruleSet)
			if _, err := exchange(n.namespace, from(o.node[v6]), direct, patience); err != nil {
				t.Errorf("the node itself is not answered: %v", err)
			}
			if got := in.conns.Load() - before; got != 2 {
				t.Errorf("weir-in saw %d connections, want 2", got)
			}
		})
	}
}

// wantDrop wants a drop event of a TCP packet with a reason and a peer.
func (n *node) wantDrop(t testing.TB, reason datapath.Reason, peer uint32) {
	t.Helper()
	events := n.drops()
	for _, e := range events {
		if e.Protocol == tcp && datapath.Reason(e.Reason) == reason && e.Peer == peer {
			return
		}
	}
	t.Errorf("no drop as %s of peer %d among %d events", reason, peer, len(events))
}

// A pod reaches a Service's address under the rules of its backends; with HTTP
// rules through weir-out, and still as itself.
func TestService(t *testing.T) {
	n := newNode(t)
	p := newPair(t, n, n)
	services := map[bool]netip.AddrPort{
		false: netip.MustParseAddrPort("10.96.0.1:8000"), true: netip.MustParseAddrPort("[fd00:96::1]:8000"),
	}
	l := &lab{kernel: n.kernel}
	var list []translation
	for v6, svc := range services {
		list = append(list, translation{from: svc, to: netip.AddrPortFrom(p.server.addr(v6), 80)})
		l.service(judgetest.Service{
			Addr: svc.Addr(), Protocol: tcp, Port: svc.Port(),
			Backends: []judgetest.Backend{{Peer: peerB, Port: 80}},
		})
	}
	n.translate(t, list...)
	for v6, svc := range services {
		for _, egress := range []uint32{datapath.Deny, datapath.Allow, ruleSet} {
			for _, ingress := range []uint32{datapath.Deny, datapath.Allow, ruleSet} {
				p.policy(egress, ingress)
				p.reach(t, netip.AddrPortFrom(p.client.addr(v6), p.port), svc, egress, ingress)
			}
		}
	}
}
