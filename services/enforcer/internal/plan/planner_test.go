package plan

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
	"weir.dev/weir/engine/rule"
)

// compareAny orders keys by how they print, for drawing in a fixed order.
func compareAny(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }

// modelOf returns a model whose sides both say s.
func modelOf(tb fataler, s State) (*Model, *Planner) {
	m := NewModel(2)
	p := NewPlanner(testLimits, m)
	if _, err := p.Apply(tb.Context(), s); err != nil {
		tb.Fatalf("apply: %v", err)
	}
	return m, p
}

func verdicts(m *Model, packets []Packet) []rule.Verdict {
	list := make([]rule.Verdict, len(packets))
	for i, f := range packets {
		list[i] = m.Judge(f).Verdict
	}
	return list
}

// TestEveryPrefixOfWritesIsOldOrNew is threat S3 and P11's premise: after each
// single write of every plan, each flow is judged as before or as after.
func TestEveryPrefixOfWritesIsOldOrNew(t *testing.T) {
	packets := flows()
	rapid.Check(t, func(t *rapid.T) {
		from := drawState(t)
		m, p := modelOf(t, from)
		for range 3 {
			to := drawChange(t, from)
			goal, _ := modelOf(t, to)
			before, after := verdicts(m, packets), verdicts(goal, packets)
			s := newStepper(m)
			was := p.realized
			s.after = func(n int, op Op) {
				for i, got := range verdicts(m, packets) {
					if got != before[i] && got != after[i] && !(got == rule.Denied && replaced(from, to, packets[i])) {
						t.Logf("from %+v", was)
						t.Logf("to   %+v", to)
						t.Fatalf("after write %d %T%+v: flow %+v is judged %d, before %d, after %d", n, op, op, packets[i], got, before[i], after[i])
					}
				}
			}
			p.target = s
			if _, err := p.Apply(t.Context(), to); err != nil {
				t.Fatalf("apply: %v", err)
			}
			wantBothSides(t, m, to)
			from = to
		}
	})
}

// replaced tells whether a packet's interface is another endpoint's now: for a
// moment it is nobody's.
func replaced(from, to State, p Packet) bool {
	return from.Endpoints[p.Ifindex].ID != to.Endpoints[p.Ifindex].ID
}

type contexter interface{ Context() context.Context }

type fataler interface {
	contexter
	Helper()
	Fatalf(format string, args ...any)
}

// wantBothSides checks that the maps say s on both sides.
func wantBothSides(t fataler, m *Model, s State) {
	t.Helper()
	live := m.Image
	rest := *live
	rest.Word++
	for _, im := range []*Image{live, &rest} {
		if diff := cmp.Diff(s, im.State(), stateOptions...); diff != "" {
			t.Fatalf("side %d does not say what is desired (-want +got):\n%s", im.Live(), diff)
		}
	}
}

var stateOptions = []cmp.Option{cmpopts.EquateEmpty(), cmpopts.EquateComparable(PeerRef{}, netip.Addr{}, netip.Prefix{})}

// TestKilledAfterEachWrite is threat P11: a planner that dies after any write
// leaves old or new verdicts; the next one rebuilds the resting side, moves the
// word, and arrives.
func TestKilledAfterEachWrite(t *testing.T) {
	packets := flows()
	rapid.Check(t, func(t *rapid.T) {
		from := drawState(t)
		to := drawChange(t, from)
		m, p := modelOf(t, from)
		goal, _ := modelOf(t, to)
		before, after := verdicts(m, packets), verdicts(goal, packets)

		s := newStepper(m)
		s.stop = rapid.IntRange(0, 60).Draw(t, "killed before write")
		p.target = s
		_, err := p.Apply(t.Context(), to)
		if err != nil && !errors.Is(err, errStopped) {
			t.Fatalf("apply: %v", err)
		}
		word := m.Image.Word
		next := newStepper(m)
		check := func(n int, op Op) {
			for i, got := range verdicts(m, packets) {
				if got != before[i] && got != after[i] && !(got == rule.Denied && replaced(from, to, packets[i])) {
					t.Fatalf("killed at %d, after write %d %T%+v of the next: flow %+v is judged %d, before %d, after %d", s.stop, n, op, op, packets[i], got, before[i], after[i])
				}
			}
		}
		next.after = check
		q := NewPlanner(testLimits, next)
		if err := q.Adopt(t.Context()); err != nil {
			t.Fatalf("adopt: %v", err)
		}
		if m.Image.Word == word {
			t.Fatalf("the word did not move at adoption")
		}
		if _, err := q.Apply(t.Context(), to); err != nil {
			t.Fatalf("apply: %v", err)
		}
		wantBothSides(t, m, to)
	})
}
