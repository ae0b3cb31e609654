package resolve

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
)

// fold is what all policies of the v1 semantics that govern an identity say
// together: one allow set for each direction. Identities that the same policies
// govern, and whose named ports that they ask for are the same, share a fold.
//
// A peer must be selected by an entry of any rule and by every requirement of
// all rules; the ports are those of all rules, whoever the peer. So the rules of
// one policy depend on the others', and the subject is a selector of its own.
type fold struct {
	id   rule.ID // of the policies and ports that it is made of
	uses int     // entries that hold it
	// subject is the synthetic selector. It is named by what the rules say, not by
	// the policies, so that a policy renamed or split moves nobody to another row.
	subject rule.ID
	rules   []rule.Rule
	peers   peers
	held    []*selector
}

// foldOf is the fold that governs an entry; nil if no v1 policy does.
func (s *State) foldOf(e *entry, policies []*policy) *fold {
	if e.fold != nil || len(policies) == 0 {
		return e.fold
	}
	slices.SortFunc(policies, func(a, b *policy) int { return a.key.compare(b.key) })
	text := []byte("v1")
	for _, p := range policies {
		text = fmt.Appendf(text, "\n%q %d", p.key.policy, p.key.part)
	}
	ports := namedPortsOf(e, policies)
	for _, p := range ports {
		text = fmt.Appendf(text, "\nport %q/%d=%d", p.name, p.protocol, p.number)
	}
	id := rule.NewID(text)
	f := s.folds[id]
	if f == nil {
		f = &fold{id: id, peers: newPeers()}
		for _, d := range []rule.Direction{rule.Ingress, rule.Egress} {
			s.foldDirection(f, d, policies, ports)
		}
		f.name()
		s.folds[id] = f
	}
	f.uses++
	e.fold = f
	return f
}

// dropFold forgets the fold of an entry that other policies may govern now.
func (s *State) dropFold(e *entry) {
	f := e.fold
	if f == nil {
		return
	}
	e.fold = nil
	f.uses--
	if f.uses == 0 {
		delete(s.folds, f.id)
		s.releaseAll(f.held)
	}
}

// namedPortsOf are the entry's named ports that ingress rules of the policies
// ask for, sorted.
func namedPortsOf(e *entry, policies []*policy) []namedPort {
	asked := make(map[string]bool)
	for _, p := range policies {
		for _, r := range p.source.Rules {
			for _, ports := range r.Ports {
				for _, port := range ports.Ports {
					asked[port.Name] = r.Direction == rule.Ingress || asked[port.Name]
				}
			}
		}
	}
	var named []namedPort
	for _, p := range e.ports {
		if asked[p.name] {
			named = append(named, p)
		}
	}
	slices.SortFunc(named, func(a, b namedPort) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.number, b.number))
	})
	return named
}

// folding is one direction of a fold in the making.
type folding struct {
	*fold
	state     *State
	direction rule.Direction
	ports     []namedPort // of the subject
	entries   []foldEntry
	requires  *conjunction // nil: nothing is required
	pieces    []piece
	namesPort bool
}

// foldEntry is a peer that some rule selects.
type foldEntry struct {
	target
	origin rule.Origin
}

func (s *State) foldDirection(f *fold, d rule.Direction, policies []*policy, ports []namedPort) {
	x := &folding{fold: f, state: s, direction: d, ports: ports}
	for _, p := range policies {
		for _, r := range isolateRules(p.source, rule.ID{}) {
			if r.Direction == d {
				f.rules = append(f.rules, r)
			}
		}
		for i := range p.source.Rules {
			if r := &p.source.Rules[i]; r.Direction == d {
				x.collect(p.source, r)
			}
		}
	}
	for _, p := range policies {
		for i := range p.source.Rules {
			if r := &p.source.Rules[i]; r.Direction == d {
				x.addEntries(p.source, r)
			}
		}
	}
	x.emit()
}

// collect takes what a rule requires of all peers, and its ports.
func (x *folding) collect(p *object.Policy, r *object.PolicyRule) {
	for _, s := range r.Requires {
		c, _ := newConjunction(s) // checked when the policy was set
		if x.requires != nil {
			c = x.requires.and(c)
		}
		x.requires = &c
	}
	if r.AnyPort {
		return
	}
	x.namesPort = true
	for i := range r.Ports {
		x.collectPorts(p, r, &r.Ports[i])
	}
}

func (x *folding) collectPorts(p *object.Policy, r *object.PolicyRule, ports *object.PortRule) {
	origin := originAt(p, cmp.Or(ports.Path, r.Path))
	http := withOrigins(ports.HTTP, origin)
	plain, named := splitPorts(ports, ports.HTTP != nil)
	for _, port := range named {
		for _, n := range x.ports {
			fits := port.Name == n.name && (port.Protocol == 0 || port.Protocol == n.protocol)
			if fits && (ports.HTTP == nil || n.protocol == rule.TCP) {
				plain = append(plain, rule.PortRange{Protocol: n.protocol, Lo: n.number, Hi: n.number})
			}
		}
	}
	for _, r := range plain {
		x.pieces = append(x.pieces, newPiece(r, http, origin))
	}
}

// addEntries takes the peers that a rule selects, as far as they meet what all
// rules require. Prefixes and entities have no labels, so they meet nothing.
func (x *folding) addEntries(p *object.Policy, r *object.PolicyRule) {
	add := func(t target) {
		x.entries = append(x.entries, foldEntry{t, originAt(p, cmp.Or(t.path, r.Path))})
	}
	for _, peer := range r.Peers {
		switch {
		case peer.Labels != nil:
			c, _ := newConjunction(*peer.Labels)
			add(x.podTarget(c, peer.Path))
		case x.requires != nil && slices.Contains(peer.Entities, rule.Endpoints):
			add(x.podTarget(conjunction{anyNamespace: true}, peer.Path))
		}
	}
	if x.requires == nil {
		for _, t := range x.peers.others(r.Peers) {
			add(t)
		}
	}
}

func (x *folding) podTarget(c conjunction, path string) target {
	if x.requires != nil {
		c = c.and(*x.requires)
	}
	s := x.state.acquire(c)
	x.held = append(x.held, s)
	x.peers.pods[s.id] = s
	return target{id: s.id, labels: s, path: path}
}

func (x *folding) emit() {
	for _, e := range x.entries {
		if !x.namesPort {
			x.allow(e.id, allowance{ports: rule.Everything(), origin: e.origin})
			continue
		}
		for _, a := range x.foldPieces() {
			x.allow(e.id, a)
		}
	}
}

func (x *folding) allow(peer rule.ID, a allowance) {
	x.rules = append(x.rules, rule.Rule{
		Direction: x.direction,
		Tier:      rule.Normal,
		Action:    rule.Allow,
		Peer:      peer,
		Ports:     a.ports,
		RuleSet:   a.set,
		Origin:    a.origin,
	})
}

// name names the subject, and so the rules.
func (f *fold) name() {
	said := make(map[string][]rule.PortRange)
	for _, r := range f.rules {
		key := fmt.Sprintf("%d %d %x %x", r.Direction, r.Action, r.Peer, r.RuleSet)
		said[key] = append(said[key], r.Ports...)
	}
	var lines []string
	for key, ports := range said {
		lines = append(lines, fmt.Sprint(key, joinPorts(ports)))
	}
	slices.Sort(lines)
	f.subject = rule.NewID([]byte("v1\n" + strings.Join(lines, "\n")))
	for i := range f.rules {
		f.rules[i].Subject = f.subject
		f.rules[i] = withID(f.rules[i])
	}
}

// piece is a port range that some rule allows. It is a half-open interval of
// protocol<<16 | port.
type piece struct {
	lo, end uint32
	http    []rule.HTTPRule // nil: plain
	origin  rule.Origin
}

const everyKey = 256 << 16

func newPiece(r rule.PortRange, http []rule.HTTPRule, origin rule.Origin) piece {
	if r.Any {
		return piece{0, everyKey, http, origin}
	}
	base := uint32(r.Protocol) << 16
	return piece{base + uint32(r.Lo), base + uint32(r.Hi) + 1, http, origin}
}

// allowance is a list of ports on which the same is allowed.
type allowance struct {
	ports  []rule.PortRange
	set    rule.ID
	origin rule.Origin
}

// foldPieces unites the pieces: on a port that any rule has HTTP rules for, the
// requests that one of them allows; on others that are named, everything.
func (x *folding) foldPieces() []allowance {
	var cuts []uint32
	for _, p := range x.pieces {
		cuts = append(cuts, p.lo, p.end)
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	var all []allowance
	for i := 0; i+1 < len(cuts); i++ {
		a, ok := x.foldRange(cuts[i], cuts[i+1])
		if !ok {
			continue
		}
		same := func(o allowance) bool { return o.set == a.set && o.origin == a.origin }
		if at := slices.IndexFunc(all, same); at >= 0 {
			all[at].ports = append(all[at].ports, a.ports...)
			continue
		}
		all = append(all, a)
	}
	for i := range all {
		all[i].ports = joinPorts(all[i].ports)
	}
	return all
}

// foldRange is what the pieces say of one range that no piece begins or ends in.
func (x *folding) foldRange(lo, end uint32) (allowance, bool) {
	var here []piece
	for _, p := range x.pieces {
		if p.lo <= lo && end <= p.end {
			here = append(here, p)
		}
	}
	if len(here) == 0 {
		return allowance{}, false
	}
	slices.SortStableFunc(here, func(a, b piece) int {
		return cmp.Or(cmp.Compare(min(len(b.http), 1), min(len(a.http), 1)), rule.CompareOrigin(a.origin, b.origin))
	})
	a := allowance{ports: portsOf(lo, end), origin: here[0].origin}
	if here[0].http == nil {
		return a, true
	}
	var rules []rule.HTTPRule
	for _, p := range here {
		rules = append(rules, p.http...)
	}
	set := rule.NewRuleSet(rules)
	x.peers.sets[set.ID] = set
	a.set = set.ID
	return a, true
}

// portsOf writes an interval of keys as ranges, each of one protocol.
func portsOf(lo, end uint32) []rule.PortRange {
	if lo == 0 && end == everyKey {
		return rule.Everything()
	}
	var ports []rule.PortRange
	for lo < end {
		stop := min(end, (lo>>16+1)<<16)
		ports = append(ports, rule.PortRange{Protocol: uint8(lo >> 16), Lo: uint16(lo), Hi: uint16(stop - 1)})
		lo = stop
	}
	return ports
}

// joinPorts joins neighbours of one protocol.
func joinPorts(ports []rule.PortRange) []rule.PortRange {
	ports = canonicalPorts(ports)
	var joined []rule.PortRange
	for _, p := range ports {
		if n := len(joined); n > 0 && joined[n-1].Protocol == p.Protocol && int(joined[n-1].Hi)+1 == int(p.Lo) {
			joined[n-1].Hi = p.Hi
			continue
		}
		joined = append(joined, p)
	}
	return joined
}
