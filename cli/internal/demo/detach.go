package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weir.dev/weir/cli/internal/exit"
	"weir.dev/weir/cli/internal/parts"
	"weir.dev/weir/internal/netns"
)

// readyFD is the file by which serve tells its starter that the demo is ready.
const readyFD = 3

// detach starts the daemon in a session of its own and returns when it is
// ready, or has failed. What it says meanwhile goes to out.
func detach(ctx context.Context, cfg Config, out io.Writer) error {
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the demo: %w", err)
	}
	defer readyR.Close()
	defer readyW.Close()
	saysR, saysW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the demo: %w", err)
	}
	defer saysR.Close()
	defer saysW.Close()
	cmd := &exec.Cmd{
		Path: cfg.Exe, Args: []string{"weir", "demo", "serve", "--name", cfg.Name, "--parts", cfg.Parts, "--bin", cfg.Bin},
		Env: append(os.Environ(), netns.Mark+"="+parts.At(cfg.Name).Dir), Dir: "/",
		Stdout: saysW, Stderr: saysW, ExtraFiles: []*os.File{readyW},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the demo: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(unix.SIGTERM) })
	defer stop()
	_, _ = saysW.Close(), readyW.Close() // the daemon's own are left
	if _, err := io.Copy(out, saysR); err != nil {
		return fmt.Errorf("read what the demo says: %w", err)
	}
	word, err := io.ReadAll(readyR)
	if err != nil {
		return fmt.Errorf("read what the demo says: %w", err)
	}
	if string(word) == "ready" {
		return cmd.Process.Release()
	}
	if err := cmd.Wait(); err != nil {
		return exit.Silent(exit.Failed) // it has said why
	}
	return errors.New("the demo ended before it was ready")
}

// serveCommand is the daemon that up starts.
func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve", Short: "Be the demo's daemon", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := upConfig(cmd)
			if err != nil {
				return err
			}
			unix.CloseOnExec(readyFD) // what serve starts must not keep it open
			return Serve(cmd.Context(), cfg, cmd.OutOrStdout(), func() error { return tellReady(parts.At(cfg.Name)) })
		},
	}
	upFlags(cmd)
	return cmd
}

// tellReady moves the daemon's output into its log and tells the starter.
func tellReady(d parts.Demo) error {
	log, err := os.OpenFile(d.Log("demo"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the demo's log: %w", err)
	}
	defer log.Close()
	for _, fd := range []int{1, 2} {
		if err := unix.Dup3(int(log.Fd()), fd, 0); err != nil {
			return fmt.Errorf("move the output into the log: %w", err)
		}
	}
	ready := os.NewFile(readyFD, "ready")
	if _, err := ready.WriteString("ready"); err != nil {
		return fmt.Errorf("tell that the demo is ready: %w", err)
	}
	return ready.Close()
}
