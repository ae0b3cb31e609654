package desired

import (
	"slices"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// Explanation tells, for the numbers of one State, what decided. It stands
// beside the kernel's state and never in it, so that renaming a policy writes
// nothing. It is not changed after Build and may be read by any goroutine.
type Explanation struct {
	At    Position
	rules map[rule.ID]rule.Rule

	rows     map[plan.Row][]rule.ID // isolating rules
	cells    map[plan.CellKey]merge.Attribution
	peers    map[plan.Peer]peerKey
	services map[plan.ServiceKey]rule.Service
	ruleSets map[rule.Verdict][]rule.RuleSet
}

// Decision is why a packet was judged as it was.
type Decision struct {
	// Rule decided; nil if none did.
	Rule *rule.Rule
	// Selecting are the policies that isolate the endpoint in this direction
	// without allowing the packet. Set only where no rule decided.
	Selecting []rule.Origin
}

func newExplanation(in Input) *Explanation {
	e := &Explanation{
		At:       in.At,
		rules:    make(map[rule.ID]rule.Rule, len(in.Rules)),
		rows:     map[plan.Row][]rule.ID{},
		cells:    map[plan.CellKey]merge.Attribution{},
		peers:    map[plan.Peer]peerKey{},
		services: map[plan.ServiceKey]rule.Service{},
		ruleSets: map[rule.Verdict][]rule.RuleSet{},
	}
	for _, r := range in.Rules {
		e.rules[r.ID] = r
	}
	return e
}

func (e *Explanation) row(n plan.Row, key merge.RowKey, rules []rule.Rule) {
	e.rows[n] = []rule.ID{}
	for _, r := range rules {
		if r.Action != rule.Isolate || r.Direction != key.Direction {
			continue
		}
		if _, ok := slices.BinarySearchFunc(key.Subjects, r.Subject, rule.ID.Compare); ok {
			e.rows[n] = append(e.rows[n], r.ID)
		}
	}
}

// Decide tells what decided of packets between an endpoint of the row and a
// peer of the class. Unknown numbers, of a state long gone, give an empty Decision.
func (e *Explanation) Decide(row plan.Row, class plan.Class, protocol uint8, port uint16) Decision {
	attribution, ok := e.cells[plan.CellKey{Row: row, Class: class}]
	if !ok {
		return Decision{Selecting: e.Selecting(row)}
	}
	at := attribution.At(protocol, port)
	if r, ok := e.rules[at.Rule]; ok {
		return Decision{Rule: &r}
	}
	return Decision{Selecting: e.origins(at.Isolated)}
}

// Selecting are the policies that isolate the endpoints of a row.
func (e *Explanation) Selecting(row plan.Row) []rule.Origin { return e.origins(e.rows[row]) }

// origins are those of the rules, each policy once.
func (e *Explanation) origins(ids []rule.ID) []rule.Origin {
	var out []rule.Origin
	for _, id := range ids {
		if r, ok := e.rules[id]; ok {
			out = append(out, r.Origin)
		}
	}
	slices.SortFunc(out, rule.CompareOrigin)
	return slices.CompactFunc(out, samePolicy)
}

// Entity is that of a peer: Endpoints for a pod, zero for an unknown number.
func (e *Explanation) Entity(p plan.Peer) rule.Entity { return e.peers[p].entity }

// Service is what clients reach at an address, protocol and port.
func (e *Explanation) Service(k plan.ServiceKey) (rule.Service, bool) {
	s, ok := e.services[k]
	return s, ok
}

// HTTPRule is the rule at index i of a rule set as the proxy counts them: one
// set of AllOf after the other.
func (e *Explanation) HTTPRule(number rule.Verdict, i int) (rule.HTTPRule, bool) {
	for _, set := range e.ruleSets[number] {
		if i >= 0 && i < len(set.Rules) {
			return set.Rules[i], true
		}
		i -= len(set.Rules)
	}
	return rule.HTTPRule{}, false
}

// HTTPPolicies are the policies whose rules make up a rule set, each once.
func (e *Explanation) HTTPPolicies(number rule.Verdict) []rule.Origin {
	var out []rule.Origin
	for _, set := range e.ruleSets[number] {
		for _, r := range set.Rules {
			out = append(out, r.Origin)
		}
	}
	slices.SortFunc(out, rule.CompareOrigin)
	return slices.CompactFunc(out, samePolicy)
}

// Refusing are the policies that select the endpoints of a row, or have rules in
// the rule set, without letting a request pass: each once.
func (e *Explanation) Refusing(row plan.Row, number rule.Verdict) []rule.Origin {
	out := append(e.Selecting(row), e.HTTPPolicies(number)...)
	slices.SortFunc(out, rule.CompareOrigin)
	return slices.CompactFunc(out, samePolicy)
}

func samePolicy(a, b rule.Origin) bool {
	return a.Kind == b.Kind && a.Namespace == b.Namespace && a.Name == b.Name
}
