package datapath

import (
	"testing"

	"go.uber.org/goleak"
	"weir.dev/weir/internal/deptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestImports(t *testing.T) {
	deptest.OnlyImports(t, "std", "github.com/cilium/ebpf", "github.com/cilium/ebpf/...", "golang.org/x/sync/errgroup", "golang.org/x/sys/unix",
		"weir.dev/weir/bpf/datapath", "weir.dev/weir/engine/rule", "weir.dev/weir/services/enforcer/internal/plan")
}
