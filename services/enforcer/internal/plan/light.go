package plan

// light writes in place what no packet can see yet, then addresses and
// endpoints, then what no packet can see any more. Every single write takes the
// flows that see it from the old verdict to the new one. The word moves only if
// an address that was judged means something else now.
func (t *transition) light() ([]Op, error) {
	var ops, later []Op
	moved := false
	for _, c := range t.pairs {
		w := PairWrite{Pair: c.key, Value: c.value, Delete: c.gone}
		if c.gone {
			later = append(later, w)
		} else {
			ops = append(ops, w)
		}
	}
	for side := range uint8(2) {
		ops = append(ops, t.places(side)...)
	}
	for side := range uint8(2) {
		for _, c := range t.cells {
			w := CellWrite{Side: side, Key: c.key, Value: t.cellAt[c.key], Delete: c.gone}
			if t.cellWhen(c) == before {
				ops = append(ops, w)
			} else {
				later = append(later, w)
			}
		}
	}
	for side := range uint8(2) {
		for _, c := range t.classes {
			w := ClassWrite{Side: side, Peer: c.key, Class: c.value}
			if t.classWhen(c) == before {
				ops = append(ops, w)
			} else {
				later = append(later, w)
			}
		}
	}
	// Endpoints and addresses of theirs that go, go before peers change; those
	// that come, after.
	ops = append(ops, t.endpointsGone()...)
	ops = append(ops, t.endpointsShrunk()...)
	for _, r := range inOrder(t.refs) {
		ops = append(ops, r.settle())
		moved = moved || t.rejudge(r)
	}
	for _, c := range t.endpoints {
		if c.gone {
			continue
		}
		ops = append(ops, EndpointWrite{Ifindex: c.key, Value: image(c.value, rowsOf(c.value), rowsOf(c.value), c.value.Addrs)})
		moved = moved || t.endpointMoves(c)
	}
	if moved {
		ops = append(ops, Flip{Word: t.word + 1})
	}
	if moved || len(later) > 0 {
		ops = append(ops, Wait{})
	}
	return append(ops, later...), nil
}

// endpointsShrunk takes from endpoints the addresses that they lose.
func (t *transition) endpointsShrunk() []Op {
	var ops []Op
	for _, c := range t.endpoints {
		was := t.from.Endpoints[c.key]
		if both := bothAddrs(was, c.value); was.ID == c.value.ID && len(both) < len(was.Addrs) {
			ops = append(ops, EndpointWrite{Ifindex: c.key, Value: image(was, rowsOf(was), rowsOf(was), both)})
		}
	}
	return ops
}

// rejudge tells whether flows of an address were judged that may be judged
// differently now.
func (t *transition) rejudge(r refChange) bool {
	was := classOf(t.from.Classes, r.was)
	if was == NoClass {
		return false
	}
	const host = FlagHost | FlagRemoteNode
	return was != classOf(t.to.Classes, r.will) || r.was.Flags&host != r.will.Flags&host
}

// endpointMoves tells whether a changed endpoint has flows that must be judged
// anew: it lost an address, or it is another one on the same interface.
func (t *transition) endpointMoves(c change[uint32, Endpoint]) bool {
	was, there := t.from.Endpoints[c.key]
	if !there {
		return false
	}
	return was.ID != c.value.ID || len(bothAddrs(was, c.value)) < len(was.Addrs)
}

// classOf is the class that a reference gets: none if it is pending.
func classOf(classes map[Peer]Class, ref PeerRef) Class {
	if ref.Flags&flagsPending != 0 || ref.Peer == NoPeer {
		return NoClass
	}
	return classes[ref.Peer]
}

// places are the writes of new port maps and backends to one side.
func (t *transition) places(side uint8) []Op {
	ops := make([]Op, 0, len(t.newRanges)+len(t.newBacks))
	for _, w := range t.newRanges {
		w.Side = side
		ops = append(ops, w)
	}
	for _, w := range t.newBacks {
		w.Side = side
		ops = append(ops, w)
	}
	return ops
}
