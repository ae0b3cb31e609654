// Package proc runs a demo's processes, each in the namespaces it belongs to,
// and knows which of them live. Nothing is restarted by itself, and a process
// outlives the one that started it unless it is stopped.
//
// A Process may be used by any goroutine. The package imports netns.
package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weir.dev/weir/internal/netns"
)

// ErrRunning says that the process lives already.
var ErrRunning = errors.New("is running")

// ErrNotRunning says that there is no process to end.
var ErrNotRunning = errors.New("is not running")

// stopWait is how long a process may take to end by SIGTERM.
const stopWait = 10 * time.Second

// Spec is what is started.
type Spec struct {
	Name string
	Path string
	Args []string // without the program's name
	Env  []string // whole
	// Space is where it runs.
	Space *netns.Space
	// Dir receives the files log and pid.
	Dir string
}

// Status tells how a process is.
type Status struct {
	Name    string    `json:"name"`
	State   string    `json:"state"` // running, stopped, killed, exited
	PID     int       `json:"pid,omitempty"`
	Started time.Time `json:"started,omitzero"`
	Detail  string    `json:"detail,omitempty"` // how it ended
}

// States of a process.
const (
	Running = "running"
	Stopped = "stopped" // by Stop
	Killed  = "killed"  // by Kill
	Exited  = "exited"  // by itself, or by somebody else
)

// Process is one process that can be started again and again.
type Process struct {
	spec Spec

	mu     sync.Mutex
	status Status
	ended  chan struct{} // of the living or last one; nil before the first
	ending string        // the state that the end will be called
}

// New is a process that is not started yet.
func New(spec Spec) *Process {
	return &Process{spec: spec, status: Status{Name: spec.Name, State: Stopped}}
}

// Start starts the process.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status.State == Running {
		return fmt.Errorf("%s %w", p.spec.Name, ErrRunning)
	}
	if err := os.MkdirAll(p.spec.Dir, 0o700); err != nil {
		return fmt.Errorf("start %s: %w", p.spec.Name, err)
	}
	log, err := os.OpenFile(filepath.Join(p.spec.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: open its log: %w", p.spec.Name, err)
	}
	defer log.Close()
	cmd := &exec.Cmd{
		Path: p.spec.Path, Args: append([]string{filepath.Base(p.spec.Path)}, p.spec.Args...),
		Env: p.spec.Env, Stdout: log, Stderr: log,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := p.spec.Space.StartCommand(cmd); err != nil {
		return fmt.Errorf("start %s: %w", p.spec.Name, err)
	}
	ended := make(chan struct{})
	p.ended, p.ending = ended, Exited
	p.status = Status{Name: p.spec.Name, State: Running, PID: cmd.Process.Pid, Started: time.Now()}
	go p.wait(cmd, ended)
	if err := os.WriteFile(filepath.Join(p.spec.Dir, "pid"), []byte(strconv.Itoa(cmd.Process.Pid)+"\n"), 0o600); err != nil {
		return fmt.Errorf("note the process of %s: %w", p.spec.Name, err)
	}
	return nil
}

func (p *Process) wait(cmd *exec.Cmd, ended chan struct{}) {
	_ = cmd.Wait() // ProcessState says it better
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.State, p.status.PID = p.ending, 0
	p.status.Detail = cmd.ProcessState.String()
	close(ended)
}

// Stop ends the process by SIGTERM, and by SIGKILL if that is not heard.
func (p *Process) Stop(ctx context.Context) error {
	ended, err := p.signal(unix.SIGTERM, Stopped)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stopWait)
	defer cancel()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	if _, err := p.signal(unix.SIGKILL, Killed); err != nil && !errors.Is(err, ErrNotRunning) {
		return err
	}
	<-ended
	return fmt.Errorf("%s did not stop within %v and was killed", p.spec.Name, stopWait)
}

// Kill ends the process by SIGKILL.
func (p *Process) Kill() error {
	ended, err := p.signal(unix.SIGKILL, Killed)
	if err != nil {
		return err
	}
	<-ended
	return nil
}

func (p *Process) signal(sig unix.Signal, ending string) (<-chan struct{}, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status.State != Running {
		return nil, fmt.Errorf("%s %w", p.spec.Name, ErrNotRunning)
	}
	p.ending = ending
	if err := unix.Kill(p.status.PID, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("signal %s: %w", p.spec.Name, err)
	}
	return p.ended, nil
}

// Ended is closed when the living process, or the last one, has ended. It is
// nil before the first Start.
func (p *Process) Ended() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// Status tells how the process is.
func (p *Process) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}
