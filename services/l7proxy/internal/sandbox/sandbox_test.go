package sandbox

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The test binary is the program that Spawn starts again.
func TestMain(m *testing.M) {
	switch {
	case IsJail():
		fmt.Fprintln(os.Stderr, Enter())
		os.Exit(1)
	case IsWorker():
		os.Exit(probe())
	}
	os.Exit(m.Run())
}

// attempts are what a worker tries, by name; the result is an error's text.
// Files: 0 is where the report goes and 1 what must be waited for, 2 a bpffs
// folder, 3 a map.
func attempts() map[string]func() error {
	mapFd := uint32(File(3).Fd())
	return map[string]func() error{
		"open a bpffs":      func() error { return openAny("/sys/fs/bpf", "/sys", "/proc/self/status", "/run") },
		"list the root":     listRoot,
		"write the root":    func() error { return os.WriteFile("/x", nil, 0o600) },
		"mount a bpffs":     func() error { return unix.Mount("bpf", "/", "bpf", 0, "") },
		"new user space":    func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"a socket":          func() error { return socket(unix.AF_INET, unix.SOCK_STREAM) },
		"a packet socket":   func() error { return socket(unix.AF_PACKET, unix.SOCK_RAW) },
		"a netlink socket":  func() error { return socket(unix.AF_NETLINK, unix.SOCK_RAW) },
		"start a program":   func() error { return unix.Exec("/x", []string{"x"}, nil) },
		"trace":             func() error { return unix.PtraceAttach(os.Getppid()) },
		"become root":       func() error { return unix.Setresuid(0, 0, 0) },
		"enter a namespace": func() error { return unix.Setns(int(File(2).Fd()), 0) },
		"kill the parent":   func() error { return unix.Kill(os.Getppid(), 0) },
		"pin the map below the passed folder": func() error {
			return pinAt(mapFd, int32(File(2).Fd()))
		},
		"update the map":     func() error { return mapCall(bpfUpdate, mapFd) },
		"delete of the map":  func() error { return mapCall(bpfDelete, mapFd) },
		"look up in the map": func() error { return mapCall(bpfLookup, mapFd) },
		"ask for its limits": func() error { return unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &unix.Rlimit{}) },
		"get a map by id":    func() error { return bpf(bpfMapByID, unsafe.Pointer(&[3]uint32{1, 0, 0}), 12) },
		"make a map":         func() error { return bpf(0, unsafe.Pointer(&[8]uint32{1, 4, 4, 1}), 32) },
	}
}

const (
	bpfUpdate  = 2
	bpfDelete  = 3
	bpfPin     = 6
	bpfMapByID = 14
)

// openAny opens the first that there is.
func openAny(paths ...string) (err error) {
	for _, p := range paths {
		var f *os.File
		if f, err = os.Open(p); err == nil {
			return f.Close()
		}
	}
	return err
}

// listRoot: even a look around needs a call that is not there.
func listRoot() error {
	_, err := os.ReadDir("/")
	return err
}

func socket(domain, kind int) error {
	fd, err := unix.Socket(domain, kind, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size); errno != 0 {
		return errno
	}
	return nil
}

type keyValue struct {
	key   uint32
	value uint64
}

func mapCall(cmd uintptr, fd uint32) error {
	kv := &keyValue{value: 666}
	var pin runtime.Pinner
	pin.Pin(kv)
	defer pin.Unpin()
	attr := struct {
		fd, _             uint32
		key, value, flags uint64
	}{fd: fd, key: uint64(uintptr(unsafe.Pointer(&kv.key))), value: uint64(uintptr(unsafe.Pointer(&kv.value)))}
	return bpf(cmd, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// pinAt pins by a folder's descriptor (BPF_F_PATH_FD), which needs no path.
func pinAt(fd uint32, dir int32) error {
	name := append([]byte("stolen"), 0)
	var pin runtime.Pinner
	pin.Pin(&name[0])
	defer pin.Unpin()
	attr := struct {
		path      uint64
		fd, flags uint32
		dir       int32
		_         uint32
	}{path: uint64(uintptr(unsafe.Pointer(&name[0]))), fd: fd, flags: 1 << 14, dir: dir}
	return bpf(bpfPin, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

type report map[string]string

// probe is the worker: it confines itself, tries everything, and tells.
func probe() int {
	if err := Seal(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	r := report{}
	for name, try := range attempts() {
		r[name] = ""
		if err := try(); err != nil {
			r[name] = err.Error()
		}
	}
	if err := json.NewEncoder(File(0)).Encode(r); err != nil {
		return 1
	}
	if _, err := io.ReadAll(File(1)); err != nil { // until the test has looked at this process
		return 1
	}
	return 0
}

// P20: a worker has no capability, cannot open a bpffs, cannot pin or change
// its read-only map, and cannot get any of that. All it can do is look up.
func TestP20WorkerCanLookUpAndNothingElse(t *testing.T) {
	bpffs := mountBPFFS(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	out, report0, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	wait, release, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(bpffs)
	if err != nil {
		t.Fatal(err)
	}
	mapFile := os.NewFile(uintptr(dup(t, m.FD())), "map")
	var stderr strings.Builder
	cmd, err := Spawn(t.Context(), t.TempDir(), nil, &stderr, report0, wait, dir, mapFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{report0, wait, dir, mapFile} {
		_ = f.Close()
	}
	var got report
	decodeErr := json.NewDecoder(out).Decode(&got)
	checkStatus(t, cmd.Process.Pid)
	checkMounts(t, cmd.Process.Pid)
	if err := errors.Join(release.Close(), cmd.Wait(), decodeErr); err != nil {
		t.Fatalf("worker: %v\n%s", err, stderr.String())
	}
	for name := range attempts() {
		switch {
		case name == "look up in the map", name == "ask for its limits":
			if got[name] != "" {
				t.Errorf("%s: %s", name, got[name])
			}
		case !strings.HasSuffix(got[name], unix.EPERM.Error()):
			t.Errorf("%s: %q, want %q", name, got[name], unix.EPERM)
		}
	}
	var value uint64
	if err := m.Lookup(uint32(0), &value); err != nil || value != 0 {
		t.Errorf("the map holds %d, %v", value, err)
	}
	if _, err := os.Stat(filepath.Join(bpffs, "stolen")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the map was pinned: %v", err)
	}
}

func dup(t *testing.T, fd int) int {
	t.Helper()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// mountBPFFS mounts one that everybody may write: it must not help.
func mountBPFFS(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=1777"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func checkStatus(t *testing.T, pid int) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = f.Close() }()
	want := map[string]string{
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2", "Groups": "",
		"Uid": "65534\t65534\t65534\t65534", "Gid": "65534\t65534\t65534\t65534",
	}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		name, value, _ := strings.Cut(sc.Text(), ":")
		if w, ok := want[name]; ok {
			if got := strings.TrimSpace(value); got != w {
				t.Errorf("%s is %q, want %q", name, got, w)
			}
			delete(want, name)
		}
	}
	if len(want) > 0 || sc.Err() != nil {
		t.Errorf("status has no %v (%v)", want, sc.Err())
	}
}

func checkMounts(t *testing.T, pid int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "mounts"))
	if err != nil {
		t.Error(err)
		return
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) != 1 || !strings.HasPrefix(lines[0], "tmpfs / tmpfs ro,") {
		t.Errorf("mounts of the worker, want the empty root alone:\n%s", b)
	}
}

// A process that has not been confined is no worker.
func TestSealRefusesRoot(t *testing.T) {
	if err := Seal(); !errors.Is(err, ErrPrivileged) {
		t.Errorf("Seal: %v, want ErrPrivileged", err)
	}
}
