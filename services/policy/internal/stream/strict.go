package stream

import (
	"slices"

	"weir.dev/weir/engine/resolve"
	"weir.dev/weir/engine/rule"
)

// Capabilities are what a client understands. What it does not name it is
// taken not to understand.
type Capabilities struct {
	Deny        bool
	HTTP        bool
	HTTPHeaders bool
	Services    bool
	Tiers       bool
	Within      bool
}

// ParseCapabilities reads the names of a Hello. Unknown names mean nothing.
func ParseCapabilities(names []string) Capabilities {
	has := func(name string) bool { return slices.Contains(names, name) }
	return Capabilities{
		Deny: has("deny"), HTTP: has("http"), HTTPHeaders: has("http") && has("http.headers"),
		Services: has("services"), Tiers: has("tiers"), Within: has("within"),
	}
}

// Strict is a node's state in a form that a client of the capabilities
// enforces without allowing more than was written. It may allow less.
//
// A rule needs a capability if it denies, belongs to a tier, judges HTTP, judges
// HTTP by headers, or has peers within prefixes. Without services, a Service's
// address looks like one outside of the cluster, so egress to outside addresses
// needs them. A rule of the normal tier that allows is left out if it cannot be
// told; of a rule set only the rules with headers are. Any other rule that
// cannot be told closes what it governs: an endpoint of its subject is isolated in
// that direction and keeps no rule that allows.
func Strict(n resolve.NodeState, c Capabilities) resolve.NodeState {
	t := teller{caps: c, selectors: make(map[rule.ID]rule.Selector, len(n.Selectors))}
	for _, s := range n.Selectors {
		t.selectors[s.ID] = s
	}
	if !c.HTTPHeaders {
		t.withoutHeaders(n.RuleSets)
		n.RuleSets = t.sets
	}
	foreign := map[side]rule.Rule{}
	var rules []rule.Rule
	for _, r := range n.Rules {
		to, changed := t.renamed[r.RuleSet]
		switch simple := r.Action == rule.Allow && r.Tier == rule.Normal && r.Priority == 0; {
		case !t.canTell(r) || changed && (to == rule.ID{} || !simple):
			if _, there := foreign[side{r.Subject, r.Direction}]; !there && !simple {
				foreign[side{r.Subject, r.Direction}] = r
			}
		case changed:
			r.RuleSet = to
			rules = append(rules, r)
		default:
			rules = append(rules, r)
		}
	}
	n.Rules = closed(rules, n.Subjects, foreign)
	if !c.Services {
		n.Services = nil
	}
	return pruned(n)
}

// teller knows what can be told to a client.
type teller struct {
	caps      Capabilities
	selectors map[rule.ID]rule.Selector
	// Without headers: the rule sets as they are told, and what those that are
	// told in part became; zero: nothing of it is left.
	sets    []rule.RuleSet
	renamed map[rule.ID]rule.ID
}

// canTell tells whether the client understands a rule as it was written.
func (t *teller) canTell(r rule.Rule) bool {
	c, peer := t.caps, t.selectors[r.Peer]
	switch {
	case r.Tier != rule.Normal || r.Priority != 0 || r.Action == rule.Pass:
		if !c.Tiers {
			return false
		}
	case r.Action == rule.Isolate:
		return true
	}
	outside := len(peer.Prefixes) > 0 || len(peer.Names) > 0 || slices.Contains(peer.Entities, rule.World)
	switch {
	case r.Action != rule.Allow && r.Action != rule.Pass && !c.Deny,
		r.RuleSet != (rule.ID{}) && !c.HTTP,
		peer.Within && !c.Within,
		r.Direction == rule.Egress && r.Action != rule.Deny && outside && !c.Services:
		return false
	}
	return true
}

// withoutHeaders leaves HTTP rules with headers out of the rule sets.
func (t *teller) withoutHeaders(all []rule.RuleSet) {
	t.renamed = map[rule.ID]rule.ID{}
	for _, s := range all {
		kept := slices.DeleteFunc(slices.Clone(s.Rules), func(r rule.HTTPRule) bool { return len(r.Headers) > 0 })
		if len(kept) == len(s.Rules) {
			t.sets = append(t.sets, s)
			continue
		}
		t.renamed[s.ID] = rule.ID{}
		if len(kept) > 0 {
			next := rule.NewRuleSet(kept)
			t.renamed[s.ID] = next.ID
			t.sets = append(t.sets, next)
		}
	}
	slices.SortFunc(t.sets, func(a, b rule.RuleSet) int { return a.ID.Compare(b.ID) })
	t.sets = slices.CompactFunc(t.sets, func(a, b rule.RuleSet) bool { return a.ID == b.ID })
}

// side is a subject in one direction.
type side struct {
	subject   rule.ID
	direction rule.Direction
}

// closed is rules where endpoints that a foreign rule governs keep nothing that
// allows in its direction, and are isolated.
func closed(rules []rule.Rule, subjects []rule.Subject, foreign map[side]rule.Rule) []rule.Rule {
	shut := map[side]bool{}
	for size := -1; size != len(foreign); {
		size = len(foreign)
		for k := range foreign {
			shut[k] = true
			for _, s := range subjects { // an endpoint is judged by all its subjects together
				if !slices.Contains(s.Selectors, k.subject) {
					continue
				}
				for _, id := range s.Selectors {
					shut[side{id, k.direction}] = true
				}
			}
		}
		// What has to go there may be what restricts another endpoint.
		for _, r := range rules {
			k := side{r.Subject, r.Direction}
			if shut[k] && (r.Action == rule.Pass || r.Action == rule.Allow && r.Tier != rule.Normal && r.RuleSet != (rule.ID{})) {
				if _, there := foreign[k]; !there {
					foreign[k] = r
				}
			}
		}
	}
	out := slices.DeleteFunc(rules, func(r rule.Rule) bool {
		return shut[side{r.Subject, r.Direction}] && r.Action != rule.Isolate && r.Action != rule.Deny
	})
	for k, r := range foreign {
		// The endpoint may have been open but for what is denied.
		isolate := rule.Rule{
			Subject: k.subject, Direction: k.direction, Tier: rule.Normal, Action: rule.Isolate, Origin: r.Origin,
		}
		isolate.ID = rule.NewID(slices.Concat([]byte("closed for a client that does not understand\n"), r.ID[:]))
		out = append(out, isolate)
	}
	slices.SortFunc(out, func(a, b rule.Rule) int { return a.ID.Compare(b.ID) })
	return out
}

// pruned is n without selectors and rule sets that no rule names.
func pruned(n resolve.NodeState) resolve.NodeState {
	named := map[rule.ID]bool{}
	for _, r := range n.Rules {
		named[r.Peer], named[r.RuleSet] = true, true
	}
	n.Selectors = slices.DeleteFunc(slices.Clone(n.Selectors), func(s rule.Selector) bool { return !named[s.ID] })
	n.RuleSets = slices.DeleteFunc(slices.Clone(n.RuleSets), func(s rule.RuleSet) bool { return !named[s.ID] })
	return n
}
