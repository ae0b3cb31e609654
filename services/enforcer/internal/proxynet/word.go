package proxynet

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A word is a copy of the live word in a memory file that others can only read.
type word struct {
	file *os.File
	mem  []byte
	p    *atomic.Uint64
}

func newWord() (*word, error) {
	fd, err := unix.MemfdCreate("weir-word", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make the word's memory: %w", err)
	}
	w := &word{file: os.NewFile(uintptr(fd), "weir-word")}
	if err := w.file.Truncate(int64(os.Getpagesize())); err != nil {
		return nil, errors.Join(fmt.Errorf("make the word's memory: %w", err), w.close())
	}
	w.mem, err = unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map the word's memory: %w", err), w.close())
	}
	// From here on nobody can map it for writing, ourselves included.
	seals := unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(fmt.Errorf("seal the word's memory: %w", err), w.close())
	}
	w.p = (*atomic.Uint64)(unsafe.Pointer(&w.mem[0]))
	return w, nil
}

func (w *word) set(v uint64) { w.p.Store(v) }

func (w *word) close() error {
	var errs []error
	if w.mem != nil {
		w.p = new(atomic.Uint64)
		errs = append(errs, unix.Munmap(w.mem))
		w.mem = nil
	}
	return errors.Join(append(errs, w.file.Close())...)
}

const (
	bpfMapGetFdByID = 14
	bpfReadOnly     = 8 // BPF_F_RDONLY
)

// readOnly opens a map again so that it can only be read.
func readOnly(m *ebpf.Map) (*os.File, error) {
	info, err := m.Info()
	if err != nil {
		return nil, fmt.Errorf("open %s read-only: %w", m, err)
	}
	id, ok := info.ID()
	if !ok {
		return nil, fmt.Errorf("open %s read-only: it has no id", m)
	}
	attr := struct{ id, next, flags uint32 }{id: uint32(id), flags: bpfReadOnly}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, bpfMapGetFdByID, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return nil, fmt.Errorf("open %s read-only: %w", m, errno)
	}
	unix.CloseOnExec(int(fd))
	return os.NewFile(fd, "conntrack"), nil
}
