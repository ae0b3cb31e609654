package plan_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/plan"
	"weir.dev/weir/services/enforcer/internal/plan/plantest"
)

// tester is what *testing.T and *rapid.T share.
type tester interface {
	Helper()
	Context() context.Context
	Fatalf(format string, args ...any)
}

// realize returns maps whose sides both say s, and who writes them.
func realize(t tester, s plan.State) (*stepper, *plan.Planner) {
	t.Helper()
	m := newStepper(plan.NewModel(2))
	p := plan.NewPlanner(plantest.Limits(), m)
	if _, err := p.Apply(t.Context(), s); err != nil {
		t.Fatalf("apply: %v", err)
	}
	return m, p
}

func verdicts(m *plan.Model, packets []plan.Packet) []rule.Verdict {
	list := make([]rule.Verdict, len(packets))
	for i, f := range packets {
		list[i] = m.Judge(f).Verdict
	}
	return list
}

// watch checks after each write of m that each packet is judged as by from or
// as by to.
func watch(t tester, m *stepper, packets []plan.Packet, from, to plan.State) {
	was, _ := realize(t, from)
	will, _ := realize(t, to)
	before, after := verdicts(was.Model, packets), verdicts(will.Model, packets)
	m.after = func(n int, op plan.Op) {
		for i, got := range verdicts(m.Model, packets) {
			if got == before[i] || got == after[i] {
				continue
			}
			if got == rule.Denied && plantest.Replaced(from, to, packets[i].Ifindex) {
				continue
			}
			t.Fatalf("after write %d %T%+v: %+v is judged %d, before %d, after %d\nfrom %+v\nto   %+v", n, op, op, packets[i], got, before[i], after[i], from, to)
		}
	}
}

// TestS3EveryPrefixOfWritesIsOldOrNew: after each single write of
// every plan, over splits, merges and addresses that come, go and change their
// meaning with it, each flow is judged as before or as after, never by a mixture.
func TestS3EveryPrefixOfWritesIsOldOrNew(t *testing.T) {
	world := plantest.NewWorld(1, 2)
	packets := world.Packets()
	rapid.Check(t, func(t *rapid.T) {
		from := world.State(t)
		m, p := realize(t, from)
		for range 3 {
			to := world.Change(t, from)
			watch(t, m, packets, from, to)
			if _, err := p.Apply(t.Context(), to); err != nil {
				t.Fatalf("apply: %v", err)
			}
			wantBothSides(t, m.Model, to)
			from = to
		}
	})
}

// TestP11KilledBeforeEachWrite: an enforcer that dies before any
// write leaves old or new verdicts; the next one rebuilds the resting side,
// moves the word, and arrives, and shows no mixture on its way.
func TestP11KilledBeforeEachWrite(t *testing.T) {
	world := plantest.NewWorld(1, 2)
	packets := world.Packets()
	rapid.Check(t, func(t *rapid.T) {
		from := world.State(t)
		to := world.Change(t, from)
		m, p := realize(t, from)
		m.n, m.stop = 0, rapid.IntRange(0, 60).Draw(t, "killed before write")
		if _, err := p.Apply(t.Context(), to); err != nil && !errors.Is(err, errStopped) {
			t.Fatalf("apply: %v", err)
		}
		word := m.Image.Word
		m.stop = -1
		watch(t, m, packets, from, to)
		next := plan.NewPlanner(plantest.Limits(), m)
		if err := next.Adopt(t.Context()); err != nil {
			t.Fatalf("adopt: %v", err)
		}
		if m.Image.Word == word {
			t.Fatalf("the word did not move at adoption: flows of an address that changed its meaning go on")
		}
		res, err := next.Apply(t.Context(), to)
		if err != nil {
			t.Fatalf("apply: %v", err)
		}
		if !res.Moved {
			t.Fatalf("nobody learns that the word moved: connections that were forbidden before the death live on")
		}
		wantBothSides(t, m.Model, to)
	})
}

// TestAdoptedStateMayBeKept: what a death left, with peers of the planner's own in
// it, is a state to go on from before anything else is desired.
func TestAdoptedStateMayBeKept(t *testing.T) {
	world := plantest.NewWorld(1, 2)
	rapid.Check(t, func(t *rapid.T) {
		from := world.State(t)
		to := world.Change(t, from)
		m, p := realize(t, from)
		m.n, m.stop = 0, rapid.IntRange(0, 60).Draw(t, "killed before write")
		if _, err := p.Apply(t.Context(), to); err != nil && !errors.Is(err, errStopped) {
			t.Fatalf("apply: %v", err)
		}
		m.stop = -1
		next := plan.NewPlanner(plantest.Limits(), m)
		if err := next.Adopt(t.Context()); err != nil {
			t.Fatalf("adopt: %v", err)
		}
		kept := next.Realized()
		kept.Endpoints = nil
		if _, err := next.Apply(t.Context(), kept); err != nil {
			t.Fatalf("apply what is there, without endpoints: %v", err)
		}
		if _, err := next.Apply(t.Context(), to); err != nil {
			t.Fatalf("apply: %v", err)
		}
		wantBothSides(t, m.Model, to)
	})
}

// TestFailedWriteIsRepairedByTheNextApply: no restart is needed after an error.
func TestFailedWriteIsRepairedByTheNextApply(t *testing.T) {
	world := plantest.NewWorld(1, 2)
	rapid.Check(t, func(t *rapid.T) {
		from := world.State(t)
		to := world.Change(t, from)
		m, p := realize(t, from)
		m.n, m.stop = 0, rapid.IntRange(0, 60).Draw(t, "fails at write")
		if _, err := p.Apply(t.Context(), to); err != nil && !errors.Is(err, errStopped) {
			t.Fatalf("apply: %v", err)
		}
		m.stop = -1
		if _, err := p.Apply(t.Context(), to); err != nil {
			t.Fatalf("apply again: %v", err)
		}
		wantBothSides(t, m.Model, to)
	})
}

// TestJudgeAgreesWithModel: judging by a State is judging by the maps that say it.
func TestJudgeAgreesWithModel(t *testing.T) {
	world := plantest.NewWorld(1, 2)
	packets := world.Packets()
	rapid.Check(t, func(t *rapid.T) {
		s := world.State(t)
		m, _ := realize(t, s)
		judge := plan.NewJudge(s)
		for _, p := range packets {
			if got, want := judge.Judge(p), m.Judge(p); got != want {
				t.Fatalf("%+v: by the state %+v, by the maps %+v", p, got, want)
			}
		}
	})
}

// wantBothSides checks that the maps say s on both sides.
func wantBothSides(t tester, m *plan.Model, s plan.State) {
	t.Helper()
	live := m.Image
	rest := *live
	rest.Word++
	for _, im := range []*plan.Image{live, &rest} {
		if diff := cmp.Diff(s, im.State(), cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Fatalf("side %d does not say what is desired (-want +got):\n%s", im.Live(), diff)
		}
	}
}

// TestSlowPacketsAreOldOrNew holds the grace periods: a packet that began before
// some writes and ends after them, with no grace period between, is judged by
// one of the states that were in force meanwhile.
func TestSlowPacketsAreOldOrNew(t *testing.T) {
	world := plantest.NewWorld(1, 2)
	packets := world.Packets()
	type moment struct {
		image *plan.Image
		plan  int // under way
	}
	rapid.Check(t, func(t *rapid.T) {
		states := []plan.State{world.State(t)}
		m, p := realize(t, states[0])
		settled, _ := m.Read(t.Context())
		window := []moment{{settled, 0}} // since the last grace period
		var verdictsOf [][]rule.Verdict
		remember := func(s plan.State) {
			goal, _ := realize(t, s)
			verdictsOf = append(verdictsOf, verdicts(goal.Model, packets))
		}
		remember(states[0])
		for n := 1; n <= 4; n++ {
			to := world.Change(t, states[n-1])
			states = append(states, to)
			remember(to)
			m.after = func(_ int, op plan.Op) {
				now, _ := m.Read(t.Context())
				if _, waited := op.(plan.Wait); waited {
					window = nil
				}
				window = append(window, moment{now, n})
				began := window[rapid.IntRange(0, len(window)-1).Draw(t, "began")]
				for i, packet := range packets {
					got := plan.JudgeAcross(began.image, now, packet).Verdict
					ok := got == rule.Denied && began.image.Endpoints[packet.Ifindex].ID != now.Endpoints[packet.Ifindex].ID
					for k := max(began.plan-1, 0); k <= n; k++ {
						ok = ok || got == verdictsOf[k][i] || got == rule.Denied && plantest.Replaced(states[max(k-1, 0)], states[k], packet.Ifindex)
					}
					if !ok {
						t.Fatalf("%+v began in plan %d and is judged %d after %T%+v of plan %d", packet, began.plan, got, op, op, n)
					}
				}
			}
			if _, err := p.Apply(t.Context(), to); err != nil {
				t.Fatalf("apply: %v", err)
			}
		}
	})
}
