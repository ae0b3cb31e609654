package merge_test

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
		"cmp", "errors", "fmt", "math/bits", "net/netip", "slices", "sort", "strings",
		"weir.dev/weir/engine/rule",
	}
	for _, path := range pkg.Imports {
		if !slices.Contains(allowed, path) {
			t.Errorf("imports %s", path)
		}
	}
}
