package merge

import (
	"math/bits"
	"slices"

	"weir.dev/weir/engine/rule"
)

// Judge computes one cell: what rules of the row say of a peer that exactly the
// selectors in matched match (sorted, as Matches gives them). entity is the
// peer's own; an unknown one is denied
// everything. The rules are asked in this order:
//
//	Admin by priority; at equal priority deny, pass, allow. Pass goes to Normal.
//	Normal: deny; the own node, on ingress; allow; allow of HTTP requests.
//	Isolate of any subject: deny.
//	Baseline by priority, as Admin.
//	Allow.
//
// What HTTP rules of the normal tier do not let pass goes on to isolation and
// the baseline. So where nothing isolates and the baseline does not deny, they
// restrict nothing.
func (x *Index) Judge(row RowKey, matched []rule.ID, entity rule.Entity) (PortMap, Attribution) {
	if entity < rule.World || entity > rule.Endpoints {
		return PortMap{{}}, Attribution{{}}
	}
	c := cell{index: x, host: entity == rule.Host && row.Direction == rule.Ingress}
	for _, s := range row.Subjects {
		g := x.groups[subjectKey{s, row.Direction}]
		if g == nil {
			continue
		}
		c.isolated = append(c.isolated, g.isolate...)
		if len(matched) <= len(g.byPeer) {
			for _, id := range matched {
				c.rules = append(c.rules, g.byPeer[id]...)
			}
			continue
		}
		for id, rules := range g.byPeer {
			if _, ok := slices.BinarySearchFunc(matched, id, rule.ID.Compare); ok {
				c.rules = append(c.rules, rules...)
			}
		}
	}
	slices.Sort(c.rules)
	c.rules = slices.Compact(c.rules)
	slices.SortFunc(c.isolated, rule.ID.Compare)
	c.isolated = slices.Compact(c.isolated)
	return c.judge()
}

// cell is one cell in the making.
type cell struct {
	index    *Index
	host     bool
	rules    []int // positions in index.rules, so by precedence
	isolated []rule.ID
	active   set // of positions in rules: those whose ports hold the current range
	normal   int // first in rules that is not of the admin tier
	baseline int
}

// edge is a key at which a rule begins or ceases to apply.
type edge struct {
	key  uint32
	rule int // position in cell.rules
	on   bool
}

func (c *cell) judge() (PortMap, Attribution) {
	edges := c.edges()
	c.active = make(set, (len(c.rules)+63)/64)
	c.normal = c.firstOf(rule.Normal)
	c.baseline = c.firstOf(rule.Baseline)
	var m PortMap
	var a Attribution
	start, next := uint32(0), 0
	for {
		for next < len(edges) && edges[next].key == start {
			c.active.put(edges[next].rule, edges[next].on)
			next++
		}
		verdict, by := c.decide()
		by.Start = start
		if n := len(m); n == 0 || m[n-1].Verdict != verdict {
			m = append(m, Range{Start: start, Verdict: verdict})
		}
		if n := len(a); n == 0 || !a[n-1].same(by) {
			a = append(a, by)
		}
		if next == len(edges) {
			return m, a
		}
		start = edges[next].key
	}
}

// edges are all starts and ends of the rules' spans, ascending. A rule's spans
// do not overlap, so ends go before starts at one key.
func (c *cell) edges() []edge {
	var edges []edge
	for i, r := range c.rules {
		for _, s := range c.index.rules[r].spans {
			edges = append(edges, edge{s.lo, i, true})
			if s.end <= lastKey {
				edges = append(edges, edge{s.end, i, false})
			}
		}
	}
	slices.SortFunc(edges, func(a, b edge) int {
		if a.key != b.key {
			return int(int64(a.key) - int64(b.key))
		}
		if a.on == b.on {
			return 0
		}
		if b.on {
			return -1
		}
		return 1
	})
	return edges
}

// firstOf is the position of the first rule that is of the tier or a later one.
func (c *cell) firstOf(tier rule.Tier) int {
	i := slices.IndexFunc(c.rules, func(r int) bool { return c.index.rules[r].Tier >= tier })
	if i < 0 {
		return len(c.rules)
	}
	return i
}

// decide judges the current range.
func (c *cell) decide() (PortVerdict, AttributedRange) {
	if i := c.active.next(0); i < c.normal && c.at(i).Action != rule.Pass {
		return c.said(i)
	}
	i := c.active.next(c.normal)
	inNormal := i < c.baseline
	if inNormal && c.at(i).Action == rule.Deny {
		return c.said(i)
	}
	if c.host && !(inNormal && c.at(i).rank() == plainAllow) {
		// A node may always reach its own pods, unless a rule denies it.
		if i := c.active.next(c.baseline); !inNormal && i < len(c.rules) && c.at(i).Action == rule.Deny {
			return c.said(i)
		}
		return PortVerdict{Kind: Allow}, AttributedRange{}
	}
	if inNormal && (len(c.isolated) > 0 || c.at(i).RuleSet == rule.ID{}) {
		return c.said(i)
	}
	if len(c.isolated) > 0 {
		return PortVerdict{}, AttributedRange{Isolated: c.isolated}
	}
	last := c.active.next(c.baseline)
	if inNormal && last < len(c.rules) && c.at(last).rank() != plainAllow {
		return c.said(i)
	}
	if last < len(c.rules) {
		return c.said(last)
	}
	return PortVerdict{Kind: Allow}, AttributedRange{}
}

func (c *cell) at(i int) *compiled { return &c.index.rules[c.rules[i]] }

// said is the verdict of the rule at i, the first active of its tier: with the
// others of its tier and priority, if it lets HTTP requests pass.
func (c *cell) said(i int) (PortVerdict, AttributedRange) {
	r := c.at(i)
	by := AttributedRange{Rule: r.ID}
	switch {
	case r.Action != rule.Allow:
		return PortVerdict{}, by
	case r.RuleSet == rule.ID{}:
		return PortVerdict{Kind: Allow}, by
	}
	sets := []rule.ID{r.RuleSet}
	for j := c.active.next(i + 1); j < len(c.rules); j = c.active.next(j + 1) {
		if o := c.at(j); o.Tier == r.Tier && o.Priority == r.Priority {
			sets = append(sets, o.RuleSet)
			continue
		}
		break
	}
	return PortVerdict{Kind: HTTP, RuleSet: c.index.union(sets)}, by
}

// union is the rule set that passes what any of the sets passes.
func (x *Index) union(sets []rule.ID) rule.ID {
	slices.SortFunc(sets, rule.ID.Compare)
	sets = slices.Compact(sets)
	if len(sets) == 1 {
		return sets[0]
	}
	var rules []rule.HTTPRule
	for _, id := range sets {
		rules = append(rules, x.ruleSet[id].Rules...)
	}
	united := rule.NewRuleSet(rules)
	if _, known := x.ruleSet[united.ID]; !known {
		x.ruleSet[united.ID] = united
	}
	return united.ID
}

// set holds small numbers, one bit each.
type set []uint64

func (s set) put(i int, on bool) {
	if on {
		s[i/64] |= 1 << (i % 64)
		return
	}
	s[i/64] &^= 1 << (i % 64)
}

// next is the least member that is not below i; beyond all members, the number
// of bits that s has room for.
func (s set) next(i int) int {
	for w := i / 64; w < len(s); w++ {
		word := s[w]
		if w == i/64 {
			word &^= 1<<(i%64) - 1
		}
		if word != 0 {
			return w*64 + bits.TrailingZeros64(word)
		}
	}
	return len(s) * 64
}
