package rule_test

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
		"bytes", "cmp", "crypto/sha256", "encoding/hex", "net/netip", "slices", "strconv",
	}
	for _, path := range pkg.Imports {
		if !slices.Contains(allowed, path) {
			t.Errorf("imports %s", path)
		}
	}
}
