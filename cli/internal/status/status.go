// Package status is weir status: the parts, the revision in force, the policies
// with the nodes that enforce them, and what was refused. It imports the parts'
// finder and protos.
package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weir.dev/weir/cli/internal/exit"
	"weir.dev/weir/cli/internal/parts"
)

type options struct {
	output  string
	wait    bool
	timeout time.Duration
}

// New is the command.
func New() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell the parts, the policies in force and where, and what was refused",
		Long: `Tell the parts, the policies in force and where, and what was refused.

The exit code is 0 if every part is up, every policy is in force on every node
and nothing was refused, and 1 if not.`,
		Example: `  weir status
  weir status --wait --timeout 30s
  weir status -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, err := cmd.Flags().GetString("demo")
			if err != nil {
				return err
			}
			if o.output != "text" && o.output != "json" {
				return exit.With(exit.Usage, fmt.Errorf("output %q: want text or json", o.output))
			}
			d, err := parts.Find(name)
			if err != nil {
				return exit.With(exit.Unreachable, err)
			}
			return o.run(cmd.Context(), d, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.output, "output", "o", "text", "text or json")
	f.BoolVar(&o.wait, "wait", false, "wait until all is well, at most --timeout")
	f.DurationVar(&o.timeout, "timeout", time.Minute, "how long to wait")
	return cmd
}

func (o options) run(ctx context.Context, d parts.Demo, out io.Writer) error {
	r, err := o.collect(ctx, d)
	if err != nil {
		return exit.With(exit.Unreachable, err)
	}
	if o.output == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		err = e.Encode(r)
	} else {
		err = r.Print(out)
	}
	switch {
	case err != nil:
		return err
	case r.Healthy:
		return nil
	case o.output == "json":
		return exit.Silent(exit.Failed)
	}
	return exit.With(exit.Failed, errors.New(strings.Join(r.Problems, "\n       ")))
}

// collect asks once, or with --wait until all is well or the time is up.
func (o options) collect(ctx context.Context, d parts.Demo) (*Report, error) {
	if !o.wait {
		return collect(ctx, d)
	}
	limit := time.NewTimer(o.timeout)
	defer limit.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		r, err := collect(ctx, d)
		if err != nil || r.Healthy {
			return r, err
		}
		select {
		case <-ctx.Done():
			return r, nil
		case <-limit.C:
			return r, nil
		case <-tick.C:
		}
	}
}
