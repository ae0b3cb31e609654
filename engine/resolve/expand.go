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
	x.rules[x.subject] = append(x.rules[x.subject], isolateRules(p, x.subject.id)...)
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
