package merge_test

import (
	"fmt"
	"testing"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/rule"
)

// crowd is a policy of n rules on one subject: each with a selector of its own
// that has a hundred identities, on a port of its own; every fifth with HTTP.
func crowd(n int) merge.Policy {
	var p merge.Policy
	for i := range n {
		s := rule.Selector{ID: id(fmt.Sprint("selector ", i))}
		for m := range 100 {
			s.Identities = append(s.Identities, rule.Revision(1+(i*7+m)%1000))
		}
		r := rule.Rule{
			ID: id(fmt.Sprint("rule ", i)), Subject: id("subject"), Direction: rule.Ingress, Tier: rule.Normal,
			Action: rule.Allow, Peer: s.ID, Ports: []rule.PortRange{{Protocol: rule.TCP, Lo: uint16(8000 + i), Hi: uint16(8010 + i)}},
		}
		if i%5 == 0 {
			set := rule.NewRuleSet([]rule.HTTPRule{{Path: ptr(fmt.Sprintf("/v%d/.*", i))}})
			p.RuleSets = append(p.RuleSets, set)
			r.RuleSet = set.ID
		}
		p.Selectors = append(p.Selectors, s)
		p.Rules = append(p.Rules, r)
	}
	return p
}

func BenchmarkNew(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprintf("%d-rules", n), func(b *testing.B) {
			p := crowd(n)
			for b.Loop() {
				if _, err := merge.New(p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCell(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprintf("%d-rules", n), func(b *testing.B) {
			x, err := merge.New(crowd(n))
			if err != nil {
				b.Fatal(err)
			}
			row := merge.RowKey{Subjects: []rule.ID{id("subject")}, Direction: rule.Ingress}
			for i := 0; b.Loop(); i++ {
				d := merge.PeerDesc{Identity: rule.Revision(1 + i%1000), Entity: rule.Endpoints}
				x.Judge(row, x.Matches(d), d.Entity)
			}
		})
	}
}
