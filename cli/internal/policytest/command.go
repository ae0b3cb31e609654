package policytest

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"weir.dev/weir/cli/internal/exit"
)

// New is the command weir policy test.
func New() *cobra.Command {
	var o Options
	var output string
	var cidrs bool
	cmd := &cobra.Command{
		Use:   "test DIR|FILE.tar.xz|FILE.tar.gz...",
		Short: "Ask the engine recorded questions about policies",
		Long: `Ask the engine recorded questions about policies, without a cluster.

A scenario is a folder with objects.yaml (namespaces, pods and policies) and
expect.json (flows and HTTP requests with their verdicts). Each question is asked
of the engine that runs in the cluster and of its naive specification.

The exit code is 0 if every answer is the recorded one, and 1 if not.`,
		Example: `  weir policy test shared/conformance/networkpolicy.tar.xz --only-supported
  weir policy test ./my-scenarios -o json`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return exit.With(exit.Usage, fmt.Errorf("output %q: want text or json", output))
			}
			if cmd.Flags().Changed("cidr-selects-pods") {
				o.CIDRSelectsPods = &cidrs
			}
			var scenarios []scenario
			for _, a := range args {
				s, err := load(a)
				if err != nil {
					return exit.With(exit.Usage, err)
				}
				scenarios = append(scenarios, s...)
			}
			r := o.run(scenarios)
			if err := r.print(cmd.OutOrStdout(), output); err != nil {
				return err
			}
			if r.Failed > 0 {
				return exit.Silent(exit.Failed)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.OnlySupported, "only-supported", false, "leave out scenarios with objects that Weir refuses as not supported, and count them")
	f.BoolVar(&cidrs, "cidr-selects-pods", true, "whether a NetworkPolicy's ipBlock may match pods (default: as the scenario was recorded)")
	f.StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

// mostFailures of a scenario are printed; the rest are counted.
const mostFailures = 10

func (r Report) print(out io.Writer, format string) error {
	if format == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	seen := map[string]int{}
	for _, f := range r.Failures {
		if seen[f.Scenario]++; seen[f.Scenario] <= mostFailures {
			if _, err := fmt.Fprintf(out, "FAIL %s\n", f); err != nil {
				return err
			}
		}
	}
	for _, name := range sortedKeys(seen) {
		if n := seen[name] - mostFailures; n > 0 {
			if _, err := fmt.Fprintf(out, "FAIL %s: %d more\n", name, n); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintln(out, r.Summary())
	return err
}
