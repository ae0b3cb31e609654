package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL: it lasts an RCU grace period, so
// every program that ran has ended. GLOBAL_EXPEDITED does not.
const membarrierGlobal = 1

// newGrace returns the wait for a grace period: membarrier, or where the kernel
// refuses it (nohz_full), the update of a map in a map.
func newGrace() (func() error, error) {
	err := membarrier()
	if err == nil {
		return membarrier, nil
	}
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return nil, err
	}
	return newMapGrace()
}

func membarrier() error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return fmt.Errorf("wait for a grace period: membarrier: %w", errno)
		}
		return nil
	}
}

// newMapGrace waits by replacing an inner map: the kernel returns from that
// when no program can hold the old one.
func newMapGrace() (func() error, error) {
	inner := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	held, err := ebpf.NewMap(inner)
	if err != nil {
		return nil, fmt.Errorf("make the map to wait with: %w", err)
	}
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Name: "weir_grace", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the map to wait with: %w", err), held.Close())
	}
	return func() error {
		if err := outer.Put(uint32(0), held); err != nil {
			return fmt.Errorf("wait for a grace period: replace an inner map: %w", err)
		}
		return nil
	}, nil
}
