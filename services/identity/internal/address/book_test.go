package address

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"weir.dev/weir/internal/bus"
)

func TestRemovalsAreForgottenAfterTheQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBook()
		remove := func(a netip.Addr, sequence uint64) {
			b.apply(bus.Batch{Entries: []bus.Entry{{Key: Key(a), Revision: sequence, Removed: true}}, Head: bus.Head{Sequence: sequence}, Complete: true})
		}
		first, second := netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:244:1::3")
		remove(first, 1)
		if left := b.quiet(first, time.Now()); left != Quarantine {
			t.Errorf("just removed: to wait for %v, want %v", left, Quarantine)
		}
		<-time.After(Quarantine)
		remove(second, 2)
		if left := b.quiet(first, time.Now()); left != 0 {
			t.Errorf("removed long ago: to wait for %v, want 0", left)
		}
		if len(b.removed) != 1 {
			t.Errorf("%d removals are remembered, want that of a moment ago", len(b.removed))
		}
	})
}
