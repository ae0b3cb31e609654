package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// fewWrites are done one by one: a batch costs more than it saves.
const fewWrites = 4

// The methods below implement plan.Target.

func (d *Datapath) WriteEndpoints(ws []plan.EndpointWrite) error {
	return write(d.Map(bpf.MapEndpoints), ws, func(w plan.EndpointWrite) (uint32, bpf.WeirEndpoint, bool) {
		return w.Ifindex, toEndpoint(w.Value), w.Delete
	})
}

func (d *Datapath) WriteAddresses(ws []plan.AddressWrite) error {
	return write(d.Map(bpf.MapAddresses), ws, func(w plan.AddressWrite) (bpf.WeirAddr, bpf.WeirPeerRef, bool) {
		return toAddr(w.Addr), toRef(w.Value), w.Delete
	})
}

func (d *Datapath) WritePrefixes(ws []plan.PrefixWrite) error {
	return write(d.Map(bpf.MapPrefixes), ws, func(w plan.PrefixWrite) (bpf.WeirPrefixKey, bpf.WeirPeerRef, bool) {
		return toPrefix(w.Prefix), toRef(w.Value), w.Delete
	})
}

func (d *Datapath) WriteClasses(ws []plan.ClassWrite) error {
	side := d.side(bpf.MapClasses)
	return write(d.Map(bpf.MapClasses), ws, func(w plan.ClassWrite) (uint32, uint32, bool) {
		return uint32(w.Side)*side + uint32(w.Peer), uint32(w.Class), false
	})
}

func (d *Datapath) WriteCells(ws []plan.CellWrite) error {
	return write(d.Map(bpf.MapCells), ws, func(w plan.CellWrite) (bpf.WeirCellKey, bpf.WeirCell, bool) {
		return toCellKey(w.Side, w.Key), bpf.WeirCell{First: w.Value.First, N: w.Value.N}, w.Delete
	})
}

func (d *Datapath) WriteRanges(ws []plan.RangeWrite) error {
	side := d.side(bpf.MapRanges)
	return write(d.Map(bpf.MapRanges), ws, func(w plan.RangeWrite) (uint32, bpf.WeirRange, bool) {
		return uint32(w.Side)*side + w.Index, bpf.WeirRange{Start: w.Value.Start, Verdict: uint32(w.Value.Verdict)}, false
	})
}

func (d *Datapath) WriteServices(ws []plan.ServiceWrite) error {
	return write(d.Map(bpf.MapServices), ws, func(w plan.ServiceWrite) (bpf.WeirServiceKey, bpf.WeirService, bool) {
		return toServiceKey(w.Side, w.Key), bpf.WeirService{First: w.Value.First, N: w.Value.N}, w.Delete
	})
}

func (d *Datapath) WriteBackends(ws []plan.BackendWrite) error {
	side := d.side(bpf.MapBackends)
	return write(d.Map(bpf.MapBackends), ws, func(w plan.BackendWrite) (uint32, bpf.WeirBackend, bool) {
		return uint32(w.Side)*side + w.Index, bpf.WeirBackend{Peer: uint32(w.Value.Peer), Port: w.Value.Port}, false
	})
}

func (d *Datapath) WritePairs(ws []plan.PairWrite) error {
	return write(d.Map(bpf.MapBackendSets), ws, func(w plan.PairWrite) (bpf.WeirRuleSetPair, uint32, bool) {
		return bpf.WeirRuleSetPair{A: uint32(w.Pair.A), B: uint32(w.Pair.B)}, uint32(w.Value), w.Delete
	})
}

// side is how many entries of an array one side has.
func (d *Datapath) side(mapName string) uint32 { return d.Map(mapName).MaxEntries() / 2 }

// write does ws in their order, neighbours that put or that delete together.
func write[W, K, V any](m *ebpf.Map, ws []W, entry func(W) (K, V, bool)) error {
	for len(ws) > 0 {
		var keys []K
		var values []V
		_, _, gone := entry(ws[0])
		for _, w := range ws {
			key, value, g := entry(w)
			if g != gone {
				break
			}
			keys, values = append(keys, key), append(values, value)
		}
		if err := writeRun(m, keys, values, gone); err != nil {
			return err
		}
		ws = ws[len(keys):]
	}
	return nil
}

func writeRun[K, V any](m *ebpf.Map, keys []K, values []V, gone bool) error {
	switch {
	case gone && len(keys) > fewWrites:
		if _, err := m.BatchDelete(keys, nil); err == nil {
			return nil
		}
		return deleteEach(m, keys) // one was not there
	case gone:
		return deleteEach(m, keys)
	case len(keys) > fewWrites:
		if n, err := m.BatchUpdate(keys, values, nil); err != nil {
			return fmt.Errorf("write entry %d of %d: %w", n, len(keys), err)
		}
		return nil
	}
	for i := range keys {
		if err := m.Put(keys[i], values[i]); err != nil {
			return fmt.Errorf("write %+v: %w", keys[i], err)
		}
	}
	return nil
}

func deleteEach[K any](m *ebpf.Map, keys []K) error {
	for _, k := range keys {
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete %+v: %w", k, err)
		}
	}
	return nil
}
