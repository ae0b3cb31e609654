package reset

import (
	"testing"

	"go.uber.org/goleak"
	"weir.dev/weir/internal/deptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestImports(t *testing.T) {
	deptest.OnlyImports(t, "std", "golang.org/x/sys/unix", "weir.dev/weir/engine/rule", "weir.dev/weir/internal/logkey",
		"weir.dev/weir/services/enforcer/internal/datapath", "weir.dev/weir/services/enforcer/internal/plan")
}
