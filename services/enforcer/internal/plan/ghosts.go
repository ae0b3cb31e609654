package plan

import "net/netip"

// ghosts is what a packet may still know though no address and no endpoint
// refers to it any more, because no grace period has passed since. The zero
// value: nothing.
type ghosts struct {
	peers   map[Peer]bool
	classes map[Class]bool
	rows    map[Row]bool
}

func noGhosts() ghosts {
	return ghosts{peers: map[Peer]bool{}, classes: map[Class]bool{}, rows: map[Row]bool{}}
}

// see tells whether a packet that knows a ghost could see one of ops: a write in
// place to the live side before the next grace period.
func (g ghosts) see(ops []Op, live uint8) bool {
	for _, op := range ops {
		switch op := op.(type) {
		case Flip, Wait:
			return false
		case ClassWrite:
			if op.Side == live && g.peers[op.Peer] {
				return true
			}
		case CellWrite:
			if op.Side == live && (g.rows[op.Key.Row] || g.classes[op.Key.Class]) {
				return true
			}
		}
	}
	return false
}

// after returns the ghosts that are there when ops have been done to from.
func (g ghosts) after(ops []Op, from *State) ghosts {
	if g.peers == nil {
		g = noGhosts()
	}
	leave := func(ref PeerRef, there bool) {
		if there {
			g.peers[ref.Peer], g.classes[from.Classes[ref.Peer]] = true, true
		}
	}
	addrs, prefixes := map[netip.Addr]PeerRef{}, map[netip.Prefix]PeerRef{} // written meanwhile
	for _, op := range ops {
		switch op := op.(type) {
		case Wait:
			g = noGhosts()
		case AddressWrite:
			leave(standsFor(from.Addresses, addrs, op.Addr))
			addrs[op.Addr] = op.Value
		case PrefixWrite:
			leave(standsFor(from.Prefixes, prefixes, op.Prefix))
			prefixes[op.Prefix] = op.Value
		case EndpointWrite:
			if e, there := from.Endpoints[op.Ifindex]; there {
				g.rows[e.Egress], g.rows[e.Ingress] = true, true
			}
		}
	}
	return g
}

// standsFor is what a key stands for: by a write, or from the beginning.
func standsFor[K comparable](from, written map[K]PeerRef, k K) (PeerRef, bool) {
	if ref, ok := written[k]; ok {
		return ref, true
	}
	ref, ok := from[k]
	return ref, ok
}
