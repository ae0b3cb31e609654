// Package judgetest holds cases of the judgement itself, without packets or
// conntrack. Both implementations run them: the programs in the kernel (in
// bpf/tests) and the planner's model in Go, so that they cannot come to differ.
//
// It is plain values and imports nothing but the datapath's constants.
package judgetest

import (
	"net/netip"

	"weir.dev/weir/bpf/datapath"
)

// State is what one side of the kernel's state says.
type State struct {
	Endpoints []Endpoint
	Addresses []Address
	Prefixes  []Prefix
	Classes   map[uint32]uint32 // peer → class
	Cells     []Cell
	Services  []Service
	Pairs     []Pair
}

// Endpoint is one interface; indexes are small numbers that a test maps to
// interfaces of its own.
type Endpoint struct {
	Index           int
	Egress, Ingress uint32 // rows
	Addrs           []netip.Addr
}

// Address is a full address; Prefix a range.
type (
	Address struct {
		Addr        netip.Addr
		Peer, Flags uint32
	}
	Prefix struct {
		Prefix      netip.Prefix
		Peer, Flags uint32
	}
)

// Cell is the port map of a row and a class.
type Cell struct {
	Row, Class uint32
	Ranges     []Range
}

// Range begins at a protocol and port and goes to the next one's start.
type Range struct {
	Protocol uint8
	Port     uint16
	Verdict  uint32
}

// Service is what an address, protocol and port lead to.
type Service struct {
	Addr     netip.Addr
	Protocol uint8
	Port     uint16
	Backends []Backend
}

// Backend is a peer and the port it is reached at.
type Backend struct {
	Peer uint32
	Port uint16
}

// Pair is the rule set that stands for two.
type Pair struct{ A, B, Verdict uint32 }

// Packet is the first of a flow, as an endpoint's egress or ingress sees it.
type Packet struct {
	Index    int
	Ingress  bool
	Own      netip.Addr // the endpoint's end
	Peer     netip.Addr
	Protocol uint8
	Port     uint16 // destination port; ICMP: type
}

// Case is a packet and what must be said of it.
type Case struct {
	Name    string
	Packet  Packet
	Verdict uint32
	Reason  datapath.Reason // of a denial
}

// Protocols.
const (
	TCP    = 6
	UDP    = 17
	ICMP   = 1
	ICMPv6 = 58
	SCTP   = 132
)
