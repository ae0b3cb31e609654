package status

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"weir.dev/weir/services/policy/internal/catalog"
)

// clock is a time that the test moves.
type clock struct{ now time.Time }

func (c *clock) read() time.Time { return c.now }

func at(revision uint64) catalog.Position {
	return catalog.Position{Generation: 1, Revision: revision}
}

func TestReplicasKnowOfEachOthersNodes(t *testing.T) {
	c := &clock{time.Unix(1000, 0)}
	a, b := New(c.read), New(c.read)
	closeN1 := a.Opened("n1")
	a.InForce("n1", at(5))
	b.Opened("n2")
	b.InForce("n2", at(7))
	share := func() {
		own, _ := b.Own()
		a.Merge("weir.acks.b", own)
	}
	share()
	enforced, live, stale := Enforced(a.All(), at(6))
	if enforced != 1 || live != 2 || len(stale) != 0 {
		t.Errorf("revision 6: %d/%d, stale %v, want 1/2", enforced, live, stale)
	}
	// n1 moves to b: what b says of it counts, although a knew it too.
	closeN1()
	c.now = c.now.Add(time.Second)
	closeAtB := b.Opened("n1")
	b.InForce("n1", at(8))
	share()
	if enforced, live, _ := Enforced(a.All(), at(6)); enforced != 2 || live != 2 {
		t.Errorf("after the move: %d/%d, want 2/2", enforced, live)
	}
	b.Refused("n1", at(8), "no room")
	share()
	if got := a.All()[0]; got.LastNack != "no room" || got.Pos != at(8) {
		t.Errorf("after a refusal: %+v", got)
	}
	closeAtB()
	share()
	if _, live, stale := Enforced(a.All(), at(6)); live != 1 || !cmp.Equal(stale, []string{"n1"}) {
		t.Errorf("n1 gone: %d live, stale %v, want n1", live, stale)
	}
	// A replica that is not heard of for a while has no live nodes.
	c.now = c.now.Add(tableLife + time.Second)
	if _, live, stale := Enforced(a.All(), at(6)); live != 0 || len(stale) != 2 {
		t.Errorf("b not heard of: %d live, stale %v, want both stale", live, stale)
	}
}

func TestAnotherGenerationIsNotEnforced(t *testing.T) {
	n := New(time.Now)
	n.Opened("n1")
	n.InForce("n1", catalog.Position{Generation: 1, Revision: 90})
	if enforced, live, _ := Enforced(n.All(), catalog.Position{Generation: 2, Revision: 3}); enforced != 0 || live != 1 {
		t.Errorf("got %d/%d, want 0/1", enforced, live)
	}
}

func TestLatencyIsMeasuredOnceEverywhere(t *testing.T) {
	c := &clock{time.Unix(1000, 0)}
	n := New(c.read)
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "h", Help: "h", Buckets: []float64{1, 5}})
	l := NewLatency()
	l.Begin(at(4), c.now, h)
	n.Opened("n1")
	n.Opened("n2")
	n.InForce("n1", at(4))
	n.InForce("n2", at(3))
	l.look(n.All(), c.now)
	if got := testutil.CollectAndCount(h); got != 1 || len(l.waiting) != 1 {
		t.Fatalf("measured although n2 does not have it: %d waiting", len(l.waiting))
	}
	c.now = c.now.Add(2 * time.Second)
	n.InForce("n2", at(9))
	l.look(n.All(), c.now)
	if len(l.waiting) != 0 {
		t.Error("still waiting although it is in force everywhere")
	}
	l.Begin(at(20), c.now, h)
	c.now = c.now.Add(keep)
	l.look(n.All(), c.now)
	if len(l.waiting) != 0 {
		t.Error("waits for ever for what does not come")
	}
}
