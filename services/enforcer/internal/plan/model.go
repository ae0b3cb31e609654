package plan

import (
	"context"
	"errors"
	"maps"
	"net/netip"

	"weir.dev/weir/engine/rule"
)

// Model holds an Image in memory and judges as the programs in the kernel do.
// It is a Target. Not safe for concurrent use.
type Model struct{ Image *Image }

// NewModel returns a model of maps that are empty.
func NewModel(word uint64) *Model { return &Model{NewImage(word)} }

// Judge judges a packet on the live side.
func (m *Model) Judge(p Packet) Judgement { return judge(m, p) }

func (m *Model) endpoint(ifindex uint32) ([]netip.Addr, Rows, bool) {
	e, ok := m.Image.Endpoints[ifindex]
	return e.Addrs, e.Rows[m.Image.Live()], ok
}

func (m *Model) service(k ServiceKey) ([]Backend, bool) {
	x, ok := m.Image.Services[m.Image.Live()][k]
	return entries[Backend](m.Image.Backends[m.Image.Live()], x), ok
}

// resolve looks at every prefix: slow, and plainly the longest.
func (m *Model) resolve(a netip.Addr) PeerRef {
	if ref, ok := m.Image.Addresses[a]; ok {
		return ref
	}
	wide := netip.AddrFrom16(a.As16())
	best, found := PeerRef{}, -1
	for p, ref := range m.Image.Prefixes {
		if w := widen(p); w.Bits() > found && w.Contains(wide) {
			best, found = ref, w.Bits()
		}
	}
	return best
}

func (m *Model) class(p Peer) Class { return m.Image.Classes[m.Image.Live()][p] }

func (m *Model) cell(k CellKey) (PortMap, bool) {
	x, ok := m.Image.Cells[m.Image.Live()][k]
	return entries[Range](m.Image.Ranges[m.Image.Live()], x), ok
}

func (m *Model) pair(k RuleSetPair) rule.Verdict { return m.Image.Pairs[k] }

// Read returns a copy of the image.
func (m *Model) Read(context.Context) (*Image, error) {
	im := *m.Image
	im.Endpoints = maps.Clone(im.Endpoints)
	im.Addresses = maps.Clone(im.Addresses)
	im.Prefixes = maps.Clone(im.Prefixes)
	im.Pairs = maps.Clone(im.Pairs)
	for side := range 2 {
		im.Classes[side] = maps.Clone(im.Classes[side])
		im.Cells[side] = maps.Clone(im.Cells[side])
		im.Ranges[side] = maps.Clone(im.Ranges[side])
		im.Services[side] = maps.Clone(im.Services[side])
		im.Backends[side] = maps.Clone(im.Backends[side])
	}
	return &im, nil
}

// WriteEndpoints implements Target, as do the other methods below.
func (m *Model) WriteEndpoints(ws []EndpointWrite) error {
	for _, w := range ws {
		put(m.Image.Endpoints, w.Ifindex, w.Value, w.Delete)
	}
	return nil
}

func (m *Model) WriteAddresses(ws []AddressWrite) error {
	for _, w := range ws {
		put(m.Image.Addresses, w.Addr, w.Value, w.Delete)
	}
	return nil
}

func (m *Model) WritePrefixes(ws []PrefixWrite) error {
	for _, w := range ws {
		put(m.Image.Prefixes, w.Prefix, w.Value, w.Delete)
	}
	return nil
}

func (m *Model) WriteClasses(ws []ClassWrite) error {
	for _, w := range ws {
		put(m.Image.Classes[w.Side], w.Peer, w.Class, w.Class == NoClass)
	}
	return nil
}

func (m *Model) WriteCells(ws []CellWrite) error {
	for _, w := range ws {
		put(m.Image.Cells[w.Side], w.Key, w.Value, w.Delete)
	}
	return nil
}

func (m *Model) WriteRanges(ws []RangeWrite) error {
	for _, w := range ws {
		m.Image.Ranges[w.Side][w.Index] = w.Value
	}
	return nil
}

func (m *Model) WriteServices(ws []ServiceWrite) error {
	for _, w := range ws {
		put(m.Image.Services[w.Side], w.Key, w.Value, w.Delete)
	}
	return nil
}

func (m *Model) WriteBackends(ws []BackendWrite) error {
	for _, w := range ws {
		m.Image.Backends[w.Side][w.Index] = w.Value
	}
	return nil
}

func (m *Model) WritePairs(ws []PairWrite) error {
	for _, w := range ws {
		put(m.Image.Pairs, w.Pair, w.Value, w.Delete)
	}
	return nil
}

// Flip moves the word, which never goes back.
func (m *Model) Flip(word uint64) error {
	if word < m.Image.Word {
		return errors.New("the word went back")
	}
	m.Image.Word = word
	return nil
}

func (m *Model) Wait(context.Context) error { return nil }

func put[K comparable, V any](m map[K]V, k K, v V, gone bool) {
	if gone {
		delete(m, k)
		return
	}
	m[k] = v
}
