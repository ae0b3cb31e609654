package http1

import (
	"testing"

	"weir.dev/weir/internal/deptest"
)

// What parses strangers' bytes reaches nothing but its readers and writers.
func TestImports(t *testing.T) {
	deptest.OnlyImports(t, "bytes", "errors", "fmt", "io", "strconv", "strings", "sync")
}
