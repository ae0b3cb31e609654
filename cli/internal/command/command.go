// Package command is the tree of weir's commands: it joins what the packages
// beside it offer, turns errors into exit codes and decides nothing itself.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"weir.dev/weir/cli/internal/demo"
	"weir.dev/weir/cli/internal/exit"
	"weir.dev/weir/cli/internal/kube"
	"weir.dev/weir/cli/internal/observe"
	"weir.dev/weir/cli/internal/policy"
	"weir.dev/weir/cli/internal/status"
	"weir.dev/weir/cli/internal/why"
	"weir.dev/weir/internal/version"
)

// Run executes the command line args and returns the exit code.
func Run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	root := New()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exit.OK
	}
	var e *exit.Error
	if !errors.As(err, &e) && isUsage(err) {
		err = exit.With(exit.Usage, err)
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(errOut, "error: %s\n", text)
	}
	return exit.Code(err)
}

// New is the root command. Every command finds the demo it talks to by the
// flag --demo.
func New() *cobra.Command {
	root := &cobra.Command{
		Use:           "weir",
		Short:         "Network policy for Kubernetes, from L3 to HTTP, that explains itself",
		Version:       version.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Example:       "  weir demo run\n  weir apply -f examples/tutorial/policy-v1.yaml\n  weir why app2 app1 80/TCP GET /private",
	}
	name := os.Getenv("WEIR_DEMO")
	if name == "" {
		name = "demo"
	}
	root.PersistentFlags().String("demo", name, "the demo to talk to (also from $WEIR_DEMO)")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return exit.With(exit.Usage, err) })
	root.AddCommand(kube.Commands()...)
	root.AddCommand(demo.NewCommand(), observe.New(), why.New(), status.New(), policy.New())
	return root
}

// isUsage knows cobra's own complaints about the command line, which have no
// type of their own.
func isUsage(err error) bool {
	text := err.Error()
	for _, start := range []string{"unknown command", "accepts ", "requires at least", "requires exactly", "required flag"} {
		if strings.HasPrefix(text, start) {
			return true
		}
	}
	return false
}
