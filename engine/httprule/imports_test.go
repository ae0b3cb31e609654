package httprule

import (
	"go/build"
	"slices"
	"testing"
)

// The matcher is pure: nothing here can read a clock, a file or a socket.
func TestImports(t *testing.T) {
	pkg, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{
		"encoding/binary", "errors", "fmt", "regexp/syntax", "slices", "strings", "sync", "sync/atomic", "unicode",
		"unicode/utf8", "weir.dev/weir/engine/rule",
	}
	for _, path := range pkg.Imports {
		if !slices.Contains(allowed, path) {
			t.Errorf("imports %s", path)
		}
	}
}
