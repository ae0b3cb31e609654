package datapath

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Sizes are the capacities that are fixed when the maps are made. Zero keeps
// the default of the spec.
type Sizes struct {
	Peers       uint32 // peer numbers of one side; the greatest is Peers-1
	Ranges      uint32 // port map ranges of one side
	Backends    uint32 // backends of one side
	Endpoints   uint32
	Addresses   uint32
	Prefixes    uint32
	Cells       uint32
	Services    uint32 // (address, protocol, port), both sides together
	BackendSets uint32
	CtTCP       uint32 // preallocated, about 176 bytes each
	CtAny       uint32 // preallocated, evicting
	CtQuota     uint32 // entries of CtTCP that one endpoint may hold
	RingBytes   uint32 // of each event ring: a power of two, in pages
}

// Apply sets the capacities in spec, with the variables by which the programs
// index the sided arrays. Call it before the spec is loaded.
func (s Sizes) Apply(spec *ebpf.CollectionSpec) error {
	sided := []struct {
		variable, mapName string
		n                 uint32
	}{
		{"max_peers", MapClasses, s.Peers},
		{"max_ranges", MapRanges, s.Ranges},
		{"max_backends", MapBackends, s.Backends},
	}
	for _, v := range sided {
		if v.n == 0 {
			continue
		}
		if err := setVariable(spec, v.variable, v.n); err != nil {
			return err
		}
		if err := setEntries(spec, v.mapName, 2*v.n); err != nil {
			return err
		}
	}
	if s.CtQuota != 0 {
		if err := setVariable(spec, "ct_quota", s.CtQuota); err != nil {
			return err
		}
	}
	plain := []struct {
		mapName string
		n       uint32
	}{
		{MapEndpoints, s.Endpoints}, {MapQuotaUsed, 2 * s.Endpoints}, {MapQuotaFreed, 2 * s.Endpoints},
		{MapAddresses, s.Addresses}, {MapPrefixes, s.Prefixes}, {MapCells, s.Cells},
		{MapServices, s.Services}, {MapBackendSets, s.BackendSets},
		{MapCtTCP, s.CtTCP}, {MapCtAny, s.CtAny},
		{MapDrops, s.RingBytes}, {MapFlows, s.RingBytes},
	}
	for _, m := range plain {
		if m.n == 0 {
			continue
		}
		if err := setEntries(spec, m.mapName, m.n); err != nil {
			return err
		}
	}
	return nil
}

func setEntries(spec *ebpf.CollectionSpec, name string, n uint32) error {
	m, ok := spec.Maps[name]
	if !ok {
		return fmt.Errorf("size map %s: no such map in the object", name)
	}
	m.MaxEntries = n
	return nil
}

func setVariable(spec *ebpf.CollectionSpec, name string, v uint32) error {
	variable, ok := spec.Variables[name]
	if !ok {
		return fmt.Errorf("set %s: no such variable in the object", name)
	}
	if err := variable.Set(v); err != nil {
		return fmt.Errorf("set %s to %d: %w", name, v, err)
	}
	return nil
}
