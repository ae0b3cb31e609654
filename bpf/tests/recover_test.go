package tests

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"weir.dev/weir/bpf/datapath"
)

// request says a word on an open connection and wants it back, with the client's
// own address.
func request(t testing.TB, c *net.TCPConn, word string) {
	t.Helper()
	if got, want := echo(t, c, word), c.LocalAddr().String()+" "+word; got != want {
		t.Fatalf("answered %q, want %q", got, want)
	}
}

// echo says a word on an open connection and returns the answer.
func echo(t testing.TB, c *net.TCPConn, word string) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte(word)); err != nil {
		t.Fatalf("send %q: %v", word, err)
	}
	buf := make([]byte, 128)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatalf("no answer to %q: %v", word, err)
	}
	return string(buf[:n])
}

// P21: entries are lost in mid-connection. What the proxy has a connection of
// stays with the proxy; what it does not, though its listeners would answer to
// any tuple, is not taken for its own.
func TestP21(t *testing.T) {
	n := newNode(t)
	p := newPair(t, n, n)
	for _, v6 := range []bool{false, true} {
		for _, tt := range []struct{ egress, ingress uint32 }{
			{datapath.Allow, datapath.Allow}, {ruleSet, datapath.Allow},
			{datapath.Allow, ruleSet}, {ruleSet, ruleSet},
		} {
			t.Run(fmt.Sprintf("IPv6=%t/egress=%d/ingress=%d", v6, tt.egress, tt.ingress), func(t *testing.T) {
				p.recover(t, v6, tt.egress, tt.ingress)
			})
		}
	}
}

func (p *pair) recover(t *testing.T, v6 bool, egress, ingress uint32) {
	n := p.clientNode
	p.policy(egress, ingress)
	server := netip.AddrPortFrom(p.server.addr(v6), 80)
	client := netip.AddrPortFrom(p.client.addr(v6), p.port)
	c, err := p.client.dial(client, server, false, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	request(t, c, "before")
	in, out := p.in.conns.Load(), p.out.conns.Load()

	key, srcFirst := datapath.CtKey(client, server, tcp, 0)
	if err := n.Maps[datapath.MapCtTCP].Delete(key); err != nil {
		t.Fatal(err)
	}
	request(t, c, "after")
	request(t, c, "again")
	if p.in.conns.Load() != in || p.out.conns.Load() != out {
		t.Error("the proxy saw a new connection")
	}
	var ct datapath.WeirCt
	if err := n.Maps[datapath.MapCtTCP].Lookup(key, &ct); err != nil {
		t.Fatalf("no new entry: %v", err)
	}
	const proxied = datapath.CTProxiedEgress | datapath.CTProxiedIngress
	want := uint32(0)
	if egress == ruleSet {
		want |= datapath.CTProxiedEgress
	}
	if ingress == ruleSet {
		want |= datapath.CTProxiedIngress
	}
	if got := ct.Flags & proxied; got != want {
		t.Errorf("new entry is proxied as %#x, want %#x", got, want)
	}
	if got := ct.Flags&datapath.CTAInitiates != 0; got != srcFirst {
		t.Errorf("new entry says A initiates: %t, want %t", got, srcFirst)
	}
	if t.Failed() {
		n.logDrops(t)
	}
}

// Policy changes under an open connection through both proxies.
func TestKeepAlive(t *testing.T) {
	n := newNode(t)
	p := newPair(t, n, n)
	p.policy(ruleSet, ruleSet)
	server := netip.AddrPortFrom(p.server.v4, 80)
	c, err := p.client.dial(netip.AddrPortFrom(p.client.v4, p.port), server, false, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	request(t, c, "before")
	p.policy(datapath.Allow, ruleSet)
	request(t, c, "without rules at egress")
	p.policy(datapath.Allow, datapath.Allow)
	request(t, c, "without rules")
	p.policy(ruleSet, ruleSet)
	request(t, c, "with rules again")
	p.policy(datapath.Allow, datapath.Deny)
	if _, err := exchange(p.client.namespace, netip.AddrPortFrom(p.client.v4, p.port+1000), server, refusal); err == nil {
		t.Error("a new connection is answered though denied")
	}
}

// Connections open, talk and close through both proxies while the word moves
// all the time; the policy says the same under every word, so none may notice.
func TestFlipsUnderLoad(t *testing.T) {
	const clients, requests = 8, 40
	n := newNode(t)
	p := newPair(t, n, n)
	p.policy(ruleSet, ruleSet)
	server := netip.AddrPortFrom(p.server.v4, 80)
	stop := make(chan struct{})
	var flips, load sync.WaitGroup
	flips.Go(func() {
		for word := p.word; ; word++ {
			select {
			case <-stop:
				return
			default:
				n.flip(word)
			}
		}
	})
	failed := make(chan error, clients*requests)
	for i := range clients {
		load.Go(func() {
			for r := range requests {
				from := netip.AddrPortFrom(p.client.v4, uint16(33000+i*1000+r))
				if _, err := exchange(p.client.namespace, from, server, patience); err != nil {
					failed <- err
				}
			}
		})
	}
	load.Wait()
	close(stop)
	flips.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	for _, e := range n.drops() {
		if e.Protocol == tcp {
			t.Errorf("dropped as %s, flags %#x", datapath.Reason(e.Reason), e.TcpFlags)
		}
	}
	if got := p.in.conns.Load(); got != clients*requests || p.out.conns.Load() != got {
		t.Errorf("weir-in saw %d connections and weir-out %d, want %d", got, p.out.conns.Load(), clients*requests)
	}
	if t.Failed() {
		n.logDrops(t)
	}
}
