package sandbox

import (
	"testing"

	"weir.dev/weir/internal/deptest"
)

func TestImports(t *testing.T) {
	deptest.OnlyImports(t, "std", "github.com/elastic/go-seccomp-bpf", "golang.org/x/sys/unix")
}
