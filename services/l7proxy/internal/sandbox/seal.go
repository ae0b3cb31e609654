package sandbox

import (
	"errors"
	"fmt"
	"os"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// ErrPrivileged: the process has a right that a worker must not have.
var ErrPrivileged = errors.New("the worker is not confined")

// Seal checks that this process has no privileges, and takes all system calls
// from it but those that a worker needs. They fail with EPERM.
func Seal() error {
	if err := confined(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("hide memory: %w", err)
	}
	err := seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Flag: seccomp.FilterFlagTSync, Policy: policy()})
	if err != nil {
		return fmt.Errorf("load the system call filter: %w", err)
	}
	return nil
}

func confined() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if caps != [2]unix.CapUserData{} {
		return fmt.Errorf("%w: capabilities %+v", ErrPrivileged, caps)
	}
	if os.Getuid() != Nobody || os.Geteuid() != Nobody || os.Getegid() != Nobody {
		return fmt.Errorf("%w: user %d", ErrPrivileged, os.Geteuid())
	}
	n, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil || n != 1 {
		return fmt.Errorf("%w: new privileges are possible (%d, %w)", ErrPrivileged, n, err)
	}
	return nil
}

// Commands of bpf(2) that a worker may give.
const (
	bpfLookup = 1  // BPF_MAP_LOOKUP_ELEM
	bpfInfo   = 15 // BPF_OBJ_GET_INFO_BY_FD
)

// policy allows what the runtime of Go and the worker need: memory, threads,
// the poller, and sockets that are there already. There is no way in it to open
// a file or a socket of one's own, to mount, to trace, to start a program, or to
// change a map.
func policy() seccomp.Policy {
	return seccomp.Policy{
		DefaultAction: seccomp.ActionErrno,
		Syscalls: []seccomp.SyscallGroup{
			{Action: seccomp.ActionAllow, Names: []string{
				// memory, threads, time, signals
				"mmap", "munmap", "mprotect", "madvise", "mincore", "brk",
				"futex", "sched_yield", "sched_getaffinity", "nanosleep", "clock_nanosleep", "clock_gettime", "clock_getres",
				"gettid", "getpid", "set_robust_list", "rseq", "exit", "exit_group", "restart_syscall",
				"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack",
				"timer_create", "timer_settime", "timer_delete", "setitimer", "getrandom", "uname",
				"prlimit64", "getrusage", "getuid", "geteuid", "getgid", "getegid",
				// the poller
				"epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "eventfd2", "pipe2",
				// what is open already
				"read", "write", "readv", "writev", "pread64", "close", "fcntl", "dup", "dup3", "fstat", "lseek", "splice", "ppoll",
				"accept4", "bind", "connect", "getsockname", "getpeername", "getsockopt", "setsockopt", "shutdown",
				"recvfrom", "sendto", "recvmsg", "sendmsg",
			}},
			{Action: seccomp.ActionAllow, NamesWithCondtions: []seccomp.NameWithConditions{
				{Name: "bpf", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.Equal, Value: bpfLookup}}},
				{Name: "bpf", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.Equal, Value: bpfInfo}}},
				// Threads, but no namespaces: a user namespace gives capabilities.
				{Name: "clone", Conditions: seccomp.ArgumentConditions{
					{Argument: 0, Operation: seccomp.BitsSet, Value: unix.CLONE_THREAD},
					{Argument: 0, Operation: seccomp.BitsNotSet, Value: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET},
				}},
				// To itself: the runtime's preemption.
				{Name: "tgkill", Conditions: seccomp.ArgumentConditions{
					{Argument: 0, Operation: seccomp.Equal, Value: uint64(os.Getpid())},
				}},
			}},
		},
	}
}
