package plan

import (
	"errors"
	"net/netip"
	"slices"
)

// ErrPeers says that the planner has no peer number left for addresses that
// change together with the policy.
var ErrPeers = errors.New("plan: too many addresses change their meaning at once; raise the size of weir_classes")

// full is a transition with its addresses' way through the move of the word.
type full struct {
	*transition
	// Classes of peers for as long as the word has not moved (on the live
	// side), and from then on until the end (on the resting side), where they
	// differ from what from and to say.
	liveClass map[Peer]Class
	restClass map[Peer]Class
	temps     map[temp]Peer
	nextTemp  Peer

	early []refChange // settled before the word moves
	late  []refChange // after it
	via   map[refKey]PeerRef
}

// temp is what a peer of the planner's own means, before and after.
type temp struct {
	before, after Class
	flags         Flags
}

// full writes the resting side, moves the word, waits, and brings the old side
// up. An address whose class changes gets, before the word moves, a peer whose
// class is on the live side what it was, and on the resting side what it will be.
func (t *transition) full() ([]Op, error) {
	f := &full{
		transition: t, liveClass: map[Peer]Class{}, restClass: map[Peer]Class{},
		temps: map[temp]Peer{}, nextTemp: t.limits.PeerLimit(), via: map[refKey]PeerRef{},
	}
	for _, r := range t.refs {
		if err := f.route(r); err != nil {
			return nil, err
		}
	}
	ops := f.refine()
	ops = append(ops, f.side(t.rest, f.restClass)...)
	ops = append(ops, f.endpointsRest()...)
	ops = append(ops, Flip{Word: t.word + 1}, Wait{})
	ops = append(ops, f.coarsen()...)
	ops = append(ops, f.endpointsBoth()...)
	ops = append(ops, f.side(t.live, nil)...)
	for _, c := range t.pairs {
		if c.gone {
			ops = append(ops, PairWrite{Pair: c.key, Delete: true})
		}
	}
	return append(ops, f.retire()...), nil
}

// route decides when and how an address or a prefix changes. was and will are
// its classes on the live and on the resting side.
func (f *full) route(r refChange) error {
	was, will := classOf(f.from.Classes, r.was), classOf(f.to.Classes, r.will)
	if f.fitsEarly(r, was, will) {
		f.early = append(f.early, r)
		return nil
	}
	f.late = append(f.late, r)
	if f.fitsLate(r, was, will) {
		return nil
	}
	peer, err := f.temp(temp{was, will, r.will.Flags &^ flagsPending})
	if err != nil {
		return err
	}
	f.via[r.key] = PeerRef{Peer: peer, Flags: r.will.Flags &^ flagsPending}
	return nil
}

// fitsEarly: on the live side the new reference is judged as the old one, or it
// is pending there already, as it will be.
func (f *full) fitsEarly(r refChange, was, will Class) bool {
	pending := will == NoClass && (was == NoClass || !f.serviceChanges(r))
	if !r.inTo {
		return pending && classOf(f.from.Classes, r.over) == NoClass
	}
	peer := r.will.Peer
	live := NoClass
	switch assigned, ok := f.liveClass[peer]; {
	case r.will.Flags&flagsPending != 0 || peer == NoPeer:
	case f.seen().peers[peer]:
		live = f.from.Classes[peer]
	case ok:
		live = assigned
	default: // nothing on the live side refers to it: it may mean what we need
		f.liveClass[peer] = was
		live = was
	}
	return live == was || live == NoClass && pending
}

// fitsLate: on the resting side the old reference is judged as the new one, or
// it stays pending, as it was, until it is written.
func (f *full) fitsLate(r refChange, was, will Class) bool {
	pending := was == NoClass && (will == NoClass || !f.serviceChanges(r))
	rest := NoClass
	if !r.inFrom {
		rest = classOf(f.to.Classes, r.overWill)
		return rest == will || rest == NoClass && pending
	}
	peer := r.was.Peer
	class, kept := f.to.Classes[peer]
	switch assigned, ok := f.restClass[peer]; {
	case r.was.Flags&flagsPending != 0 || peer == NoPeer:
	case kept || f.willBe().peers[peer]:
		rest = class
	case ok:
		rest = assigned
	default: // nothing will refer to it
		f.restClass[peer] = will
		rest = will
	}
	return rest == will || rest == NoClass && pending
}

// serviceChanges: an address of the key is, was or will be also that of a
// service, so that it may not be pending early or late: one of its flows is
// judged by the service on one side, and by the reference on the other.
func (f *full) serviceChanges(r refChange) bool {
	return slices.ContainsFunc(f.services, func(c change[ServiceKey, []Backend]) bool {
		return r.key.prefix.Contains(netip.AddrFrom16(c.key.Addr.As16()))
	})
}

// temp returns the peer of the planner's own that means w.
func (f *full) temp(w temp) (Peer, error) {
	if p, ok := f.temps[w]; ok {
		return p, nil
	}
	for ; int(f.nextTemp) < f.limits.Peers; f.nextTemp++ {
		p := f.nextTemp
		if _, used := f.from.Classes[p]; used || f.seen().peers[p] {
			continue
		}
		f.nextTemp++
		f.temps[w] = p
		f.liveClass[p], f.restClass[p] = w.before, w.after
		return p, nil
	}
	return NoPeer, ErrPeers
}

// refine is what is written before the resting side.
func (f *full) refine() []Op {
	var ops []Op
	for _, c := range f.pairs {
		if !c.gone {
			ops = append(ops, PairWrite{Pair: c.key, Value: c.value})
		}
	}
	for _, p := range sortedKeys(f.liveClass) {
		if f.from.Classes[p] != f.liveClass[p] {
			ops = append(ops, ClassWrite{Side: f.live, Peer: p, Class: f.liveClass[p]})
		}
	}
	ops = append(ops, f.endpointsGone()...)
	early := slices.Clone(f.early)
	for _, r := range f.late {
		if ref, ok := f.via[r.key]; ok {
			r.inTo, r.will = true, ref
			early = append(early, r)
		}
	}
	for _, r := range inOrder(early) {
		ops = append(ops, r.settle())
	}
	return ops
}

// coarsen is what is written to addresses after the grace period.
func (f *full) coarsen() []Op {
	var ops []Op
	for _, r := range inOrder(f.late) {
		ops = append(ops, r.settle())
	}
	return ops
}

// side brings one side to what to says, but for the classes in except.
func (f *full) side(side uint8, except map[Peer]Class) []Op {
	ops := f.places(side)
	for _, gone := range []bool{true, false} { // room is made first
		for _, c := range f.cells {
			if c.gone == gone {
				ops = append(ops, CellWrite{Side: side, Key: c.key, Value: f.cellAt[c.key], Delete: gone})
			}
		}
		for _, c := range f.services {
			if c.gone == gone {
				ops = append(ops, ServiceWrite{Side: side, Key: c.key, Value: f.serviceAt[c.key], Delete: gone})
			}
		}
	}
	holds := func(p Peer) Class { // what the side says before
		if c, ok := f.liveClass[p]; ok && side == f.live {
			return c
		}
		return f.from.Classes[p]
	}
	touched := map[Peer]Class{}
	for _, c := range f.classes {
		touched[c.key] = c.value
	}
	if side == f.live {
		for p := range f.liveClass {
			touched[p] = f.to.Classes[p]
		}
	}
	for p, c := range except {
		touched[p] = c
	}
	for _, p := range sortedKeys(touched) {
		if holds(p) != touched[p] {
			ops = append(ops, ClassWrite{Side: side, Peer: p, Class: touched[p]})
		}
	}
	return ops
}

// retire clears peers that only the way needed, when no packet knows them any more.
func (f *full) retire() []Op {
	var ops []Op
	for _, p := range sortedKeys(f.restClass) {
		if f.restClass[p] != NoClass {
			ops = append(ops, ClassWrite{Side: f.rest, Peer: p})
		}
	}
	if len(ops) == 0 {
		return nil
	}
	return append([]Op{Wait{}}, ops...)
}

// endpointsGone deletes endpoints that are not the same in to.
func (t *transition) endpointsGone() []Op {
	var ops []Op
	for _, c := range t.endpoints {
		was, there := t.from.Endpoints[c.key]
		if there && (c.gone || was.ID != c.value.ID) {
			ops = append(ops, EndpointWrite{Ifindex: c.key, Delete: true})
		}
	}
	return ops
}

// endpointsRest gives endpoints their rows on the resting side. Addresses that
// are in one state only are not the endpoint's own for the while: denied.
func (f *full) endpointsRest() []Op {
	var ops []Op
	for _, c := range f.endpoints {
		was, there := f.from.Endpoints[c.key]
		if !there || c.gone || was.ID != c.value.ID {
			continue
		}
		var rows [2]Rows
		rows[f.live], rows[f.rest] = rowsOf(was), rowsOf(c.value)
		ops = append(ops, EndpointWrite{Ifindex: c.key, Value: image(c.value, rows[0], rows[1], bothAddrs(was, c.value))})
	}
	return ops
}

// endpointsBoth makes endpoints what to says, on both sides.
func (f *full) endpointsBoth() []Op {
	var ops []Op
	for _, c := range f.endpoints {
		if !c.gone {
			ops = append(ops, EndpointWrite{Ifindex: c.key, Value: image(c.value, rowsOf(c.value), rowsOf(c.value), c.value.Addrs)})
		}
	}
	return ops
}

func rowsOf(e Endpoint) Rows { return Rows{Egress: e.Egress, Ingress: e.Ingress} }

func image(e Endpoint, left, right Rows, addrs []netip.Addr) EndpointImage {
	return EndpointImage{ID: e.ID, Rows: [2]Rows{left, right}, PodMAC: e.PodMAC, HostMAC: e.HostMAC, Addrs: addrs}
}

// bothAddrs are the addresses that two states of an endpoint share.
func bothAddrs(a, b Endpoint) []netip.Addr {
	var both []netip.Addr
	for _, addr := range a.Addrs {
		if slices.Contains(b.Addrs, addr) {
			both = append(both, addr)
		}
	}
	return both
}
