// Package merge turns the resolved rules that a node holds into what its
// kernel maps say: for an endpoint's row and a class of peers, one port map.
//
// It is a pure function of its input: no clock, no I/O, no goroutines, and no
// result that depends on map order, so that every node computes equal verdicts.
//
//	resolved rules → rows → peer classes → cells → port maps
package merge

import (
	"net/netip"

	"weir.dev/weir/engine/rule"
)

// Policy is what a node holds of the cluster's policy at one revision.
type Policy struct {
	Selectors []rule.Selector // sorted by ID
	Rules     []rule.Rule     // sorted by ID
	RuleSets  []rule.RuleSet  // sorted by ID
}

// RowKey is what endpoints' packets are judged by: the set of subject selectors
// that an endpoint is in, and the direction.
type RowKey struct {
	Subjects  []rule.ID // sorted
	Direction rule.Direction
}

// PeerDesc is what is known of an address, or of all addresses of a prefix that
// no longer prefix covers.
type PeerDesc struct {
	Identity rule.Revision // zero: not a pod
	Entity   rule.Entity   // World, Host or RemoteNode; Endpoints for a pod
	Prefix   netip.Prefix  // full length for one address
	Names    []string      // live DNS names of the address, sorted
}

// Kind of a port verdict. The zero Kind denies.
type Kind uint8

const (
	Deny Kind = iota
	Allow
	HTTP
)

// PortVerdict is what a range of a port map says. RuleSet is set for HTTP only.
type PortVerdict struct {
	Kind    Kind
	RuleSet rule.ID
}

// Range goes from Start to the next range's Start. Start is protocol<<16 | port
// (ICMP: type; protocols without ports: 0).
type Range struct {
	Start   uint32
	Verdict PortVerdict
}

// PortMap partitions all packets: starts ascend, the first is 0, and no two
// neighbours have the same verdict. Equal policies have equal port maps.
type PortMap []Range

// Attribution says which rule decided each range of a port map: the least of
// those that agree with the verdict by tier, priority, kind, namespace, name,
// path. It is finer than the port map, and beside it: it never enters the kernel.
type Attribution []AttributedRange

// AttributedRange goes from Start to the next one's Start.
type AttributedRange struct {
	Start uint32
	Rule  rule.ID // zero: no rule decided; Isolated tells why it is denied
	// Isolated are the Isolate rules that close the row, sorted; set where no
	// rule decided and the verdict is deny.
	Isolated []rule.ID
}
