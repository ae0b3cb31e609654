package demo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weir.dev/weir/cli/internal/demo/control"
	"weir.dev/weir/cli/internal/exit"
	"weir.dev/weir/cli/internal/parts"
)

// NewCommand is weir demo with all that is below it.
func NewCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run Weir on this machine: three nodes, the tutorial's pods, every part",
		Long: `Run Weir on this machine: three nodes, the tutorial's pods, every part.

Nodes and pods are namespaces of their own; nothing of the machine's network or
mounts is touched. Needs root and Linux 6.6 or newer.`,
		Example: "  weir demo up\n  weir apply -f examples/tutorial/demo.yaml\n  weir demo ps\n  weir demo down",
	}
	cmd.PersistentFlags().String("name", "", "name of the demo (default: that of --demo)")
	cmd.AddCommand(upCommand(), serveCommand(), downCommand(), psCommand(), envCommand(), natsCommand(), runCommand())
	for _, a := range []struct{ action, short string }{
		{control.Kill, "Kill a part (SIGKILL)"},
		{control.Stop, "Stop a part (SIGTERM)"},
		{control.Start, "Start a part and wait until it is ready"},
		{control.Restart, "Stop a part, start it and wait until it is ready"},
	} {
		cmd.AddCommand(actCommand(a.action, a.short))
	}
	return cmd
}

func demoName(cmd *cobra.Command) string {
	for _, flag := range []string{"name", "demo"} {
		if f := cmd.Flag(flag); f != nil && f.Value.String() != "" {
			return f.Value.String()
		}
	}
	return "demo"
}

// upFlags are the flags of up and serve.
func upFlags(cmd *cobra.Command) {
	cmd.Flags().String("parts", PartsAll, "which parts run: all, or none (the network alone; everything is open)")
	cmd.Flags().String("bin", "", "folder of the binaries (default: where weir itself is)")
}

func upConfig(cmd *cobra.Command) (Config, error) {
	exe, err := os.Executable()
	if err != nil {
		return Config{}, fmt.Errorf("find the weir command: %w", err)
	}
	cfg := Config{Name: demoName(cmd), Exe: exe, Bin: cmd.Flag("bin").Value.String(), Parts: cmd.Flag("parts").Value.String()}
	if cfg.Bin == "" {
		cfg.Bin = filepath.Dir(exe)
	}
	if cfg.Bin, err = filepath.Abs(cfg.Bin); err != nil {
		return Config{}, fmt.Errorf("find the binaries: %w", err)
	}
	if cfg.Parts != PartsAll && cfg.Parts != PartsNone {
		return Config{}, exit.With(exit.Usage, fmt.Errorf("--parts %q: use all or none", cfg.Parts))
	}
	return cfg, nil
}

func upCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "up", Short: "Bring the demo up and return when it is ready", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := upConfig(cmd)
			if err != nil {
				return err
			}
			foreground, err := cmd.Flags().GetBool("foreground")
			if err != nil {
				return err
			}
			if foreground {
				return Serve(cmd.Context(), cfg, cmd.OutOrStdout(), func() error {
					_, err := fmt.Fprintf(cmd.OutOrStdout(), "demo %q is up; Ctrl-C takes it down\n", cfg.Name)
					return err
				})
			}
			if err := detach(cmd.Context(), cfg, cmd.OutOrStdout()); err != nil {
				return err
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), goodbye(cfg.Name, os.Getenv("WEIR_DEMO")))
			return err
		},
	}
	upFlags(cmd)
	cmd.Flags().Bool("foreground", false, "stay, and take the demo down at Ctrl-C")
	return cmd
}

// goodbye says how to talk to the demo that is up and how to end it, in a shell
// whose WEIR_DEMO is env.
func goodbye(name, env string) string {
	if name == cmp.Or(env, "demo") {
		return fmt.Sprintf("demo %q is up; weir demo down takes it down\n", name)
	}
	return fmt.Sprintf("demo %q is up; talk to it with: export WEIR_DEMO=%s\nweir demo down --name %s takes it down\n", name, name, name)
}

func downCommand() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Take the demo down, with everything that is left of it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := parts.At(demoName(cmd))
			if _, err := os.Stat(d.Dir); errors.Is(err, os.ErrNotExist) {
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "demo %q is not up\n", d.Name)
				return err
			}
			if err := Down(cmd.Context(), d); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "demo %q is down\n", d.Name)
			return err
		},
	}
}

// Down ends the demo and whatever is left of it.
func Down(ctx context.Context, d parts.Demo) error {
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	_ = control.NewClient(d).Down(ctx) // nobody there: it is cleared below
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		unlock, err := lock(d)
		if err == nil {
			err = Clear(ctx, d)
			unlock()
			return err
		}
		if !errors.Is(err, ErrUp) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the demo's end: %w", ctx.Err())
		}
	}
}

func psCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ps", Short: "List the demo's parts", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := find(cmd)
			if err != nil {
				return err
			}
			list, err := control.NewClient(d).List(cmd.Context())
			if err != nil {
				return exit.With(exit.Unreachable, err)
			}
			if cmd.Flag("output").Value.String() == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(list)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 3, ' ', 0)
			fmt.Fprintln(w, "PART\tSTATE\tPID\tAGE\tDETAIL")
			for _, p := range list {
				pid, age := "-", "-"
				if p.PID != 0 {
					pid, age = fmt.Sprint(p.PID), time.Since(p.Started).Round(time.Second).String()
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", p.Name, p.State, pid, age, p.Detail)
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringP("output", "o", "", "json, or nothing for a table")
	return cmd
}

func actCommand(action, short string) *cobra.Command {
	return &cobra.Command{
		Use: action + " PART", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := find(cmd)
			if err != nil {
				return err
			}
			if err := control.NewClient(d).Act(cmd.Context(), args[0], action); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", args[0], map[string]string{
				control.Kill: "killed", control.Stop: "stopped", control.Start: "started", control.Restart: "restarted",
			}[action])
			return err
		},
	}
}

func envCommand() *cobra.Command {
	return &cobra.Command{
		Use: "env", Short: "Print the demo's sockets and paths for a shell", Args: cobra.NoArgs,
		Example: "  eval \"$(weir demo env)\"\n  grpcurl -plaintext -unix \"$WEIR_POLICY_0\" list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := find(cmd)
			if err != nil {
				return err
			}
			return printEnv(cmd.OutOrStdout(), d)
		},
	}
}

func printEnv(w io.Writer, d parts.Demo) error {
	lines := [][2]string{
		{"WEIR_DEMO", d.Name}, {"WEIR_DEMO_DIR", d.Dir}, {"WEIR_MANIFESTS", d.Manifests()}, {"WEIR_CLUSTER", d.Cluster()},
	}
	for _, service := range []string{"nats", "identity", "policy", "enforcer", "l7proxy"} {
		names, err := d.Parts(service)
		if err != nil {
			return err
		}
		for _, n := range names {
			name := "WEIR_" + strings.ToUpper(strings.ReplaceAll(n, "-", "_"))
			if service != "nats" {
				lines = append(lines, [2]string{name, d.Socket(n)})
			}
			lines = append(lines, [2]string{name + "_HTTP", d.HTTPSocket(n)})
		}
	}
	for _, l := range lines {
		if _, err := fmt.Fprintf(w, "export %s=%s\n", l[0], l[1]); err != nil {
			return fmt.Errorf("print the environment: %w", err)
		}
	}
	return nil
}

func find(cmd *cobra.Command) (parts.Demo, error) {
	d, err := parts.Find(demoName(cmd))
	return d, exit.With(exit.Unreachable, err)
}

// kernelError says that the kernel is too old, or nothing.
func kernelError() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("ask for the kernel's version: %w", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("read the kernel's version %q: %w", release, err)
	}
	if major < 6 || major == 6 && minor < 6 {
		return fmt.Errorf("kernel %s is too old: Weir needs Linux 6.6 or newer (tcx)", release)
	}
	return nil
}
