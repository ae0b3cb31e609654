package merge_test

import (
	"testing"

	"weir.dev/weir/internal/deptest"
)

// The merge is pure: nothing here can read a clock, a file or a socket.
func TestImports(t *testing.T) {
	deptest.OnlyImports(t, "cmp", "errors", "fmt", "math/bits", "net/netip", "slices", "sort", "strings",
		"weir.dev/weir/engine/rule")
}
