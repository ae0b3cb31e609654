package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"weir.dev/weir/cli/internal/exit"
	"weir.dev/weir/cli/internal/parts"
	"weir.dev/weir/internal/netns"
)

// podPath is where a pod's commands are looked up: pods see the machine's files.
const podPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// errOneCommand says how exec is called.
var errOneCommand = errors.New("name one pod, then --, then the command")

func execCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "exec (POD | KIND/NAME) -- COMMAND [ARG...]", Short: "Run a command in a pod",
		Example: "  weir exec deploy/app2 -- curl -s http://app1-service/public",
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return exit.With(exit.Usage, errOneCommand)
			}
			d, err := demoOf(cmd)
			if err != nil {
				return err
			}
			p, err := podOf(d, namespaceOf(cmd), args[0])
			if err != nil {
				return err
			}
			if _, err := containerOf(p, cmd.Flag("container").Value.String()); err != nil {
				return err
			}
			return run(d, p, args[1:])
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return exit.With(exit.Usage, fmt.Errorf("%w; if that is the command's: %w", err, errOneCommand))
	})
	namespaceFlag(cmd)
	cmd.Flags().StringP("container", "c", "", "container (default: the first; all of a pod share its namespaces)")
	cmd.Flags().BoolP("stdin", "i", false, "kept for kubectl's users: stdin is always passed on")
	cmd.Flags().BoolP("tty", "t", false, "kept for kubectl's users: a terminal is always passed on")
	return cmd
}

// containerOf finds a pod's container by name; no name is the first.
func containerOf(p *corev1.Pod, name string) (string, error) {
	var there []string
	for _, c := range p.Spec.Containers {
		if name == "" || c.Name == name {
			return c.Name, nil
		}
		there = append(there, c.Name)
	}
	return "", fmt.Errorf("container %q is not in pod %q: it has %s", name, p.Name, strings.Join(there, ", "))
}

// run replaces this process by the command, so that its exit code, signals and
// terminal are the command's own. It returns only if that does not work.
func run(d parts.Demo, p *corev1.Pod, args []string) error {
	file := filepath.Join(d.Pod(p.Namespace, p.Name), parts.HolderFile)
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("pod %q is not running yet (%s): %w", p.Name, podStatus(p), err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	path, err := lookUp(args[0])
	if err != nil {
		return exit.With(127, err)
	}
	env := []string{netns.Mark + "=" + d.Dir, "PATH=" + podPath, "HOME=/root", "HOSTNAME=" + p.Name, "TERM=" + os.Getenv("TERM"), "LANG=C.UTF-8"}
	return exit.With(126, netns.Of(pid).Exec(path, args, env))
}

func lookUp(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(podPath) {
		path := filepath.Join(dir, name)
		if found, err := exec.LookPath(path); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("%q: executable file not found in the pod's PATH", name)
}

func logsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "logs (POD | KIND/NAME)", Short: "Print what a pod's container has said", Args: cobra.ExactArgs(1),
		Example: "  weir logs deploy/app1 --follow",
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := demoOf(cmd)
			if err != nil {
				return err
			}
			p, err := podOf(d, namespaceOf(cmd), args[0])
			if err != nil {
				return err
			}
			container, err := containerOf(p, cmd.Flag("container").Value.String())
			if err != nil {
				return err
			}
			if _, name, ok := strings.Cut(args[0], "/"); ok && name != p.Name {
				fmt.Fprintf(cmd.ErrOrStderr(), "the log of pod/%s\n", p.Name)
			}
			tail, err := cmd.Flags().GetInt("tail")
			if err != nil {
				return err
			}
			follow, err := cmd.Flags().GetBool("follow")
			if err != nil {
				return err
			}
			return logs(cmd.Context(), cmd.OutOrStdout(), filepath.Join(d.Pod(p.Namespace, p.Name), container, "log"), tail, follow)
		},
	}
	namespaceFlag(cmd)
	cmd.Flags().StringP("container", "c", "", "container (default: the first)")
	cmd.Flags().BoolP("follow", "f", false, "go on until Ctrl-C or the pod's end")
	cmd.Flags().Int("tail", -1, "only so many of the last lines; -1 for all")
	return cmd
}

func logs(ctx context.Context, out io.Writer, path string, tail int, follow bool) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the container's log: %w", err)
	}
	defer f.Close()
	if tail >= 0 {
		text, err := io.ReadAll(f)
		if err != nil {
			return fmt.Errorf("read the container's log: %w", err)
		}
		if _, err := out.Write(lastLines(text, tail)); err != nil {
			return fmt.Errorf("print the container's log: %w", err)
		}
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := io.Copy(out, f); err != nil {
			return fmt.Errorf("read the container's log: %w", err)
		}
		if _, err := os.Stat(path); !follow || err != nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// lastLines are the last n lines of a text; the very last may lack its end.
func lastLines(text []byte, n int) []byte {
	start := len(text)
	for ; n > 0 && start > 0; n-- {
		start = bytes.LastIndexByte(text[:start-1], '\n') + 1
	}
	return text[start:]
}
