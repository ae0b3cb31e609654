package desired

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// peerKey tells peers apart: two addresses with equal keys are matched by the
// same selectors, whatever the policy says of identities, entities and prefixes.
type peerKey struct {
	entered Position // of the identity; zero: not a pod
	entity  rule.Entity
	prefix  netip.Prefix // the longest of the policy's; zero: none covers it
	names   string       // live DNS names, each with a blank after it
}

// numberedClass is a class that some peer of the build has.
type numberedClass struct {
	number  plan.Class
	matched []rule.ID // peer selectors, sorted
	entity  rule.Entity
	key     string
}

var everywhere = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// onLink are the addresses that no router passes on, and the groups that every
// node or router is in. Behind a pod's veth that is the node, which takes what is
// sent there as what is sent to its other addresses.
var onLink = []netip.Prefix{
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff01::/16"),
	netip.MustParsePrefix("ff02::1/128"),
	netip.MustParsePrefix("ff02::2/128"),
	netip.MustParsePrefix("ff02::1:ff00:0/104"),
	netip.MustParsePrefix("ff05::2/128"),
	netip.MustParsePrefix("224.0.0.1/32"),
	netip.MustParsePrefix("224.0.0.2/32"),
}

func isOnLink(p netip.Prefix) bool {
	return slices.ContainsFunc(onLink, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
}

// prefixes fills the longest-prefix table: the policy's prefixes, the two that
// cover everything, and the cluster's ranges. An address of a cluster range
// that has no record is pending, however long the policy's prefix there is.
func (x *build) prefixes() error {
	x.policyPrefixes = map[netip.Prefix]bool{}
	list := append(slices.Clone(everywhere), onLink...)
	if x.in.Index != nil {
		for _, p := range x.in.Index.Prefixes() {
			x.policyPrefixes[p] = true
			list = append(list, p)
			if lengths := &x.lengths4; p.Addr().Is4() {
				*lengths = append(*lengths, p.Bits())
			} else {
				x.lengths6 = append(x.lengths6, p.Bits())
			}
		}
	}
	for _, lengths := range []*[]int{&x.lengths4, &x.lengths6} {
		slices.Sort(*lengths)
		*lengths = slices.Compact(*lengths)
		slices.Reverse(*lengths)
	}
	for _, p := range x.in.ClusterCIDRs {
		list = append(list, p.Masked())
	}
	for _, p := range list {
		ref, err := x.prefixRef(p)
		if err != nil {
			return fmt.Errorf("prefix %s: %w", p, err)
		}
		x.state.Prefixes[p] = ref
	}
	return nil
}

func (x *build) prefixRef(p netip.Prefix) (plan.PeerRef, error) {
	for _, c := range x.in.ClusterCIDRs {
		if c.Bits() <= p.Bits() && c.Contains(p.Addr()) {
			return plan.PeerRef{Flags: plan.FlagPending | plan.FlagCluster}, nil
		}
	}
	if isOnLink(p) {
		peer, err := x.peer(peerKey{entity: rule.Host, prefix: x.longest(p)})
		return plan.PeerRef{Peer: peer, Flags: plan.FlagHost}, err
	}
	peer, err := x.peer(peerKey{entity: rule.World, prefix: x.longest(p)})
	return plan.PeerRef{Peer: peer}, err
}

// longest is the longest of the policy's prefixes that covers p.
func (x *build) longest(p netip.Prefix) netip.Prefix {
	lengths := x.lengths6
	if p.Addr().Is4() {
		lengths = x.lengths4
	}
	for _, bits := range lengths {
		if bits > p.Bits() {
			continue
		}
		if covering := netip.PrefixFrom(p.Addr(), bits).Masked(); x.policyPrefixes[covering] {
			return covering
		}
	}
	return netip.Prefix{}
}

// addresses fills the table of full addresses. What an interface of this node
// has is the node's own, whatever a record says; what a local endpoint has means
// that endpoint, and a record of another pod is late.
func (x *build) addresses() error {
	if err := x.names(); err != nil {
		return err
	}
	local := map[netip.Addr]string{}
	for _, e := range x.in.Endpoints {
		for _, a := range e.Addrs {
			local[a] = e.PodUID
			if err := x.address(Record{Addr: a, Node: x.in.Node, Identity: e.Identity, Entered: e.Entered}); err != nil {
				return err
			}
		}
	}
	for _, r := range x.in.Records {
		if uid, mine := local[r.Addr]; mine && uid != r.PodUID {
			continue
		}
		if err := x.address(r); err != nil {
			return err
		}
	}
	for _, a := range x.in.NodeAddrs {
		if err := x.address(Record{Addr: a, Node: x.in.Node, NodeAddress: true}); err != nil {
			return err
		}
	}
	return nil
}

// names gives an address with live names a peer of its own, which is also all
// that its prefixes make of it: an exact entry hides them in the kernel.
func (x *build) names() error {
	for a, names := range x.in.Names {
		host := netip.PrefixFrom(a, a.BitLen())
		ref, err := x.prefixRef(host)
		if err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
		if ref.Flags == 0 {
			key := peerKey{entity: rule.World, prefix: x.longest(host), names: strings.Join(names, " ") + " "}
			if ref.Peer, err = x.peer(key); err != nil {
				return fmt.Errorf("address %s: %w", a, err)
			}
		}
		x.state.Addresses[a] = ref
	}
	return nil
}

func (x *build) address(r Record) error {
	ref, err := x.addressRef(r)
	if err != nil {
		return fmt.Errorf("address %s: %w", r.Addr, err)
	}
	x.state.Addresses[r.Addr] = ref
	return nil
}

// addressRef is pending unless the policy in force knows the identity.
func (x *build) addressRef(r Record) (plan.PeerRef, error) {
	key := peerKey{prefix: x.longest(netip.PrefixFrom(r.Addr, r.Addr.BitLen()))}
	var flags plan.Flags
	switch {
	case r.NodeAddress && r.Node == x.in.Node:
		key.entity, flags = rule.Host, plan.FlagHost
	case r.NodeAddress:
		key.entity, flags = rule.RemoteNode, plan.FlagRemoteNode
	default:
		entered, known := x.entered(r)
		if !known {
			return plan.PeerRef{Flags: plan.FlagPending}, nil
		}
		key.entity, key.entered = rule.Endpoints, entered
	}
	peer, err := x.peer(key)
	return plan.PeerRef{Peer: peer, Flags: flags}, err
}

// entered is where the record's identity entered the log of the policy in force,
// whose numbers name identities. It must not be newer than that policy. A record
// that was rewritten for a log that begins anew says nothing of the old one; an
// identity's hash means the same in both, so what older records said holds.
func (x *build) entered(r Record) (Position, bool) {
	at := x.in.At
	switch {
	case r.Identity == rule.IdentityHash{} || r.Entered.Revision == 0:
		return Position{}, false
	case r.Entered.Generation == at.Generation:
		x.builder.entered[r.Identity] = r.Entered.Revision
		return r.Entered, r.Entered.Revision <= at.Revision
	case r.Entered.Generation < at.Generation:
		return Position{}, false
	}
	before, ok := x.builder.entered[r.Identity]
	return Position{at.Generation, before}, ok && before <= at.Revision
}

// peer numbers a peer and its class. Without a policy no peer has a class.
func (x *build) peer(key peerKey) (plan.Peer, error) {
	if x.builder.peers.named[key] {
		return plan.Peer(x.builder.peers.byKey[key]), nil
	}
	n, err := x.builder.peers.of(key)
	if err != nil {
		return plan.NoPeer, fmt.Errorf("peers: %w", err)
	}
	peer := plan.Peer(n)
	if x.in.Index == nil {
		return peer, nil
	}
	matched := x.in.Index.Matches(merge.PeerDesc{
		Identity: key.entered.Revision, Entity: key.entity, Prefix: key.prefix, Names: strings.Fields(key.names),
	})
	class, err := x.class(matched, key.entity)
	if err != nil {
		return plan.NoPeer, err
	}
	x.state.Classes[peer] = class
	x.explain.peers[peer] = key
	return peer, nil
}

// class numbers the class of peers that exactly matched match. Of the entities
// only the own node is judged apart from what selectors say.
func (x *build) class(matched []rule.ID, entity rule.Entity) (plan.Class, error) {
	if entity != rule.Host {
		entity = rule.World
	}
	var sb strings.Builder
	sb.WriteByte(byte(entity))
	for _, id := range matched {
		sb.Write(id[:])
	}
	key := sb.String()
	known := x.builder.classes.named[key]
	n, err := x.builder.classes.of(key)
	if err != nil {
		return plan.NoClass, fmt.Errorf("classes: %w", err)
	}
	if !known {
		x.classes = append(x.classes, numberedClass{plan.Class(n), matched, entity, key})
	}
	return plan.Class(n), nil
}
