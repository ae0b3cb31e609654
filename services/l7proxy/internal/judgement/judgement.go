// Package judgement reads from the datapath's conntrack which rule set judges a
// connection. The datapath decides; the proxy has a read-only view.
//
// It asks the kernel by bpf(2) look-ups alone, which is what the worker's
// seccomp filter lets pass. It imports bpf/datapath for the layout of the maps,
// proxy and x/sys. A View may be used by any number of goroutines.
package judgement

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir.dev/weir/bpf/datapath"
	"weir.dev/weir/services/l7proxy/internal/proxy"
)

const protocolTCP = 6

// A View is of one enforcer's maps and word, until the next gives others. The
// zero View knows no connection.
type View struct {
	mu  sync.RWMutex
	ct  *os.File
	mem []byte
}

// Set makes the view one of these files, which it owns from then on: the
// conntrack map, and the word's memory.
func (v *View) Set(ct, word *os.File) error {
	mem, err := unix.Mmap(int(word.Fd()), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
	if err = errors.Join(err, word.Close()); err != nil {
		return fmt.Errorf("map the live word: %w", err)
	}
	v.mu.Lock()
	oldCt, oldMem := v.ct, v.mem
	v.ct, v.mem = ct, mem
	v.mu.Unlock()
	return release(oldCt, oldMem)
}

// Close lets go of the view.
func (v *View) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	ct, mem := v.ct, v.mem
	v.ct, v.mem = nil, nil
	return release(ct, mem)
}

func release(ct *os.File, mem []byte) error {
	var errs []error
	if ct != nil {
		errs = append(errs, ct.Close())
	}
	if mem != nil {
		errs = append(errs, unix.Munmap(mem))
	}
	return errors.Join(errs...)
}

// Word returns the live word; 0 if there is no view.
func (v *View) Word() uint64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.mem == nil {
		return 0
	}
	return atomic.LoadUint64((*uint64)(unsafe.Pointer(&v.mem[0])))
}

// RuleSet returns the verdict of the flow's slot, and the word it was made
// under. A slot that denies, or is not there, is false.
func (v *View) RuleSet(f proxy.Flow) (number uint32, word uint64, ok bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	q := &query{key: key(f)}
	if v.ct == nil || !q.settled(v.ct) {
		return 0, 0, false
	}
	slot := q.value.Slot[slotOf(f.Direction)]
	if slot.Ifindex == 0 || slot.Verdict == 0 || q.value.Flags&datapath.CTDenied != 0 {
		return 0, 0, false
	}
	return slot.Verdict, slot.Word, true
}

func slotOf(d proxy.Direction) int {
	if d == proxy.Egress {
		return datapath.SlotEgress
	}
	return datapath.SlotIngress
}

// key returns the flow's conntrack key: the lesser end stands first.
func key(f proxy.Flow) datapath.WeirCtKey {
	a, b := f.Client, f.Server
	if less(b, a) {
		a, b = b, a
	}
	var k datapath.WeirCtKey
	k.Addr[0].A, k.Addr[1].A = a.Addr().As16(), b.Addr().As16()
	k.Port[0], k.Port[1] = wire(a.Port()), wire(b.Port())
	k.Protocol = protocolTCP
	return k
}

// less compares ends as the datapath does: see ct_set_key in bpf/lib.
func less(a, b netip.AddrPort) bool {
	x, y := a.Addr().As16(), b.Addr().As16()
	for i := range x {
		if x[i] != y[i] {
			return x[i] < y[i]
		}
	}
	return a.Port() < b.Port()
}

// wire returns a port as it lies in memory in network byte order.
func wire(p uint16) uint16 {
	b := [2]byte{byte(p >> 8), byte(p)}
	return *(*uint16)(unsafe.Pointer(&b))
}

const bpfLookup = 1

// query is one look-up's memory. It is on the heap, so it does not move while
// the kernel writes to it.
type query struct {
	key   datapath.WeirCtKey
	value datapath.WeirCt
}

// settled looks up until no slot is being written: the kernel copies an entry
// while its programs may write to it.
func (q *query) settled(m *os.File) bool {
	const tries = 8
	for range tries {
		if !q.lookup(m) {
			return false
		}
		before := q.value.Slot
		if q.value.Busy == 0 && q.lookup(m) && q.value.Busy == 0 && q.value.Slot == before {
			return true
		}
	}
	return false
}

func (q *query) lookup(m *os.File) bool {
	var pin runtime.Pinner
	pin.Pin(q)
	defer pin.Unpin()
	attr := struct {
		fd, _      uint32
		key, value uint64
		flags      uint64
	}{
		fd:    uint32(m.Fd()),
		key:   uint64(uintptr(unsafe.Pointer(&q.key))),
		value: uint64(uintptr(unsafe.Pointer(&q.value))),
	}
	_, _, errno := unix.Syscall(unix.SYS_BPF, bpfLookup, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	return errno == 0
}
