package merge

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weir.dev/weir/engine/rule"
)

// What New refuses. A policy that is not wholly understood is not enforced in
// part: the caller keeps what it has in force.
var (
	ErrUnknown       = errors.New("not known to this version")
	ErrMissing       = errors.New("not part of the policy")
	ErrTwice         = errors.New("given twice")
	ErrContradictory = errors.New("contradictory")
)

// RuleError says which rule of a policy is wrong.
type RuleError struct {
	Rule   rule.ID
	Origin rule.Origin
	Err    error
}

func (e *RuleError) Error() string {
	o := e.Origin
	return fmt.Sprintf("rule %s (%s %s/%s %s): %v", e.Rule, o.Kind, o.Namespace, o.Name, o.Path, e.Err)
}

// Unwrap is the reason.
func (e *RuleError) Unwrap() error { return e.Err }

// Index answers what one policy says. It keeps the unions of rule sets that it
// made, so it is not safe for concurrent use; equal policies answer equally, in
// whatever order they are asked.
type Index struct {
	selectors []rule.Selector // sorted by ID; positions are used below
	position  map[rule.ID]int

	// Which selectors name what, by position.
	byIdentity map[rule.Revision][]int
	byEntity   map[rule.Entity][]int
	byPrefix   map[netip.Prefix][]prefixUse
	named      []int

	// Rules of one subject and direction by peer selector; positions in rules,
	// which is sorted by precedence.
	rules   []compiled
	groups  map[subjectKey]*group
	ruleSet map[rule.ID]rule.RuleSet
}

type subjectKey struct {
	subject   rule.ID
	direction rule.Direction
}

type group struct {
	byPeer  map[rule.ID][]int
	isolate []rule.ID // of Isolate rules, sorted
}

type prefixUse struct {
	selector int // position
	except   []netip.Prefix
}

// New makes an index of p, which it does not keep. It errs, naming the rule or
// selector, on whatever it does not understand.
func New(p Policy) (*Index, error) {
	x := &Index{
		position:   make(map[rule.ID]int, len(p.Selectors)),
		byIdentity: make(map[rule.Revision][]int),
		byEntity:   make(map[rule.Entity][]int),
		byPrefix:   make(map[netip.Prefix][]prefixUse),
		groups:     make(map[subjectKey]*group),
		ruleSet:    make(map[rule.ID]rule.RuleSet, len(p.RuleSets)),
	}
	for _, set := range p.RuleSets {
		if _, twice := x.ruleSet[set.ID]; twice || set.ID == (rule.ID{}) {
			return nil, fmt.Errorf("rule set %s: %w", set.ID, ErrTwice)
		}
		x.ruleSet[set.ID] = set
	}
	if err := x.addSelectors(p.Selectors); err != nil {
		return nil, err
	}
	if err := x.addRules(p.Rules); err != nil {
		return nil, err
	}
	return x, nil
}

func (x *Index) addSelectors(selectors []rule.Selector) error {
	x.selectors = slices.Clone(selectors)
	slices.SortFunc(x.selectors, func(a, b rule.Selector) int { return a.ID.Compare(b.ID) })
	for i, s := range x.selectors {
		if _, twice := x.position[s.ID]; twice || s.ID == (rule.ID{}) {
			return fmt.Errorf("selector %s (%s): %w", s.ID, s.Text, ErrTwice)
		}
		x.position[s.ID] = i
		for _, e := range s.Entities {
			if e < rule.World || e > rule.Endpoints {
				return fmt.Errorf("selector %s (%s): entity %d: %w", s.ID, s.Text, e, ErrUnknown)
			}
			x.byEntity[e] = append(x.byEntity[e], i)
		}
		for _, id := range s.Identities {
			x.byIdentity[id] = append(x.byIdentity[id], i)
		}
		if len(s.Names) > 0 {
			x.named = append(x.named, i)
		}
		for _, set := range s.Prefixes {
			use, err := newPrefixUse(i, set)
			if err != nil {
				return fmt.Errorf("selector %s (%s): %w", s.ID, s.Text, err)
			}
			x.byPrefix[set.Prefix] = append(x.byPrefix[set.Prefix], use)
		}
	}
	return nil
}

func newPrefixUse(selector int, set rule.PrefixSet) (prefixUse, error) {
	for _, p := range append([]netip.Prefix{set.Prefix}, set.Except...) {
		if !p.IsValid() || p.Masked() != p || p.Addr().Is4In6() {
			return prefixUse{}, fmt.Errorf("prefix %s: %w", p, ErrContradictory)
		}
	}
	return prefixUse{selector: selector, except: slices.Clone(set.Except)}, nil
}

func (x *Index) addRules(rules []rule.Rule) error {
	x.rules = make([]compiled, 0, len(rules))
	seen := make(map[rule.ID]bool, len(rules))
	for _, r := range rules {
		err := x.validate(r)
		if err == nil && (seen[r.ID] || r.ID == (rule.ID{})) {
			err = ErrTwice
		}
		if err != nil {
			return &RuleError{Rule: r.ID, Origin: r.Origin, Err: err}
		}
		seen[r.ID] = true
		x.rules = append(x.rules, compile(r))
	}
	slices.SortFunc(x.rules, func(a, b compiled) int { return a.compare(&b) })
	for i, r := range x.rules {
		key := subjectKey{r.Subject, r.Direction}
		g := x.groups[key]
		if g == nil {
			g = &group{byPeer: make(map[rule.ID][]int)}
			x.groups[key] = g
		}
		if r.Action == rule.Isolate {
			g.isolate = append(g.isolate, r.ID)
			continue
		}
		g.byPeer[r.Peer] = append(g.byPeer[r.Peer], i)
	}
	for _, g := range x.groups {
		slices.SortFunc(g.isolate, rule.ID.Compare)
	}
	return nil
}

func (x *Index) validate(r rule.Rule) error {
	switch {
	case r.Direction != rule.Ingress && r.Direction != rule.Egress:
		return fmt.Errorf("direction %d: %w", r.Direction, ErrUnknown)
	case r.Tier < rule.Admin || r.Tier > rule.Baseline:
		return fmt.Errorf("tier %d: %w", r.Tier, ErrUnknown)
	case r.Action < rule.Deny || r.Action > rule.Isolate:
		return fmt.Errorf("action %d: %w", r.Action, ErrUnknown)
	case r.Subject == rule.ID{}:
		return fmt.Errorf("subject: %w", ErrMissing)
	case r.Tier == rule.Normal && r.Priority != 0:
		return fmt.Errorf("priority %d in the normal tier: %w", r.Priority, ErrContradictory)
	case r.Action == rule.Pass && r.Tier != rule.Admin:
		return fmt.Errorf("pass outside of the admin tier: %w", ErrContradictory)
	case r.RuleSet != rule.ID{} && r.Action != rule.Allow:
		return fmt.Errorf("rule set of a rule that does not allow: %w", ErrContradictory)
	}
	if r.Action == rule.Isolate {
		if r.Tier != rule.Normal || r.Peer != (rule.ID{}) || len(r.Ports) > 0 {
			return fmt.Errorf("isolate with a peer, ports or a tier: %w", ErrContradictory)
		}
		return nil
	}
	if _, ok := x.position[r.Peer]; !ok {
		return fmt.Errorf("selector %s: %w", r.Peer, ErrMissing)
	}
	if _, ok := x.ruleSet[r.RuleSet]; !ok && r.RuleSet != (rule.ID{}) {
		return fmt.Errorf("rule set %s: %w", r.RuleSet, ErrMissing)
	}
	return validatePorts(r)
}

func validatePorts(r rule.Rule) error {
	for _, p := range r.Ports {
		switch {
		case p.Any && (p.Protocol != 0 || p.Lo != 0 || p.Hi != 0):
			return fmt.Errorf("any port, and ports: %w", ErrContradictory)
		case p.Lo > p.Hi:
			return fmt.Errorf("ports %d to %d: %w", p.Lo, p.Hi, ErrContradictory)
		case r.RuleSet != rule.ID{} && (p.Any || p.Protocol != rule.TCP):
			return fmt.Errorf("rule set for what is not TCP: %w", ErrContradictory)
		}
	}
	return nil
}

// RuleSet is the rule set of a port verdict: one of the policy's, or a union
// that Judge made.
func (x *Index) RuleSet(id rule.ID) (rule.RuleSet, bool) {
	set, ok := x.ruleSet[id]
	return set, ok
}

// Open says that no rule of the row's direction selects its subjects: whatever
// the peer, everything is allowed.
func (x *Index) Open(row RowKey) bool {
	for _, s := range row.Subjects {
		if x.groups[subjectKey{s, row.Direction}] != nil {
			return false
		}
	}
	return true
}

// PeerSelectors are the selectors that rules of the row name, sorted: what
// another selector says of a peer does not change the row's cells.
func (x *Index) PeerSelectors(row RowKey) []rule.ID {
	var ids []rule.ID
	for _, s := range row.Subjects {
		if g := x.groups[subjectKey{s, row.Direction}]; g != nil {
			for id := range g.byPeer {
				ids = append(ids, id)
			}
		}
	}
	slices.SortFunc(ids, rule.ID.Compare)
	return slices.Compact(ids)
}

// compiled is a rule with its ports as spans of keys.
type compiled struct {
	rule.Rule
	spans []span
}

// compare orders rules by who decides first, then by who is attributed.
func (r *compiled) compare(o *compiled) int {
	return cmp.Or(
		cmp.Compare(r.Tier, o.Tier),
		cmp.Compare(r.Priority, o.Priority),
		cmp.Compare(r.rank(), o.rank()),
		rule.CompareOrigin(r.Origin, o.Origin),
		r.ID.Compare(o.ID),
	)
}

// What rules of one tier and priority say, in order of precedence: deny wins;
// pass leaves more to others than allow; a plain allow widens HTTP.
const (
	plainDeny = iota
	plainPass
	plainAllow
	httpAllow
)

func (r *compiled) rank() int {
	switch {
	case r.Action == rule.Deny:
		return plainDeny
	case r.Action == rule.Pass:
		return plainPass
	case r.Action == rule.Allow && r.RuleSet == rule.ID{}:
		return plainAllow
	default:
		return httpAllow
	}
}
