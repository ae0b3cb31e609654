package datapath

import (
	"context"
	"errors"
	"testing"

	"pgregory.net/rapid"
	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/services/enforcer/internal/nodetest"
	"weir.dev/weir/services/enforcer/internal/plan"
	"weir.dev/weir/services/enforcer/internal/plan/plantest"
)

// pods makes a node with two attached interfaces and the world of their states.
func pods(t *testing.T) (*nodetest.Node, *Datapath, *plantest.World) {
	t.Helper()
	n := nodetest.New(t)
	a, b := n.Pod(t, "10.0.7.1"), n.Pod(t, "10.0.7.2")
	d := open(t, n)
	if err := d.SetProxyWays(ProxyWays{In: a.Ifindex, Out: b.Ifindex, InNSID: -1, OutNSID: -1}); err != nil {
		t.Fatal(err)
	}
	return n, d, plantest.NewWorld(a.Ifindex, b.Ifindex)
}

func draw[V any](seed int, gen func(*rapid.T) V) V { return rapid.Custom(gen).Example(seed) }

// wantJudged checks that the kernel judges each packet as one of the states does.
func wantJudged(t *testing.T, d *Datapath, packets []plan.Packet, states ...plan.State) {
	t.Helper()
	var judges []*plan.Judge
	for _, s := range states {
		judges = append(judges, plan.NewJudge(s))
	}
	for _, p := range packets {
		if p.Own.Is4() != p.Peer.Is4() {
			continue
		}
		got := probe(t, d, p)
		ok := len(states) > 1 && plantest.Replaced(states[0], states[1], p.Ifindex) && got == dropped
		for _, j := range judges {
			ok = ok || got == outcomeOf(j.Judge(p).Verdict)
		}
		if !ok {
			t.Fatalf("%+v: outcome %d, but a judgement of %+v", p, got, judges[len(judges)-1].Judge(p))
		}
	}
}

// TestKernelJudgesAsTheModel: two implementations of one judgement, over random
// states and every packet that tells them apart.
func TestKernelJudgesAsTheModel(t *testing.T) {
	_, d, world := pods(t)
	planner := plan.NewPlanner(d.Limits(), d)
	for seed := range 40 {
		s := draw(seed, world.State)
		apply(t, planner, s)
		wantJudged(t, d, world.Packets(), s)
	}
}

// TestEstablishedFlowsAreJudgedByTheLivePolicy: what conntrack remembers never
// outlives the policy that allowed it, and whether a connection goes through the
// proxy never changes.
func TestEstablishedFlowsAreJudgedByTheLivePolicy(t *testing.T) {
	_, d, world := pods(t)
	world.Ifindexes = world.Ifindexes[:1] // two would have one address, and one flow
	planner := plan.NewPlanner(d.Limits(), d)
	state := draw(100, world.State)
	apply(t, planner, state)
	established := 0
	for seed := range 200 {
		for _, name := range []string{bpf.MapCtTCP, bpf.MapCtAny} {
			if _, err := d.forget(t.Context(), name, func(bpf.WeirCtKey, bpf.WeirCt) bool { return true }); err != nil {
				t.Fatal(err)
			}
		}
		began := map[plan.Packet]outcome{}
		for _, p := range world.Packets() {
			if got := probe(t, d, p); got != dropped {
				began[p] = got
			}
		}
		state = draw(200+seed, func(t *rapid.T) plan.State { return world.Change(t, state) })
		apply(t, planner, state)
		judge := plan.NewJudge(state)
		for p, was := range began {
			want := was
			if now := outcomeOf(judge.Judge(p).Verdict); now == dropped || now == proxied && was == passed {
				want = dropped
			}
			for _, packet := range []string{"first", "second"} {
				if got := probeWith(t, d, p, flagACK); got != want {
					t.Fatalf("seed %d: %+v began with outcome %d, the %s packet after the change has %d, want %d by %+v", seed, p, was, packet, got, want, judge.Judge(p))
				}
			}
		}
		established += len(began)
	}
	if established < 1000 {
		t.Errorf("only %d flows were established", established)
	}
}

// killed does writes to the kernel one by one and fails before one of them, as
// if the process died there.
type killed struct {
	*Datapath
	left int
}

var errKilled = errors.New("killed by the test")

func one[W any](k *killed, ws []W, write func([]W) error) error {
	for i := range ws {
		if k.left == 0 {
			return errKilled
		}
		k.left--
		if err := write(ws[i : i+1]); err != nil {
			return err
		}
	}
	return nil
}

func (k *killed) WriteEndpoints(ws []plan.EndpointWrite) error {
	return one(k, ws, k.Datapath.WriteEndpoints)
}
func (k *killed) WriteAddresses(ws []plan.AddressWrite) error {
	return one(k, ws, k.Datapath.WriteAddresses)
}
func (k *killed) WritePrefixes(ws []plan.PrefixWrite) error {
	return one(k, ws, k.Datapath.WritePrefixes)
}
func (k *killed) WriteClasses(ws []plan.ClassWrite) error { return one(k, ws, k.Datapath.WriteClasses) }
func (k *killed) WriteCells(ws []plan.CellWrite) error    { return one(k, ws, k.Datapath.WriteCells) }
func (k *killed) WriteRanges(ws []plan.RangeWrite) error  { return one(k, ws, k.Datapath.WriteRanges) }
func (k *killed) WriteServices(ws []plan.ServiceWrite) error {
	return one(k, ws, k.Datapath.WriteServices)
}
func (k *killed) WriteBackends(ws []plan.BackendWrite) error {
	return one(k, ws, k.Datapath.WriteBackends)
}
func (k *killed) WritePairs(ws []plan.PairWrite) error { return one(k, ws, k.Datapath.WritePairs) }

func (k *killed) Flip(word uint64) error {
	return one(k, []uint64{word}, func([]uint64) error { return k.Datapath.Flip(word) })
}

func (k *killed) Wait(ctx context.Context) error {
	return one(k, []struct{}{{}}, func([]struct{}) error { return k.Datapath.Wait(ctx) })
}

// TestP11KilledAfterEachWrite: whichever write was the last, the kernel judges
// by the old policy or by the new one; the next enforcer adopts that, moves the
// word, and arrives.
func TestP11KilledAfterEachWrite(t *testing.T) {
	n, d, world := pods(t)
	packets := world.Packets()
	from := draw(3, world.State)
	to := draw(5, func(t *rapid.T) plan.State { return world.Change(t, from) })
	for last, done := 0, false; !done; last++ {
		k := &killed{Datapath: d, left: -1}
		dying := plan.NewPlanner(d.Limits(), k)
		apply(t, dying, from)
		k.left = last
		_, err := dying.Apply(t.Context(), to)
		if err != nil && !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		done = err == nil
		wantJudged(t, d, packets, from, to)

		word := d.Word()
		if last%8 == 0 { // loading the programs takes longer than all else
			d = reopen(t, n, d)
			wantJudged(t, d, packets, from, to)
		}
		next := plan.NewPlanner(d.Limits(), d)
		if err := next.Adopt(t.Context()); err != nil {
			t.Fatalf("adopt after %d writes: %v", last, err)
		}
		if d.Word() == word {
			t.Errorf("adopted after %d writes, and the word did not move", last)
		}
		wantJudged(t, d, packets, from, to)
		apply(t, next, to)
		wantJudged(t, d, packets, to)
		t.Logf("killed after %d writes", last)
	}
}
