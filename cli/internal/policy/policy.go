// Package policy is weir policy: what can be asked of policies without a
// cluster. It imports the engine's decoder and the commands below it.
package policy

import (
	"github.com/spf13/cobra"

	"weir.dev/weir/cli/internal/policytest"
)

// New is the command.
func New() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Check and test policies without a cluster"}
	cmd.AddCommand(policytest.New(), newLint())
	return cmd
}
