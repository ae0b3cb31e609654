// Package sandbox starts the proxy's worker where it can do nothing but talk on
// the sockets it is given and look connections up.
//
// Spawn starts this program again as a jail (root, in namespaces of its own),
// which Enter turns into the worker: an empty root that cannot be written, no
// network, user 65534, no capability, no way to new privileges; and Seal, called
// by the worker first thing, leaves it the system calls that it needs.
// See docs/adr/0002-proxy-privileges.md.
//
// It imports go-seccomp-bpf and x/sys.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Stages of a worker's start, in argv[0].
const (
	jailName   = "weir-l7proxy-jail"
	workerName = "weir-l7proxy-worker"
)

// Nobody is the worker's user and group.
const Nobody = 65534

// Files that a worker is passed, from this descriptor on.
const firstFile = 3

// Spawn starts a worker with these arguments and open files. root is an
// existing folder, which is only used as a place to mount on, and unchanged.
func Spawn(ctx context.Context, root string, args []string, stderr io.Writer, files ...*os.File) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = append([]string{jailName, root}, args...)
	cmd.Env = []string{}
	cmd.Stderr = stderr
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	return cmd, nil
}

// IsJail reports whether this process was started by Spawn, and must Enter.
func IsJail() bool { return len(os.Args) > 1 && os.Args[0] == jailName }

// IsWorker reports whether this process is a worker, and must Seal.
func IsWorker() bool { return len(os.Args) > 0 && os.Args[0] == workerName }

// File returns the i-th file that Spawn was given.
func File(i int) *os.File { return os.NewFile(uintptr(firstFile+i), fmt.Sprintf("passed-%d", i)) }

// Enter makes this process a worker. It returns only on an error.
func Enter() error {
	runtime.LockOSThread() // all that follows is of one thread, which exec makes the process
	self, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open this program: %w", err)
	}
	if err := changeRoot(os.Args[1]); err != nil {
		return fmt.Errorf("empty root: %w", err)
	}
	if err := dropPrivileges(); err != nil {
		return fmt.Errorf("drop privileges: %w", err)
	}
	return fmt.Errorf("start worker: %w", execAt(self, append([]string{workerName}, os.Args[2:]...)))
}

// execAt starts the program that a descriptor is of: the new root has none.
func execAt(fd int, args []string) error {
	empty, err := unix.BytePtrFromString("")
	if err != nil {
		return err
	}
	argv, err := syscall.SlicePtrFromStrings(args)
	if err != nil {
		return err
	}
	envv := []*byte{nil}
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(empty)),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])), unix.AT_EMPTY_PATH, 0)
	runtime.KeepAlive(empty)
	runtime.KeepAlive(argv)
	runtime.KeepAlive(envv)
	return errno
}

// changeRoot makes the root an empty file system that nobody can write.
func changeRoot(at string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("tmpfs", at, "tmpfs", flags, "size=4k,nr_inodes=2,mode=0555"); err != nil {
		return fmt.Errorf("mount on %s: %w", at, err)
	}
	if err := unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_RDONLY|flags, ""); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	if err := unix.Chdir(at); err != nil {
		return err
	}
	// The old root is stacked on the new one and taken away: pivot_root(2).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return unix.Chdir("/")
}

// dropPrivileges leaves this thread no privileges and no way to any.
func dropPrivileges() error {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	// By system call: the library's would change the other threads too, which
	// end with exec.
	for _, c := range []struct {
		what string
		call func() unix.Errno
	}{
		{"groups", func() unix.Errno { return raw(unix.SYS_SETGROUPS, 0, 0, 0) }},
		{"group", func() unix.Errno { return raw(unix.SYS_SETRESGID, Nobody, Nobody, Nobody) }},
		{"user", func() unix.Errno { return raw(unix.SYS_SETRESUID, Nobody, Nobody, Nobody) }},
	} {
		if errno := c.call(); errno != 0 {
			return fmt.Errorf("change %s: %w", c.what, errno)
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

func raw(trap, a, b, c uintptr) unix.Errno {
	_, _, errno := unix.RawSyscall(trap, a, b, c)
	return errno
}
