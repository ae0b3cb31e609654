package deptest

import "testing"

func TestMatches(t *testing.T) {
	for _, tc := range []struct {
		imp     string
		allowed []string
		want    bool
	}{
		{"fmt", []string{"fmt"}, true},
		{"fmt", []string{"errors"}, false},
		{"encoding/json", []string{"std"}, true},
		{"weir.dev/weir/engine/rule", []string{"std"}, false},
		{"weir.dev/weir/engine/rule", []string{"weir.dev/weir/engine/..."}, true},
		{"weir.dev/weir/enginex", []string{"weir.dev/weir/engine/..."}, false},
	} {
		if got := matches(tc.imp, tc.allowed); got != tc.want {
			t.Errorf("matches(%q, %q) = %v, want %v", tc.imp, tc.allowed, got, tc.want)
		}
	}
}

func TestDeptestImportsOnlyStd(t *testing.T) { OnlyImports(t, "std") }
