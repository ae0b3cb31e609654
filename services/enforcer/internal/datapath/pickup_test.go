package datapath

import (
	"testing"

	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/services/enforcer/internal/nodetest"
)

// Only who lost conntrack picks connections up from the middle, and a restart
// does not end that early.
func TestPickUpOnlyWithoutConntrack(t *testing.T) {
	n := nodetest.New(t)
	until := func(d *Datapath) uint32 {
		t.Helper()
		var c bpf.WeirConfig
		if err := d.Map(bpf.MapConfig).Lookup(uint32(0), &c); err != nil {
			t.Fatal(err)
		}
		return c.PickUpUntil
	}
	d := open(t, n)
	if got := until(d); got != 0 {
		t.Errorf("picks up until %d, unasked", got)
	}
	if err := d.PickUp(); err != nil {
		t.Fatal(err)
	}
	first := until(d)
	if first == 0 {
		t.Error("conntrack is new, but nothing is picked up")
	}
	d = reopen(t, n, d)
	if err := d.SetProxyWays(ProxyWays{InNSID: -1, OutNSID: -1}); err != nil {
		t.Fatal(err)
	}
	if err := d.PickUp(); err != nil {
		t.Fatal(err)
	}
	if got := until(d); got != first {
		t.Errorf("with conntrack adopted: until %d, want %d", got, first)
	}
}
