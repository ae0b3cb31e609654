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
//   - An HTTP rule with headers is left out of its rule set; if all are, so is
//     the rule that allows by it.
//   - Without HTTP, what allows by a rule set is left out.
//   - Without within, what allows identities within prefixes is left out.
//   - Without deny or tiers, an endpoint that such a rule governs is closed in
//     that direction: no rule of it allows anything.
//   - Without services, a Service's address looks like one outside of the
//     cluster, so egress to outside addresses is left out.
func Strict(n resolve.NodeState, c Capabilities) resolve.NodeState {
	if !c.HTTPHeaders {
		n = withoutHeaders(n)
	}
	if !c.HTTP {
		n.Rules = slices.DeleteFunc(slices.Clone(n.Rules), func(r rule.Rule) bool { return r.RuleSet != (rule.ID{}) })
	}
	if !c.Within {
		n.Rules = slices.DeleteFunc(slices.Clone(n.Rules), func(r rule.Rule) bool { return r.Action == rule.Allow && within(n, r) })
	}
	if !c.Deny || !c.Tiers || !c.Within {
		n.Rules = closed(n, c)
	}
	if !c.Services {
		n.Services = nil
		n.Rules = withoutOutside(n)
	}
	return pruned(n)
}

// withoutHeaders leaves HTTP rules with headers out of the rule sets.
func withoutHeaders(n resolve.NodeState) resolve.NodeState {
	renamed := map[rule.ID]rule.ID{} // to zero: nothing is left
	var sets []rule.RuleSet
	for _, s := range n.RuleSets {
		kept := slices.DeleteFunc(slices.Clone(s.Rules), func(r rule.HTTPRule) bool { return len(r.Headers) > 0 })
		if len(kept) == len(s.Rules) {
			sets = append(sets, s)
			continue
		}
		renamed[s.ID] = rule.ID{}
		if len(kept) > 0 {
			next := rule.NewRuleSet(kept)
			renamed[s.ID] = next.ID
			sets = append(sets, next)
		}
	}
	if len(renamed) == 0 {
		return n
	}
	slices.SortFunc(sets, func(a, b rule.RuleSet) int { return a.ID.Compare(b.ID) })
	n.RuleSets = slices.CompactFunc(sets, func(a, b rule.RuleSet) bool { return a.ID == b.ID })
	var rules []rule.Rule
	for _, r := range n.Rules {
		to, changed := renamed[r.RuleSet]
		switch {
		case !changed:
			rules = append(rules, r)
		case to != (rule.ID{}):
			r.RuleSet = to
			rules = append(rules, r)
		}
	}
	n.Rules = rules
	return n
}

// within tells whether a rule's peers are identities at addresses of prefixes.
func within(n resolve.NodeState, r rule.Rule) bool {
	return slices.ContainsFunc(n.Selectors, func(s rule.Selector) bool { return s.ID == r.Peer && s.Within })
}

// side is a subject in one direction.
type side struct {
	subject   rule.ID
	direction rule.Direction
}

// closed is n's rules without what a client cannot understand: where such a
// rule governs an endpoint, all that is left in its direction is isolation.
func closed(n resolve.NodeState, c Capabilities) []rule.Rule {
	foreign := map[side]rule.Rule{}
	for _, r := range n.Rules {
		denies := r.Action != rule.Allow && r.Action != rule.Isolate && r.Action != rule.Pass
		tiered := r.Tier != rule.Normal || r.Priority != 0 || r.Action == rule.Pass
		if denies && !c.Deny || tiered && !c.Tiers || within(n, r) && !c.Within {
			k := side{r.Subject, r.Direction}
			if _, there := foreign[k]; !there {
				foreign[k] = r
			}
		}
	}
	if len(foreign) == 0 {
		return n.Rules
	}
	// An endpoint is judged by all its subjects together.
	shut := map[side]bool{}
	for _, s := range n.Subjects {
		for _, dir := range []rule.Direction{rule.Ingress, rule.Egress} {
			if !slices.ContainsFunc(s.Selectors, func(id rule.ID) bool { _, ok := foreign[side{id, dir}]; return ok }) {
				continue
			}
			for _, id := range s.Selectors {
				shut[side{id, dir}] = true
			}
		}
	}
	var out []rule.Rule
	for _, r := range n.Rules {
		k := side{r.Subject, r.Direction}
		_, isForeign := foreign[k]
		if !shut[k] && !isForeign || r.Action == rule.Isolate && r.Tier == rule.Normal {
			out = append(out, r)
		}
	}
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

// withoutOutside is n's rules without egress to peers that a Service's address
// could be taken for.
func withoutOutside(n resolve.NodeState) []rule.Rule {
	outside := map[rule.ID]bool{}
	for _, s := range n.Selectors {
		outside[s.ID] = len(s.Prefixes) > 0 || len(s.Names) > 0 || slices.Contains(s.Entities, rule.World)
	}
	return slices.DeleteFunc(slices.Clone(n.Rules), func(r rule.Rule) bool {
		return r.Direction == rule.Egress && r.Action == rule.Allow && outside[r.Peer]
	})
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
