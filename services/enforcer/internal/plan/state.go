package plan

import (
	"net/netip"

	"weir.dev/weir/engine/rule"
)

// Numbers on this node. Who builds a State chooses them. A number is not
// reused for another meaning while a realized or desired State names it.
type (
	// Peer is what an address or a prefix stands for: one combination of
	// identity, covering prefixes, entity and names.
	Peer uint32
	// Class is a set of peers that the same selectors of this node match.
	Class uint32
	// Row is what one endpoint's packets are judged by in one direction.
	Row uint32
)

const (
	// NoPeer has no class, ever; who refers to it is pending.
	NoPeer Peer = 0
	// NoClass is the class of a peer that Classes does not name: pending.
	NoClass Class = 0
	// FirstClass is the least class that may have cells.
	FirstClass Class = 1
	// DefaultClass keys the cell of a row that all classes without a cell of
	// their own get. It is the class of no peer.
	DefaultClass Class = 0xffffffff

	// RowClosed denies everything: an endpoint that has no policy yet.
	RowClosed Row = 0
	// RowOpen allows every peer that is not pending: no policy selects the
	// endpoint in this direction. It has no cells.
	RowOpen Row = 1
	// FirstRow is the least row that may have cells.
	FirstRow Row = 2
)

// Flags of a PeerRef, as in bpf/lib/abi.h.
type Flags uint32

const (
	FlagHost       Flags = 1 // an address of this node
	FlagRemoteNode Flags = 2 // an address of another node
	FlagPending    Flags = 4 // known, but not to be judged yet
	FlagCluster    Flags = 8 // of a cluster range, without a record: pending

	// flagsPending are those whose addresses are dropped, whatever their class.
	flagsPending = FlagPending | FlagCluster
)

// State is what the kernel must show: the same on both sides, once a plan is
// done. The zero State denies everything. Maps may be nil; what a State holds is
// not changed after it was handed over.
type State struct {
	Endpoints map[uint32]Endpoint      // by ifindex of the endpoint's host veth
	Addresses map[netip.Addr]PeerRef   // IPv4 as IPv4, never mapped; no zones
	Prefixes  map[netip.Prefix]PeerRef // masked; IPv4 as IPv4
	// Classes names the class of every peer that is to be judged. The prefix
	// ::/0 also covers IPv4 addresses that no IPv4 prefix covers.
	Classes map[Peer]Class
	// Cells of rows >= FirstRow. A row needs a cell of DefaultClass, and cells
	// of those classes only that differ from it; a class without either is denied.
	Cells    map[CellKey]PortMap
	Services map[ServiceKey][]Backend
	// Pairs says which rule set stands for two that the backends of one service
	// demand together. It follows from the rule sets' content alone: a State
	// that names both sets holds the pair, if there is one, and its value never
	// changes. A pair that is missing denies.
	Pairs map[RuleSetPair]rule.Verdict
}

// Endpoint is one pod's interface on this node.
type Endpoint struct {
	ID      uint32 // on this node, never zero, never reused
	Egress  Row
	Ingress Row
	PodMAC  [6]byte
	HostMAC [6]byte
	Addrs   []netip.Addr // its own, 1 to MaxEndpointAddrs; IPv4 never mapped
}

// MaxEndpointAddrs is how many addresses of its own an endpoint may have.
const MaxEndpointAddrs = 4

// PeerRef is what an address or a prefix stands for.
type PeerRef struct {
	Peer  Peer
	Flags Flags
}

// CellKey finds a port map.
type CellKey struct {
	Row   Row
	Class Class
}

// A PortMap partitions all packets: starts ascend, the first is 0. The empty
// PortMap denies everything.
type PortMap []Range

// Range goes from Start to the next range's Start. Start is protocol<<16 | port
// (ICMP: type; protocols without ports: 0).
type Range struct {
	Start   uint32
	Verdict rule.Verdict
}

// ServiceKey is an address, protocol and port (host byte order) of a Service.
type ServiceKey struct {
	Addr     netip.Addr
	Protocol uint8
	Port     uint16
}

// Backend is where a Service leads, as the judgement sees it. Lists of them are
// sorted by peer and port, without duplicates, at most MaxBackends; a longer
// list denies, as does an empty one.
type Backend struct {
	Peer Peer
	Port uint16 // host byte order
}

// MaxBackends is how many different (peer, port) a Service may lead to.
const MaxBackends = 64

// RuleSetPair names two rule sets, the lesser first.
type RuleSetPair struct{ A, B rule.Verdict }

// Limits are the sizes of the kernel's maps.
type Limits struct {
	Endpoints int
	Addresses int
	Prefixes  int
	Peers     int // entries of weir_classes a side; peers are below
	Cells     int // of both sides together
	Ranges    int // a side
	Services  int // of both sides together
	Backends  int // a side
	Pairs     int
}

// PeerLimit is the first number that State must not use as a peer: those from
// there on are the planner's own, for addresses whose meaning changes together
// with the policy.
func (l Limits) PeerLimit() Peer { return Peer(l.Peers - l.Peers/8) }
