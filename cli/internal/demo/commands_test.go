package demo

import (
	"strings"
	"testing"
)

func TestUpSaysHowToGoOn(t *testing.T) {
	for _, tc := range []struct{ name, env, want, not string }{
		{"demo", "", "weir demo down takes", "--name"},
		{"two", "two", "weir demo down takes", "--name"},
		{"two", "", "export WEIR_DEMO=two\nweir demo down --name two takes", "down takes"},
		{"demo", "two", "weir demo down --name demo takes", "down takes"},
	} {
		if got := goodbye(tc.name, tc.env); !strings.Contains(got, tc.want) || strings.Contains(got, tc.not) {
			t.Errorf("%s with WEIR_DEMO=%q: %q", tc.name, tc.env, got)
		}
	}
}
