// Package deptest keeps the direction of dependencies by test.
package deptest

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// OnlyImports fails the test unless each direct import of the package under
// test is in allowed. "std" allows the whole standard library; a name that ends
// in "/..." allows what lies below it. Imports of test files do not count.
func OnlyImports(t *testing.T, allowed ...string) {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=Imports", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkg struct{ Imports []string }
	if err := json.Unmarshal(out, &pkg); err != nil {
		t.Fatal(err)
	}
	if len(pkg.Imports) == 0 && len(allowed) > 0 && !slices.Contains(allowed, "std") {
		t.Fatal("the package imports nothing: is this the right folder?")
	}
	for _, imp := range pkg.Imports {
		if !matches(imp, allowed) {
			t.Errorf("imports %q, which is not in the list", imp)
		}
	}
}

func matches(imp string, allowed []string) bool {
	for _, a := range allowed {
		prefix, below := strings.CutSuffix(a, "/...")
		switch {
		case a == imp:
			return true
		case below && (imp == prefix || strings.HasPrefix(imp, prefix+"/")):
			return true
		case a == "std" && !strings.Contains(strings.SplitN(imp, "/", 2)[0], "."):
			return true
		}
	}
	return false
}
