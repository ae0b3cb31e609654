package datapath

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// batchSize is how many entries one system call reads or deletes.
const batchSize = 4096

// Read returns what the maps say. It implements plan.Target.
func (d *Datapath) Read(context.Context) (*plan.Image, error) {
	im := plan.NewImage(d.Word())
	for _, read := range []func(*plan.Image) error{d.readUnsided, d.readSided, d.readArrays} {
		if err := read(im); err != nil {
			return nil, err
		}
	}
	return im, nil
}

func (d *Datapath) readUnsided(im *plan.Image) error {
	return errors.Join(
		each(d.Map(bpf.MapEndpoints), func(k uint32, v bpf.WeirEndpoint) { im.Endpoints[k] = fromEndpoint(v) }),
		each(d.Map(bpf.MapAddresses), func(k bpf.WeirAddr, v bpf.WeirPeerRef) { im.Addresses[fromAddr(k)] = fromRef(v) }),
		each(d.Map(bpf.MapPrefixes), func(k bpf.WeirPrefixKey, v bpf.WeirPeerRef) { im.Prefixes[fromPrefix(k)] = fromRef(v) }),
		each(d.Map(bpf.MapBackendSets), func(k bpf.WeirRuleSetPair, v uint32) {
			im.Pairs[plan.RuleSetPair{A: rule.Verdict(k.A), B: rule.Verdict(k.B)}] = rule.Verdict(v)
		}),
	)
}

func (d *Datapath) readSided(im *plan.Image) error {
	return errors.Join(
		each(d.Map(bpf.MapCells), func(k bpf.WeirCellKey, v bpf.WeirCell) {
			im.Cells[k.Side&1][plan.CellKey{Row: plan.Row(k.Row), Class: plan.Class(k.ClassId)}] = plan.Extent{First: v.First, N: v.N}
		}),
		each(d.Map(bpf.MapServices), func(k bpf.WeirServiceKey, v bpf.WeirService) {
			im.Services[k.Side&1][fromServiceKey(k)] = plan.Extent{First: v.First, N: v.N}
		}),
	)
}

func (d *Datapath) readArrays(im *plan.Image) error {
	classes, ranges, backends := d.side(bpf.MapClasses), d.side(bpf.MapRanges), d.side(bpf.MapBackends)
	return errors.Join(
		each(d.Map(bpf.MapClasses), func(i, class uint32) {
			if class != 0 {
				im.Classes[i/classes][plan.Peer(i%classes)] = plan.Class(class)
			}
		}),
		each(d.Map(bpf.MapRanges), func(i uint32, v bpf.WeirRange) {
			if r := (plan.Range{Start: v.Start, Verdict: rule.Verdict(v.Verdict)}); r != (plan.Range{}) {
				im.Ranges[i/ranges][i%ranges] = r
			}
		}),
		each(d.Map(bpf.MapBackends), func(i uint32, v bpf.WeirBackend) {
			if b := (plan.Backend{Peer: plan.Peer(v.Peer), Port: v.Port}); b != (plan.Backend{}) {
				im.Backends[i/backends][i%backends] = b
			}
		}),
	)
}

// each calls f for every entry, in batches. Entries that come or go meanwhile
// may be seen or not.
func each[K, V any](m *ebpf.Map, f func(K, V)) error {
	return eachBatch(m, func(keys []K, values []V) error {
		for i := range keys {
			f(keys[i], values[i])
		}
		return nil
	})
}

func eachBatch[K, V any](m *ebpf.Map, f func([]K, []V) error) error {
	size := min(batchSize, int(m.MaxEntries()))
	keys, values := make([]K, size), make([]V, size)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("read %s: %w", m, err)
		}
		if err := f(keys[:n], values[:n]); err != nil {
			return err
		}
		if err != nil {
			return nil
		}
	}
}
