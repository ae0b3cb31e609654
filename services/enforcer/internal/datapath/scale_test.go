package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/services/enforcer/internal/nodetest"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// large is a node's state in a cluster of 250,000 pods of 20,000 identities,
// with peers and classes numbered from first on.
func large(first plan.Peer) plan.State {
	const pods, identities = 250_000, 20_000
	s := example()
	s.Addresses = make(map[netip.Addr]plan.PeerRef, pods)
	for i := range uint32(pods) {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 11<<24+i)
		s.Addresses[netip.AddrFrom4(a)] = plan.PeerRef{Peer: first + plan.Peer(i%identities)}
	}
	for p := range plan.Peer(identities) {
		s.Classes[first+p] = plan.Class(first + p%40)
	}
	return s
}

// TestLargeClusterIsLoadedInTime: the first load, a restart, and a restart that
// numbers everything anew. The limits are generous: the times are logged.
func TestLargeClusterIsLoadedInTime(t *testing.T) {
	n := nodetest.New(t)
	cfg := Config{BPFFS: n.BPFFS, Sizes: bpf.Sizes{CtTCP: 1024, CtAny: 1024}}
	d, err := Open(cfg, discard())
	if err != nil {
		t.Fatal(err)
	}
	first, again := large(10), large(25_000)
	measure := func(what string, f func()) {
		t.Helper()
		start := time.Now()
		f()
		took := time.Since(start)
		t.Logf("%s: %v", what, took)
		if took > 20*time.Second {
			t.Errorf("%s took %v", what, took)
		}
	}
	planner := plan.NewPlanner(d.Limits(), d)
	measure("load", func() { apply(t, planner, first) })
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	measure("open", func() {
		if d, err = Open(cfg, discard()); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { _ = d.Close() })
	planner = plan.NewPlanner(d.Limits(), d)
	measure("adopt", func() {
		if err := planner.Adopt(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	measure("number anew", func() {
		if res := apply(t, planner, again); !res.Moved {
			t.Error("the word did not move")
		}
	})
}
