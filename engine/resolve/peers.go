package resolve

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
)

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
