package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"weir.dev/weir/internal/netns"
)

// built is where TestMain put the binaries and where the repository is.
type built struct{ bin, root string }

var the built // set once, before the tests

func TestMain(m *testing.M) {
	if netns.IsHolder() {
		os.Exit(netns.Hold())
	}
	code, err := build(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

// build builds the binaries as make build does, runs the tests and removes them.
func build(m *testing.M) (code int, err error) {
	work, err := exec.Command("go", "env", "GOWORK").Output()
	if err != nil {
		return 0, fmt.Errorf("find the workspace: %w", err)
	}
	the.root = filepath.Dir(strings.TrimSpace(string(work)))
	if the.bin, err = os.MkdirTemp("", "weir-integration-"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(the.bin)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", the.bin+"/", "./cli/cmd/...",
		"./services/identity/cmd/weir-identity", "./services/policy/cmd/weir-policy",
		"./services/enforcer/cmd/weir-enforcer", "./services/l7proxy/cmd/weir-l7proxy")
	cmd.Dir, cmd.Env = the.root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build the binaries: %w\n%s", err, out)
	}
	return m.Run(), nil
}
