package netns

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// holderName is argv[0] of a holder.
const holderName = "weir-pause"

// Setup is what a holder does inside of its new namespaces before Start returns.
type Setup struct {
	// Hostname gives the space a UTS namespace with that name; empty: the
	// machine's own.
	Hostname string
	// Mount gives the space a mount namespace, a copy of the machine's from
	// which nothing propagates back. BPFFS, Sysfs and Binds need it.
	Mount bool
	// BPFFS mounts a bpf file system of its own at that path, 0700.
	BPFFS string
	// Sysfs mounts a /sys of its own, read-only: that of the space's network.
	Sysfs bool
	// Binds puts files of its own over paths: path → file.
	Binds map[string]string
	// Sysctls are written by name below /proc/sys, in no order.
	Sysctls map[string]string
}

// IsHolder says that this process was started by Start to hold namespaces.
func IsHolder() bool { return len(os.Args) > 0 && os.Args[0] == holderName }

// Hold sets the namespaces up as told on stdin, answers on stdout and waits for
// its end. It returns the exit code.
func Hold() int {
	var setup Setup
	err := json.NewDecoder(os.Stdin).Decode(&setup)
	if err == nil {
		err = setup.apply()
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	fmt.Println("ready")
	if err := os.Stdout.Close(); err != nil {
		return 1
	}
	for s := range stop {
		if s == unix.SIGTERM {
			break // SIGINT of a terminal is the starter's business
		}
	}
	return 0
}

func (s Setup) apply() error {
	if s.Mount {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make the mounts private: %w", err)
		}
	}
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("set the host name %q: %w", s.Hostname, err)
		}
	}
	for name, value := range s.Sysctls {
		path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	if s.Sysfs {
		if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount a /sys: %w", err)
		}
	}
	if s.BPFFS != "" {
		if err := unix.Mount("bpf", s.BPFFS, "bpf", 0, "mode=0700"); err != nil {
			return fmt.Errorf("mount a bpf file system at %s: %w", s.BPFFS, err)
		}
	}
	for path, file := range s.Binds {
		if err := unix.Mount(file, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s over %s: %w", file, path, err)
		}
	}
	return nil
}

// Start makes a space: a network namespace and what setup asks for. exe is the
// program that calls Hold; env is the holder's whole environment.
func Start(ctx context.Context, exe string, env []string, setup Setup) (*Space, error) {
	text, err := json.Marshal(setup)
	if err != nil {
		return nil, fmt.Errorf("encode the set-up of a namespace: %w", err)
	}
	flags := uintptr(unix.CLONE_NEWNET)
	if setup.Mount {
		flags |= unix.CLONE_NEWNS
	}
	if setup.Hostname != "" {
		flags |= unix.CLONE_NEWUTS
	}
	cmd := &exec.Cmd{
		Path: exe, Args: []string{holderName}, Env: env, Dir: "/",
		Stdin:       strings.NewReader(string(text)),
		SysProcAttr: &syscall.SysProcAttr{Cloneflags: flags, Setsid: true},
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start a namespace's holder: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a namespace's holder %s (root is needed): %w", exe, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	line, err := bufio.NewReader(out).ReadString('\n')
	if line = strings.TrimSpace(line); line != "ready" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("set a namespace up: %w", err)
		}
		return nil, fmt.Errorf("set a namespace up: %s", line)
	}
	s := &Space{PID: cmd.Process.Pid, mount: setup.Mount, uts: setup.Hostname != "", ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		_ = cmd.Wait() // ends by Close's signal; its code says nothing
	}()
	return s, nil
}
