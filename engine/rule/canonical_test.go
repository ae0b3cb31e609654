package rule_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"weir.dev/weir/engine/rule"
)

func drawText(t *rapid.T, label string) *string {
	s := rapid.SampledFrom([]string{"", "GET", "a\" path=\"b", "\n", "é"}).Draw(t, label)
	if s == "" && rapid.Bool().Draw(t, label+" absent") {
		return nil
	}
	return &s
}

func drawHTTP(t *rapid.T) rule.HTTPRule {
	r := rule.HTTPRule{Method: drawText(t, "method"), Path: drawText(t, "path"), Host: drawText(t, "host")}
	for range rapid.IntRange(0, 2).Draw(t, "headers") {
		r.Headers = append(r.Headers, rule.HeaderRule{
			Name:  rapid.SampledFrom([]string{"a", "b"}).Draw(t, "name"),
			Value: drawText(t, "value"),
		})
	}
	r.Origin.Name = rapid.SampledFrom([]string{"p", "q"}).Draw(t, "policy")
	return r
}

// Rule sets have one name if and only if they say the same.
func TestRuleSetIsNamedByWhatItSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules := rapid.SliceOfN(rapid.Custom(drawHTTP), 0, 3).Draw(t, "rules")
		set := rule.NewRuleSet(rules)
		again := rule.NewRuleSet(rapid.Permutation(slices.Concat(rules, rules)).Draw(t, "twice"))
		if diff := cmp.Diff(set, again); diff != "" {
			t.Fatalf("permuted and repeated (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(set, rule.NewRuleSet(set.Rules)); diff != "" {
			t.Fatalf("of its own rules (-want +got):\n%s", diff)
		}
		other := rule.NewRuleSet(rapid.SliceOfN(rapid.Custom(drawHTTP), 0, 3).Draw(t, "others"))
		if same := cmp.Equal(said(set), said(other)); same != (set.ID == other.ID) {
			t.Fatalf("%+v and %+v: same %v, one ID %v", set, other, same, set.ID == other.ID)
		}
	})
}

// said is a rule set without what is not part of its name.
func said(s rule.RuleSet) []rule.HTTPRule {
	out := slices.Clone(s.Rules)
	for i := range out {
		out[i].Origin = rule.Origin{}
	}
	return out
}

func TestNewRuleSetLeavesItsInputAlone(t *testing.T) {
	rules := []rule.HTTPRule{{Headers: []rule.HeaderRule{{Name: "b"}, {Name: "a"}}}}
	rule.NewRuleSet(rules)
	if got := rules[0].Headers[0].Name; got != "b" {
		t.Errorf("first header: got %s, want b", got)
	}
}

func TestOriginsAreInTheOrderOfTheirPaths(t *testing.T) {
	want := []string{
		"", "spec.egress[0]", "spec.ingress[2]", "spec.ingress[2].toPorts[9]", "spec.ingress[2].toPorts[10]", "spec.ingress[10]",
	}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, func(a, b string) int {
		return rule.CompareOrigin(rule.Origin{Path: a}, rule.Origin{Path: b})
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

// Only equal origins compare equal, and the order is one.
func TestCompareOriginIsAnOrder(t *testing.T) {
	word := rapid.SampledFrom([]string{"", "a", "b", "a1", "a01", "a2", "a10"})
	origin := rapid.Custom(func(t *rapid.T) rule.Origin {
		return rule.Origin{
			Kind: word.Draw(t, "kind"), Path: word.Draw(t, "path"), File: word.Draw(t, "file"), Line: rapid.IntRange(0, 1).Draw(t, "line"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := origin.Draw(t, "a"), origin.Draw(t, "b"), origin.Draw(t, "c")
		ab, ba := rule.CompareOrigin(a, b), rule.CompareOrigin(b, a)
		if ab != -ba || (ab == 0) != (a == b) {
			t.Fatalf("%v and %v: %d one way, %d the other", a, b, ab, ba)
		}
		if ab <= 0 && rule.CompareOrigin(b, c) <= 0 && rule.CompareOrigin(a, c) > 0 {
			t.Fatalf("%v, %v, %v: not transitive", a, b, c)
		}
	})
}
