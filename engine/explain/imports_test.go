package explain_test

import (
	"go/build"
	"slices"
	"testing"
)

// The package is pure: nothing here can read a clock, a file or a socket.
func TestImports(t *testing.T) {
	pkg, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{
		"fmt", "net/netip", "slices", "strings", "weir.dev/weir/engine/httprule",
		"weir.dev/weir/engine/merge", "weir.dev/weir/engine/resolve", "weir.dev/weir/engine/rule",
	}
	for _, path := range pkg.Imports {
		if !slices.Contains(allowed, path) {
			t.Errorf("imports %s", path)
		}
	}
}
