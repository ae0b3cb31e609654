package tests

import (
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weir.dev/weir/bpf/datapath"
)

// P22: after the kernel's conntrack lost its table, too, it takes whoever speaks
// first for the originator. Here that is a server on another node, which may open
// nothing at the client; while connections are picked up its answers must pass.
func TestP22(t *testing.T) {
	n, far := newNode(t), newNode(t)
	p := newPair(t, n, far)
	p.join(t)
	n.pickUp()
	client, server := p.client, p.server
	n.translate(t, translation{netip.MustParseAddrPort("10.96.0.9:9"), netip.MustParseAddrPort("10.96.0.8:9"), netip.Addr{}})
	const rowNothing = 4
	n.rows(client, peerA, rowA, rowNothing)
	n.cell(rowA, peerB, only(tcp, 8080, datapath.Allow)...)
	n.cell(rowNothing, datapath.ClassDefault)
	far.cell(rowB, peerA, only(tcp, 8080, datapath.Allow)...)

	addr := netip.AddrPortFrom(server.v4, 8080)
	from := netip.AddrPortFrom(client.v4, 40000)
	l := server.listen(t, addr, false)
	c, err := client.dial(from, addr, false, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	app, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	key, srcFirst := datapath.CtKey(from, addr, tcp, 0)
	say := func(from io.Writer, to io.Reader, word string) {
		t.Helper()
		c.SetDeadline(time.Now().Add(patience))
		app.SetDeadline(time.Now().Add(patience))
		buf := make([]byte, 16)
		if _, err := io.WriteString(from, word); err != nil {
			t.Fatal(err)
		}
		if _, err := to.Read(buf); err != nil {
			n.logDrops(t)
			t.Fatalf("%s: %v", word, err)
		}
	}
	say(c, app, "question")
	for range 3 {
		if err := n.nl.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
			t.Fatal(err)
		}
		if err := n.Maps[datapath.MapCtTCP].Delete(key); err != nil {
			t.Fatal(err)
		}
		say(app, c, "answer first")
		say(c, app, "question")
		var ct datapath.WeirCt
		if err := n.Maps[datapath.MapCtTCP].Lookup(key, &ct); err != nil {
			t.Fatal(err)
		}
		if got := ct.Flags&datapath.CTAInitiates != 0; got != srcFirst {
			t.Errorf("the entry says that the server began: flags %#x", ct.Flags)
		}
	}
}
