package rules

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"weir.dev/weir/engine/httprule"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/deptest"
)

func TestImports(t *testing.T) {
	deptest.OnlyImports(t, "fmt", "maps", "slices", "sync", "sync/atomic", "time",
		"weir.dev/weir/engine/httprule", "weir.dev/weir/engine/rule")
}

func str(s string) *string { return &s }

func compile(t *testing.T, parts ...[]rule.HTTPRule) *Set {
	t.Helper()
	s, err := Compile(parts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestJudge(t *testing.T) {
	pattern := rule.HTTPRule{Method: str("GET"), Path: str("/public/.*")}
	exact := rule.HTTPRule{Method: str("GET"), Path: str("^/a%2Fb$")}
	anyPath := rule.HTTPRule{Method: str("PUT")}
	all := []rule.HTTPRule{pattern, exact, anyPath}
	denied, ambiguous := Decision{Rule: -1, Reason: ReasonDenied}, Decision{Rule: -1, Reason: ReasonAmbiguous}
	tests := []struct {
		name         string
		set          *Set
		method, path string
		want         Decision
	}{
		{"a pattern", compile(t, all), "GET", "/public/a", Decision{Allowed: true}},
		{"no rule", compile(t, all), "GET", "/private", denied},
		{"a pattern does not let an ambiguous path pass", compile(t, all), "GET", "/public/%2e%2e/private", ambiguous},
		{"an ambiguous path that nothing would let pass", compile(t, all), "GET", "/..", denied},
		{"an exact rule lets its own spelling pass", compile(t, all), "GET", "/a%2Fb", Decision{Allowed: true, Rule: 1}},
		{"and no other", compile(t, all), "GET", "/a%2fb", denied},
		{"a rule without a path lets any pass", compile(t, all), "PUT", "/public/../x", Decision{Allowed: true, Rule: 2}},
		{"dots in a query are none", compile(t, all), "GET", "/public/a?../..", Decision{Allowed: true}},
		{"of two parts both must agree", compile(t, all, []rule.HTTPRule{anyPath}), "GET", "/public/a", denied},
		{"and the first says by which rule", compile(t, all, []rule.HTTPRule{anyPath}), "PUT", "/", Decision{Allowed: true, Rule: 2}},
		{"a part without rules lets nothing pass", compile(t, all, nil), "PUT", "/", denied},
		{"a set without parts lets nothing pass", compile(t), "PUT", "/", denied},
		{"the zero set lets nothing pass", &Set{}, "PUT", "/", denied},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.set.Judge(httprule.Request{Method: tt.method, Path: tt.path})
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestCompileNamesThePart(t *testing.T) {
	if _, err := Compile([][]rule.HTTPRule{{}, {{Path: str("(")}}}); err == nil {
		t.Error("a bad expression compiles")
	}
}

func TestTable(t *testing.T) {
	var table Table
	if table.Get(2) != nil || table.Numbers() != nil {
		t.Error("the zero table knows something")
	}
	a, b := &Set{}, &Set{}
	table.Apply(map[uint32]*Set{2: a}, false)
	table.Apply(map[uint32]*Set{5: b}, false)
	if d := cmp.Diff([]uint32{2, 5}, table.Numbers()); d != "" || table.Get(2) != a {
		t.Errorf("both are known (-want +got):\n%s", d)
	}
	table.Apply(map[uint32]*Set{7: b}, true)
	if d := cmp.Diff([]uint32{7}, table.Numbers()); d != "" {
		t.Errorf("only the complete list is known (-want +got):\n%s", d)
	}
}

// A request that came before the policy changed is judged by the rule set of its
// time, but not for ever.
func TestAForgottenSetLingers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var table Table
		a := &Set{}
		table.Apply(map[uint32]*Set{2: a}, false)
		table.Apply(map[uint32]*Set{3: {}}, true)
		table.Apply(map[uint32]*Set{4: {}}, true)
		if table.Get(2) != a || table.Get(3) == nil {
			t.Error("forgotten sets do not judge what came before")
		}
		time.Sleep(linger) // the clock is the test's own
		if table.Get(2) != nil || table.Get(3) != nil || table.Get(4) == nil {
			t.Error("forgotten sets judge for ever, or known ones do not")
		}
	})
}
