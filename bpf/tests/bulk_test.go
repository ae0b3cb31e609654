package tests

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// Much goes through both proxies unharmed, in frames as large as links make them.
func TestBulk(t *testing.T) {
	const size = 8 << 20
	var seed [32]byte
	content := make([]byte, size)
	rand.NewChaCha8(seed).Read(content)
	want := sha256.Sum256(content)

	one := newNode(t)
	two := newPair(t, newNode(t), newNode(t))
	two.join(t)
	for where, p := range map[string]*pair{"one node": newPair(t, one, one), "two nodes": two} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/IPv6=%t", where, v6), func(t *testing.T) {
				server := netip.AddrPortFrom(p.server.addr(v6), 8080)
				l := p.server.listen(t, server, false)
				go func() {
					c, err := l.AcceptTCP()
					if err != nil {
						return
					}
					defer c.Close()
					c.ReadFrom(bytes.NewReader(content))
				}()
				p.policy(ruleSet, ruleSet)
				p.clientNode.cell(rowA, peerB, only(tcp, 8080, ruleSet)...)
				p.serverNode.cell(rowB, peerA, only(tcp, 8080, ruleSet)...)
				in := p.in.conns.Load()
				c, err := p.client.dial(netip.AddrPortFrom(p.client.addr(v6), p.port), server, false, patience)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(20 * time.Second))
				sum := sha256.New()
				n, err := io.Copy(sum, c)
				if err != nil || n != size || [32]byte(sum.Sum(nil)) != want {
					t.Errorf("got %d bytes of %d, the same: %t, %v", n, size, [32]byte(sum.Sum(nil)) == want, err)
				}
				if t.Failed() {
					p.serverNode.logDrops(t)
				}
				if p.in.conns.Load() != in+1 {
					t.Error("weir-in saw no connection")
				}
			})
		}
	}
}
