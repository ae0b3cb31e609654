package tests

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"

	"weir.dev/weir/bpf/datapath"
)

// small are capacities that suit a test.
var small = datapath.Sizes{
	Peers: 64, Ranges: 256, Backends: 256, Endpoints: 16, CtTCP: 1024, CtAny: 1024,
	RingBytes: uint32(64 * os.Getpagesize()),
}

// kernel is one loaded collection, and writes its maps as an enforcer would.
type kernel struct {
	testing.TB
	*ebpf.Collection
	ranges, backends uint32 // next free
}

// load puts the programs and fresh maps into the kernel.
func load(t testing.TB, sizes datapath.Sizes) *kernel {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	spec, err := datapath.LoadWeir()
	if err != nil {
		t.Fatal(err)
	}
	if err := sizes.Apply(spec); err != nil {
		t.Fatal(err)
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		var rejected *ebpf.VerifierError
		if errors.As(err, &rejected) {
			t.Log(strings.Join(rejected.Log[max(0, len(rejected.Log)-60):], "\n"))
		}
		t.Fatal(err)
	}
	t.Cleanup(coll.Close)
	k := &kernel{TB: t, Collection: coll}
	k.flip(firstWord)
	return k
}

// firstWord has the left side live.
const firstWord = 1000

func (k *kernel) put(name string, key, value any) {
	k.Helper()
	if err := k.Maps[name].Put(key, value); err != nil {
		k.Fatalf("write %s: %v", name, err)
	}
}

func (k *kernel) flip(word uint64) { k.put(datapath.MapWord, uint32(0), word) }

// addr16 is an address as the maps have it.
func addr16(a netip.Addr) datapath.WeirAddr { return datapath.WeirAddr{A: a.As16()} }

// endpoint is an interface with the same rows on both sides.
type endpoint struct {
	ifindex         uint32
	egress, ingress uint32
	podMAC, hostMAC [6]byte
	addrs           []netip.Addr
}

func (k *kernel) endpoint(e endpoint) {
	k.Helper()
	v := datapath.WeirEndpoint{
		RowEgress:  [2]uint32{e.egress, e.egress},
		RowIngress: [2]uint32{e.ingress, e.ingress},
		Id:         e.ifindex + 100,
		PodMac:     e.podMAC, HostMac: e.hostMAC,
		N_addrs: uint32(len(e.addrs)),
	}
	for i, a := range e.addrs {
		v.Addrs[i] = addr16(a)
	}
	k.put(datapath.MapEndpoints, e.ifindex, v)
}

// peer gives an address a peer number, which has a class of the same number.
func (k *kernel) peer(a netip.Addr, peer, flags uint32) {
	k.Helper()
	k.put(datapath.MapAddresses, addr16(a), datapath.WeirPeerRef{Peer: peer, Flags: flags})
	k.class(peer, peer)
}

func (k *kernel) prefix(p netip.Prefix, peer, flags uint32) {
	k.Helper()
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	key := datapath.WeirPrefixKey{PrefixLen: uint32(bits), Addr: addr16(p.Addr())}
	k.put(datapath.MapPrefixes, key, datapath.WeirPeerRef{Peer: peer, Flags: flags})
	k.class(peer, peer)
}

func (k *kernel) class(peer, class uint32) {
	k.Helper()
	k.put(datapath.MapClasses, peer, class)
	k.put(datapath.MapClasses, small.Peers+peer, class)
}

// start is where a range begins.
func start(protocol uint8, port uint16) uint32 { return uint32(protocol)<<16 | uint32(port) }

// cell writes a port map, on both sides.
func (k *kernel) cell(row, class uint32, ranges ...datapath.WeirRange) {
	k.Helper()
	k.cellOf(0, row, class, ranges...)
	k.cellOf(1, row, class, ranges...)
}

func (k *kernel) cellOf(side, row, class uint32, ranges ...datapath.WeirRange) {
	k.Helper()
	first := k.ranges
	for _, r := range ranges {
		k.put(datapath.MapRanges, side*small.Ranges+k.ranges, r)
		k.ranges++
	}
	key := datapath.WeirCellKey{Side: side, Row: row, ClassId: class}
	k.put(datapath.MapCells, key, datapath.WeirCell{First: first, N: uint32(len(ranges))})
}

// only is a port map that gives one protocol and port a verdict, the rest none.
func only(protocol uint8, port uint16, verdict uint32) []datapath.WeirRange {
	s := start(protocol, port)
	return []datapath.WeirRange{{Start: 0}, {Start: s, Verdict: verdict}, {Start: s + 1}}
}

// drops reads the drop events that are there.
func (k *kernel) drops() []datapath.WeirEvent { return k.events(datapath.MapDrops) }

// flows reads the flow events that are there.
func (k *kernel) flows() []datapath.WeirEvent { return k.events(datapath.MapFlows) }

func (k *kernel) events(name string) []datapath.WeirEvent {
	k.Helper()
	r, err := ringbuf.NewReader(k.Maps[name])
	if err != nil {
		k.Fatalf("open %s: %v", name, err)
	}
	defer r.Close()
	r.SetDeadline(time.Unix(1, 0)) // only what is there
	var events []datapath.WeirEvent
	for {
		rec, err := r.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return events
		}
		if err != nil {
			k.Fatalf("read %s: %v", name, err)
		}
		if len(rec.RawSample) < int(unsafe.Sizeof(datapath.WeirEvent{})) {
			k.Fatalf("read %s: event of %d bytes", name, len(rec.RawSample))
		}
		events = append(events, *(*datapath.WeirEvent)(unsafe.Pointer(&rec.RawSample[0])))
	}
}

// counted is what weir_counters has for a reason, over all CPUs.
func (k *kernel) counted(reason datapath.Reason, ingress bool) uint64 {
	k.Helper()
	index := uint32(reason) * 2
	if ingress {
		index++
	}
	var perCPU []uint64
	if err := k.Maps[datapath.MapCounters].Lookup(index, &perCPU); err != nil {
		k.Fatalf("read counter %d: %v", index, err)
	}
	var sum uint64
	for _, n := range perCPU {
		sum += n
	}
	return sum
}
