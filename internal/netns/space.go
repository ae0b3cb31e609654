package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// closeWait is how long a holder may take to end before it is killed.
const closeWait = 2 * time.Second

// Space is a set of namespaces held by a process.
type Space struct {
	PID   int // of the holder
	mount bool
	uts   bool
	ended chan struct{} // closed when the holder has ended; nil for a space of another process
}

// Of is the space that process pid lives in, with its mounts and host name. It
// belongs to somebody else: Close does nothing.
func Of(pid int) *Space { return &Space{PID: pid, mount: true, uts: true} }

// Close ends the holder and waits for it. Processes that were started in the
// space live on and keep it alive.
func (s *Space) Close() error {
	if s.ended == nil {
		return nil
	}
	select {
	case <-s.ended: // the number may be another process's by now
		return nil
	default:
	}
	if err := unix.Kill(s.PID, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end the holder %d: %w", s.PID, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	select {
	case <-s.ended:
		return nil
	case <-ctx.Done():
	}
	if err := unix.Kill(s.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill the holder %d: %w", s.PID, err)
	}
	<-s.ended
	return nil
}

// Path is a path of the network namespace that every process of this machine
// can open, whatever its mounts, as long as the holder lives.
func (s *Space) Path() string { return s.path("net") }

func (s *Space) path(kind string) string { return "/proc/" + strconv.Itoa(s.PID) + "/ns/" + kind }

// Open opens the network namespace.
func (s *Space) Open() (*os.File, error) {
	f, err := os.Open(s.Path())
	if err != nil {
		return nil, fmt.Errorf("open the network namespace of process %d: %w", s.PID, err)
	}
	return f, nil
}

// Netlink opens a netlink handle in the space. The caller closes it.
func (s *Space) Netlink() (*netlink.Handle, error) {
	f, err := s.Open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h, err := netlink.NewHandleAt(vnetns.NsHandle(f.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in the namespace of process %d: %w", s.PID, err)
	}
	return h, nil
}

// Do calls f in the space's network namespace, on a thread of its own that dies
// afterwards. f must not start goroutines that need the namespace.
func (s *Space) Do(f func() error) error {
	return onThread(func() error {
		if err := s.join("net", unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// StartCommand starts cmd in all namespaces of the space. cmd.Path must be
// absolute: nothing is looked up.
func (s *Space) StartCommand(cmd *exec.Cmd) error {
	return onThread(func() error {
		if err := s.enter(); err != nil {
			return err
		}
		if cmd.Dir == "" {
			cmd.Dir = "/"
		}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("start %s: %w", cmd.Path, err)
		}
		return nil
	})
}

// Exec replaces this process by the program at path, in all namespaces of the
// space. It returns only if that does not work.
func (s *Space) Exec(path string, args, env []string) error {
	return onThread(func() error {
		if err := s.enter(); err != nil {
			return err
		}
		if err := unix.Chdir("/"); err != nil {
			return fmt.Errorf("change to the root folder: %w", err)
		}
		return fmt.Errorf("execute %s: %w", path, unix.Exec(path, args, env))
	})
}

// enter moves the calling thread into the space. The thread must die afterwards.
func (s *Space) enter() error {
	if err := s.join("net", unix.CLONE_NEWNET); err != nil {
		return err
	}
	if s.uts {
		if err := s.join("uts", unix.CLONE_NEWUTS); err != nil {
			return err
		}
	}
	if !s.mount {
		return nil
	}
	// A thread that shares its root and working folder cannot change mounts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the working folder: %w", err)
	}
	return s.join("mnt", unix.CLONE_NEWNS)
}

func (s *Space) join(kind string, flag int) error {
	f, err := os.Open(s.path(kind))
	if err != nil {
		return fmt.Errorf("enter the %s namespace of process %d: %w", kind, s.PID, err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), flag); err != nil {
		return fmt.Errorf("enter the %s namespace of process %d: %w", kind, s.PID, err)
	}
	return nil
}

// onThread runs f on a thread that ends with it, since what f changes of the
// thread cannot be trusted to be undone.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot die; keep it busy while another one works.
			result <- onThread(f)
			runtime.UnlockOSThread()
			return
		}
		result <- f()
	}()
	return <-result
}
