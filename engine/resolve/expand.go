package resolve

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
)

// policy is one policy in force. A policy of the v1 semantics has no rules of
// its own: its subject selector stands in rules without any, and the rules come
// from folding.
type policy struct {
	key     partKey
	source  *object.Policy
	subject *selector
	rules   map[*selector][]rule.Rule // by subject
	peers   peers
	names   []string // of named ports that its rules ask for, sorted
	held    []*selector
}

// peers are the selectors and rule sets that rules name.
type peers struct {
	pods map[rule.ID]*selector
	rest map[rule.ID]rule.Selector // has no members to follow
	sets map[rule.ID]rule.RuleSet
}

func newPeers() peers {
	return peers{
		pods: make(map[rule.ID]*selector),
		rest: make(map[rule.ID]rule.Selector),
		sets: make(map[rule.ID]rule.RuleSet),
	}
}

// expansion is a policy in the making.
type expansion struct {
	*policy
	state *State
}

// expand resolves a policy. The selectors that it acquired are the policy's.
func (s *State) expand(key partKey, p *object.Policy) (*policy, error) {
	if err := validate(p); err != nil {
		return nil, err
	}
	subject, err := newConjunction(ownNamespace(p, p.Subject))
	if err != nil {
		return nil, err
	}
	x := expansion{&policy{
		key:    key,
		source: p,
		rules:  make(map[*selector][]rule.Rule),
		peers:  newPeers(),
	}, s}
	x.subject = x.hold(subject)
	x.rules[x.subject] = nil
	if p.Semantics == object.SemanticsV1 {
		return x.policy, nil
	}
	for _, r := range isolateRules(p, x.subject.id) {
		x.rules[x.subject] = append(x.rules[x.subject], r)
	}
	for i := range p.Rules {
		x.addRule(&p.Rules[i])
	}
	slices.Sort(x.names)
	x.names = slices.Compact(x.names)
	return x.policy, nil
}

// mustExpand expands again what was expanded before.
func (s *State) mustExpand(key partKey, p *object.Policy) *policy {
	next, err := s.expand(key, p)
	if err != nil {
		panic(fmt.Sprintf("resolve: a policy in force is refused: %v", err))
	}
	return next
}

func (x expansion) hold(c conjunction) *selector {
	s := x.state.acquire(c)
	x.held = append(x.held, s)
	return s
}

func validate(p *object.Policy) error {
	if p.Semantics < object.SemanticsV1 || p.Semantics > object.SemanticsCluster {
		return fmt.Errorf("semantics %d: %w", p.Semantics, ErrRefused)
	}
	for _, r := range p.Rules {
		var err error
		switch {
		case r.Direction != rule.Ingress && r.Direction != rule.Egress:
			err = fmt.Errorf("direction %d", r.Direction)
		case r.Action != rule.Allow && r.Action != rule.Deny && r.Action != rule.Pass:
			err = fmt.Errorf("action %d", r.Action)
		case r.Tier < rule.Admin || r.Tier > rule.Baseline:
			err = fmt.Errorf("tier %d", r.Tier)
		case r.Tier == rule.Normal && r.Priority != 0:
			err = fmt.Errorf("priority %d in the normal tier", r.Priority)
		case r.Action == rule.Pass && r.Tier != rule.Admin:
			err = fmt.Errorf("pass outside of the admin tier")
		case len(r.Requires) > 0 && p.Semantics != object.SemanticsV1:
			err = fmt.Errorf("requirements on peers outside of v1")
		case p.Semantics == object.SemanticsV1 && (r.Action != rule.Allow || r.Tier != rule.Normal):
			err = fmt.Errorf("a v1 rule that is not an allow rule of the normal tier")
		case p.Semantics == object.SemanticsV1 && r.Direction == rule.Egress && asksForNames(&r):
			err = fmt.Errorf("v1 has no named ports for egress: write the port's number")
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %w", r.Path, err, ErrRefused)
		}
		if err := validatePeers(&r); err != nil {
			return fmt.Errorf("%s: %w", r.Path, err)
		}
	}
	return nil
}

func asksForNames(r *object.PolicyRule) bool {
	return slices.ContainsFunc(r.Ports, func(ports object.PortRule) bool {
		return slices.ContainsFunc(ports.Ports, func(p object.Port) bool { return p.Name != "" })
	})
}

// validatePeers refuses a rule whose peers are not wholly understood.
func validatePeers(r *object.PolicyRule) error {
	for _, s := range r.Requires {
		if _, err := newConjunction(s); err != nil {
			return err
		}
	}
	for _, p := range r.Peers {
		switch {
		case p.Labels != nil:
			if _, err := newConjunction(*p.Labels); err != nil {
				return err
			}
		case p.Prefix != nil:
			if !p.Prefix.Prefix.IsValid() || slices.ContainsFunc(p.Prefix.Except, func(e netip.Prefix) bool { return !e.IsValid() }) {
				return fmt.Errorf("prefix %v: %w", *p.Prefix, ErrRefused)
			}
		}
		for _, e := range p.Entities {
			if e < rule.World || e > rule.Endpoints {
				return fmt.Errorf("entity %d: %w", e, ErrRefused)
			}
		}
	}
	return nil
}

// ownNamespace keeps a namespaced policy to subjects of its own namespace,
// whatever its selector says.
func ownNamespace(p *object.Policy, s object.Selector) object.Selector {
	if p.Origin.Namespace == "" {
		return s
	}
	s.Namespaces, s.AnyNamespace = []string{p.Origin.Namespace}, false
	return s
}

// isolateRules close the subject in the directions that the policy isolates.
func isolateRules(p *object.Policy, subject rule.ID) []rule.Rule {
	var rules []rule.Rule
	for _, d := range []rule.Direction{rule.Ingress, rule.Egress} {
		if d == rule.Ingress && p.IsolatesIngress || d == rule.Egress && p.IsolatesEgress {
			rules = append(rules, withID(rule.Rule{
				Subject:   subject,
				Direction: d,
				Tier:      rule.Normal,
				Action:    rule.Isolate,
				Origin:    p.Origin,
			}))
		}
	}
	return rules
}

// addRule emits the resolved rules of one entry: each peer with each port list.
func (x expansion) addRule(r *object.PolicyRule) {
	for _, to := range x.peersOf(r) {
		if r.AnyPort {
			path := cmp.Or(to.path, r.Path)
			x.emit(r, to, x.subject, rule.Everything(), rule.ID{}, originAt(x.source, path))
			continue
		}
		for i := range r.Ports {
			x.addPorts(r, to, &r.Ports[i])
		}
	}
}

func (x expansion) addPorts(r *object.PolicyRule, to target, ports *object.PortRule) {
	origin := originAt(x.source, cmp.Or(ports.Path, r.Path))
	var set rule.ID
	if ports.HTTP != nil && r.Action == rule.Allow {
		rules := rule.NewRuleSet(withOrigins(ports.HTTP, origin))
		x.peers.sets[rules.ID] = rules
		set = rules.ID
	}
	plain, named := splitPorts(ports, set != rule.ID{})
	if len(plain) > 0 {
		x.emit(r, to, x.subject, plain, set, origin)
	}
	for _, p := range named {
		x.names = append(x.names, p.Name)
		for _, n := range x.state.numbersOf(p, set != rule.ID{}) {
			one := []rule.PortRange{{Protocol: n.protocol, Lo: n.number, Hi: n.number}}
			if r.Direction == rule.Ingress {
				x.emit(r, to, x.hold(x.subject.withPort(n)), one, set, origin)
				continue
			}
			if pods, ok := to.pods(); ok {
				x.emit(r, x.podTarget(pods.withPort(n), to.path), x.subject, one, set, origin)
			}
		}
	}
}

// splitPorts are the ranges and the names of a port list. HTTP is TCP alone:
// what else the list names is not allowed by it.
func splitPorts(p *object.PortRule, http bool) (plain []rule.PortRange, named []object.Port) {
	switch {
	case p.AnyPort && http:
		return []rule.PortRange{{Protocol: rule.TCP, Lo: 0, Hi: 0xffff}}, nil
	case p.AnyPort:
		return rule.Everything(), nil
	}
	for _, port := range p.Ports {
		switch {
		case port.Name != "":
			named = append(named, port)
		case http && port.Range.Any:
			plain = append(plain, rule.PortRange{Protocol: rule.TCP, Lo: 0, Hi: 0xffff})
		case !http || port.Range.Protocol == rule.TCP:
			plain = append(plain, port.Range)
		}
	}
	return canonicalPorts(plain), named
}

func canonicalPorts(ports []rule.PortRange) []rule.PortRange {
	if slices.ContainsFunc(ports, func(p rule.PortRange) bool { return p.Any }) {
		return rule.Everything()
	}
	slices.SortFunc(ports, func(a, b rule.PortRange) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Lo, b.Lo), cmp.Compare(a.Hi, b.Hi))
	})
	return slices.Compact(ports)
}

// numbersOf are the numbers that a named port has anywhere, sorted.
func (s *State) numbersOf(p object.Port, tcpOnly bool) []namedPort {
	var numbers []namedPort
	for n := range s.ports[p.Name] {
		if (p.Protocol == 0 || p.Protocol == n.protocol) && (!tcpOnly || n.protocol == rule.TCP) {
			numbers = append(numbers, n)
		}
	}
	slices.SortFunc(numbers, func(a, b namedPort) int {
		return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.number, b.number))
	})
	return numbers
}

// target is one peer of a rule.
type target struct {
	id      rule.ID
	labels  *selector        // nil: a peer without members
	anyPods bool             // every pod is meant, among others
	within  []rule.PrefixSet // of which addresses of pods are meant, among others
	path    string
}

// pods are the pods that the peer means, for named ports.
func (t target) pods() (conjunction, bool) {
	if t.labels != nil {
		return t.labels.conjunction, true
	}
	return conjunction{anyNamespace: true, within: t.within}, t.anyPods || len(t.within) > 0
}

func (x expansion) podTarget(c conjunction, path string) target {
	s := x.hold(c)
	x.peers.pods[s.id] = s
	return target{id: s.id, labels: s, path: path}
}

// peersOf are the peers of a rule: one for each selector of labels, one for all
// its prefixes of one kind, one for all its entities, one for all its names.
func (x expansion) peersOf(r *object.PolicyRule) []target {
	if r.AnyPeer {
		return []target{x.peers.entities(everyEntity(), "")}
	}
	var targets []target
	for _, p := range r.Peers {
		if p.Labels != nil {
			c, _ := newConjunction(*p.Labels) // checked by expand
			targets = append(targets, x.podTarget(c, p.Path))
		}
	}
	return append(targets, x.peers.others(r.Peers)...)
}

func everyEntity() []rule.Entity {
	return []rule.Entity{rule.World, rule.Host, rule.RemoteNode, rule.Endpoints}
}

// others are the targets of the peers that are not selectors of labels.
func (ps peers) others(all []object.Peer) []target {
	var targets []target
	var entities, names []object.Peer
	prefixes := make(map[[2]bool][]object.Peer)
	for _, p := range all {
		switch {
		case p.Labels != nil:
		case p.Prefix != nil:
			kind := [2]bool{p.PrefixesMatchPods, p.PrefixesMatchNodes}
			prefixes[kind] = append(prefixes[kind], p)
		case len(p.Entities) > 0:
			entities = append(entities, p)
		case p.Name != "":
			names = append(names, p)
		}
	}
	for _, kind := range [][2]bool{{false, false}, {false, true}, {true, false}, {true, true}} {
		if group := prefixes[kind]; len(group) > 0 {
			targets = append(targets, ps.prefixes(group))
		}
	}
	if len(entities) > 0 {
		var es []rule.Entity
		for _, p := range entities {
			es = append(es, p.Entities...)
		}
		targets = append(targets, ps.entities(es, entities[0].Path))
	}
	if len(names) > 0 {
		var ns []string
		for _, p := range names {
			ns = append(ns, strings.TrimSuffix(strings.ToLower(p.Name), "."))
		}
		ns = sortedSet(ns)
		text := strings.Join(ns, ", ")
		targets = append(targets, ps.add(rule.Selector{
			ID:    rule.NewID([]byte("names\n" + strings.Join(ns, "\n"))),
			Names: ns,
			Text:  text,
		}, names[0].Path))
	}
	return targets
}

func (ps peers) add(s rule.Selector, path string) target {
	ps.rest[s.ID] = s
	return target{id: s.ID, anyPods: slices.Contains(s.Entities, rule.Endpoints), path: path}
}

func (ps peers) entities(es []rule.Entity, path string) target {
	es = slices.Clone(es)
	slices.Sort(es)
	es = slices.Compact(es)
	names := map[rule.Entity]string{
		rule.World: "world", rule.Host: "host", rule.RemoteNode: "remote nodes", rule.Endpoints: "pods",
	}
	texts := make([]string, len(es))
	for i, e := range es {
		texts[i] = names[e]
	}
	text := strings.Join(texts, ", ")
	id := rule.NewID([]byte("entities\n" + text))
	if len(es) == len(everyEntity()) {
		text = "everybody"
	}
	return ps.add(rule.Selector{ID: id, Entities: es, Text: text}, path)
}

// prefixes is the target of peers that are prefixes and may match the same.
func (ps peers) prefixes(group []object.Peer) target {
	s := rule.Selector{
		PrefixesMatchPods:  group[0].PrefixesMatchPods,
		PrefixesMatchNodes: group[0].PrefixesMatchNodes,
	}
	texts := make(map[string]rule.PrefixSet, len(group))
	for _, p := range group {
		set := rule.PrefixSet{Prefix: p.Prefix.Prefix.Masked()}
		for _, e := range p.Prefix.Except {
			set.Except = append(set.Except, e.Masked())
		}
		slices.SortFunc(set.Except, netip.Prefix.Compare)
		set.Except = slices.Compact(set.Except)
		texts[prefixText(set)] = set
	}
	var words []string
	for text, set := range texts {
		words = append(words, text)
		s.Prefixes = append(s.Prefixes, set)
	}
	slices.Sort(words)
	slices.SortFunc(s.Prefixes, func(a, b rule.PrefixSet) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), cmp.Compare(prefixText(a), prefixText(b)))
	})
	s.Text = strings.Join(words, ", ")
	s.ID = rule.NewID(fmt.Appendf(nil, "prefixes pods=%t nodes=%t\n%s", s.PrefixesMatchPods, s.PrefixesMatchNodes, s.Text))
	t := ps.add(s, group[0].Path)
	if s.PrefixesMatchPods {
		t.within = s.Prefixes
	}
	return t
}

func prefixText(s rule.PrefixSet) string {
	text := s.Prefix.String()
	for i, e := range s.Except {
		text += []string{" except ", " "}[min(i, 1)] + e.String()
	}
	return text
}

func (x expansion) emit(r *object.PolicyRule, to target, subject *selector, ports []rule.PortRange, set rule.ID, origin rule.Origin) {
	x.rules[subject] = append(x.rules[subject], withID(rule.Rule{
		Subject:   subject.id,
		Direction: r.Direction,
		Tier:      r.Tier,
		Priority:  r.Priority,
		Action:    r.Action,
		Peer:      to.id,
		Ports:     ports,
		RuleSet:   set,
		Origin:    origin,
	}))
}

// originAt is where a field of the policy stands.
func originAt(p *object.Policy, path string) rule.Origin {
	o := p.Origin
	o.Path = path
	for at := path; at != ""; at = at[:max(strings.LastIndexAny(at, ".["), 0)] {
		if line, ok := p.Lines[at]; ok {
			o.Line = line
			break
		}
	}
	return o
}

// withOrigins gives rules without an origin that of the port list they stand in.
func withOrigins(rules []rule.HTTPRule, origin rule.Origin) []rule.HTTPRule {
	rules = slices.Clone(rules)
	for i := range rules {
		if rules[i].Origin == (rule.Origin{}) {
			rules[i].Origin = origin
		}
	}
	return rules
}

// withID names a rule by all that it says, where it was written included.
func withID(r rule.Rule) rule.Rule {
	text := fmt.Appendf(nil, "rule %x %d %d %d %d %x %x", r.Subject, r.Direction, r.Tier, r.Priority, r.Action, r.Peer, r.RuleSet)
	for _, p := range r.Ports {
		text = fmt.Appendf(text, " %d:%d-%d:%t", p.Protocol, p.Lo, p.Hi, p.Any)
	}
	for _, word := range []string{r.Origin.Kind, r.Origin.APIVersion, r.Origin.Namespace, r.Origin.Name, r.Origin.Path, r.Origin.File} {
		text = strconv.AppendQuote(append(text, ' '), word)
	}
	r.ID = rule.NewID(strconv.AppendInt(text, int64(r.Origin.Line), 10))
	return r
}

func compareHash(a, b rule.IdentityHash) int { return slices.Compare(a[:], b[:]) }
