package datapath

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// liveWord is the node's word, mapped: a map update by system call could be
// seen half written.
type liveWord struct {
	mem []byte

	mu      sync.Mutex
	mirrors []func(word uint64)
}

func newLiveWord(m *ebpf.Map) (*liveWord, error) {
	mem, err := unix.Mmap(m.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the word: %w", err)
	}
	return &liveWord{mem: mem}, nil
}

func (w *liveWord) pointer() *uint64 { return (*uint64)(unsafe.Pointer(unsafe.SliceData(w.mem))) }

func (w *liveWord) load() uint64 { return atomic.LoadUint64(w.pointer()) }

func (w *liveWord) store(word uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	atomic.StoreUint64(w.pointer(), word)
	for _, tell := range w.mirrors {
		tell(word)
	}
}

func (w *liveWord) close() error { return unix.Munmap(w.mem) }

// Word is the word in force; its low bit is the live side.
func (d *Datapath) Word() uint64 { return d.word.load() }

// Mirror calls tell with the word in force, and again after each move of it.
// tell must not call back.
func (d *Datapath) Mirror(tell func(word uint64)) {
	d.word.mu.Lock()
	defer d.word.mu.Unlock()
	d.word.mirrors = append(d.word.mirrors, tell)
	tell(d.word.load())
}

// Flip moves the word. It implements plan.Target.
func (d *Datapath) Flip(word uint64) error {
	if now := d.word.load(); word < now {
		return fmt.Errorf("the word would go back from %d to %d", now, word)
	}
	d.word.store(word)
	return nil
}
