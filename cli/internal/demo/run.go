package demo

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"weir.dev/weir/cli/internal/demo/tutorial"
	"weir.dev/weir/cli/internal/exit"
)

// tutorialFiles is where the tutorial's files are in the repository.
const tutorialFiles = "examples/tutorial"

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "run", Short: "Show the whole tutorial: up, every step, every way, down", Args: cobra.NoArgs,
		Long: `Show the whole tutorial: up, every step, every way, down.

Exits 0 only if every line showed what it must.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			keep, err := cmd.Flags().GetBool("keep")
			if err != nil {
				return err
			}
			cfg := tutorial.Config{
				Demo: demoName(cmd), Exe: exe, Bin: cmd.Flag("bin").Value.String(), Keep: keep,
				Files: cmd.Flag("files").Value.String(), Out: cmd.OutOrStdout(),
			}
			if cfg.Bin == "" {
				cfg.Bin = filepath.Dir(exe)
			}
			if cfg.Files == "" {
				cfg.Files = filesOf(exe)
			}
			err = tutorial.Run(cmd.Context(), cfg)
			if errors.Is(err, tutorial.ErrShown) {
				return exit.Silent(exit.Failed) // its last line says so
			}
			return err
		},
	}
	cmd.Flags().String("bin", "", "folder of the binaries (default: where weir itself is)")
	cmd.Flags().String("files", "", "folder of demo.yaml and policy-v1.yaml (default: "+tutorialFiles+" here or beside the binaries' folder)")
	cmd.Flags().Bool("keep", false, "leave the demo up")
	return cmd
}

func filesOf(exe string) string {
	if _, err := os.Stat(tutorialFiles); err == nil {
		return tutorialFiles
	}
	return filepath.Join(filepath.Dir(filepath.Dir(exe)), tutorialFiles)
}
