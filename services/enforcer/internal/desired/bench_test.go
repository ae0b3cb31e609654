package desired_test

import (
	"fmt"
	"net/netip"
	"testing"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/desired"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// One more address among many of many identities.
func BenchmarkOneMoreAddress(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(n, " addresses"), func(b *testing.B) {
			w := newWorld()
			w.isolate(rule.Ingress, "p")
			for i := range 100 {
				w.rule(fmt.Sprint("r", i), rule.Ingress, rule.Allow,
					rule.Selector{Identities: []rule.Revision{rule.Revision(20 + i)}}, tcp(uint16(1000+i)), rule.ID{})
			}
			w.in.At = at(100_000)
			for i := range n {
				a := netip.AddrFrom4([4]byte{10, 2 + byte(i>>16), byte(i >> 8), byte(i)})
				w.in.Records[a] = desired.Record{Addr: a, PodUID: a.String(), Node: "n2", Identity: hash("x"), Entered: at(rule.Revision(20 + i%2000))}
			}
			in := w.input(b)
			big := limits
			big.Peers, big.Addresses = 1<<16, 1<<18
			builder := desired.NewBuilder(big, 0)
			planner := plan.NewPlanner(big, plan.NewModel(2))
			if err := planner.Adopt(b.Context()); err != nil {
				b.Fatal(err)
			}
			i := 0
			for b.Loop() {
				a := netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)})
				i++
				in.Records[a] = desired.Record{Addr: a, PodUID: a.String(), Node: "n2", Identity: hash("x"), Entered: at(20)}
				out, err := builder.Build(in)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := planner.Apply(b.Context(), out.State); err != nil {
					b.Fatal(err)
				}
				builder.InForce()
			}
		})
	}
}
