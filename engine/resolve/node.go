package resolve

import (
	"cmp"
	"maps"
	"slices"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
)

// NodeState is what a node needs: the rules of its endpoints' identities, the
// selectors and rule sets that they name, and the services that its endpoints'
// egress may be addressed to. Every list is sorted and free of duplicates.
type NodeState struct {
	Subjects  []rule.Subject
	Rules     []rule.Rule
	Selectors []rule.Selector
	RuleSets  []rule.RuleSet
	Services  []rule.Service // empty if no rule judges egress
}

// Node is the state of a node whose endpoints have these identities. One that
// is not in force has no subject: its endpoints stay closed.
func (s *State) Node(identities []rule.IdentityHash) NodeState {
	wanted := slices.Clone(identities)
	slices.SortFunc(wanted, compareHash)
	g := gathering{
		rules:     make(map[rule.ID]rule.Rule),
		selectors: make(map[rule.ID]rule.Selector),
		sets:      make(map[rule.ID][]rule.HTTPRule),
	}
	var n NodeState
	for _, hash := range slices.Compact(wanted) {
		if e := s.entries[hash]; e != nil {
			n.Subjects = append(n.Subjects, s.subject(e, &g))
		}
	}
	n.Rules = slices.SortedFunc(maps.Values(g.rules), func(a, b rule.Rule) int { return a.ID.Compare(b.ID) })
	n.Selectors = slices.SortedFunc(maps.Values(g.selectors), func(a, b rule.Selector) int { return a.ID.Compare(b.ID) })
	for _, id := range slices.SortedFunc(maps.Keys(g.sets), rule.ID.Compare) {
		n.RuleSets = append(n.RuleSets, rule.NewRuleSet(g.sets[id]))
	}
	if slices.ContainsFunc(n.Rules, func(r rule.Rule) bool { return r.Direction == rule.Egress }) {
		n.Services = s.allServices()
	}
	return n
}

// gathering is a node state in the making.
type gathering struct {
	rules     map[rule.ID]rule.Rule
	selectors map[rule.ID]rule.Selector
	// Rules of a rule set from wherever it is written: they say the same, and the
	// least origin counts.
	sets map[rule.ID][]rule.HTTPRule
}

// subject gathers what governs an entry.
func (s *State) subject(e *entry, g *gathering) rule.Subject {
	subject := rule.Subject{Identity: e.hash, Revision: e.revision}
	var v1 []*policy
	s.matching(e, func(sel *selector) {
		governed := false
		for _, p := range sel.subjectOf {
			if p.source.Semantics == object.SemanticsV1 {
				v1 = append(v1, p)
			}
			if rules := p.rules[sel]; len(rules) > 0 {
				g.add(rules, &p.peers)
				governed = true
			}
		}
		if governed {
			subject.Selectors = append(subject.Selectors, sel.id)
		}
	})
	if f := s.foldOf(e, v1); f != nil {
		g.add(f.rules, &f.peers)
		subject.Selectors = append(subject.Selectors, f.subject)
	}
	slices.SortFunc(subject.Selectors, rule.ID.Compare)
	return subject
}

func (g *gathering) add(rules []rule.Rule, from *peers) {
	for _, r := range rules {
		if _, known := g.rules[r.ID]; known {
			continue
		}
		g.rules[r.ID] = r
		if r.RuleSet != (rule.ID{}) {
			g.sets[r.RuleSet] = append(g.sets[r.RuleSet], from.sets[r.RuleSet].Rules...)
		}
		if _, known := g.selectors[r.Peer]; known || r.Peer == (rule.ID{}) {
			continue
		}
		if sel := from.pods[r.Peer]; sel != nil {
			g.selectors[r.Peer] = sel.lend()
			continue
		}
		g.selectors[r.Peer] = from.rest[r.Peer]
	}
}

// allServices are the services of all keys; of those with the same address,
// protocol and port, the first by name.
func (s *State) allServices() []rule.Service {
	var all []rule.Service
	for _, services := range s.services {
		all = append(all, services...)
	}
	slices.SortFunc(all, func(a, b rule.Service) int {
		return cmp.Or(
			compareFrontend(a, b),
			cmp.Compare(a.Namespace, b.Namespace),
			cmp.Compare(a.Name, b.Name),
			slices.CompareFunc(a.Backends, b.Backends, compareBackend),
		)
	})
	return slices.CompactFunc(all, func(a, b rule.Service) bool { return compareFrontend(a, b) == 0 })
}

func compareFrontend(a, b rule.Service) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

func compareBackend(a, b rule.Backend) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
}
