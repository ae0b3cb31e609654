package plan_test

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"testing"

	"weir.dev/weir/services/enforcer/internal/plan"
)

// BenchmarkOneAddressOfMany: a pod starts somewhere in a cluster of 250,000.
func BenchmarkOneAddressOfMany(b *testing.B) {
	s := cluster()
	for i := range uint32(250_000) {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 10<<24+1<<20+i)
		s.Addresses[netip.AddrFrom4(a)] = plan.PeerRef{Peer: plan.Peer(1 + i%3)}
	}
	other := clone(s)
	other.Addresses = maps.Clone(s.Addresses)
	other.Addresses[netip.MustParseAddr("10.9.9.9")] = plan.PeerRef{Peer: 3}
	limits := plan.Limits{Endpoints: 64, Addresses: 1 << 20, Prefixes: 64, Peers: 1024, Cells: 1024, Ranges: 1024, Services: 64, Backends: 64, Pairs: 64}
	p := plan.NewPlanner(limits, plan.NewModel(2))
	if _, err := p.Apply(b.Context(), s); err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		to := other
		if i%2 == 1 {
			to = s
		}
		if _, err := p.Apply(b.Context(), to); err != nil {
			b.Fatal(err)
		}
	}
}
