package resolve_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/resolve"
	"weir.dev/weir/engine/rule"
)

var compareValues = gocmp.Comparer(func(a, b netip.Addr) bool { return a == b })
var comparePrefixes = gocmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func diff(want, got any) string { return gocmp.Diff(want, got, compareValues, comparePrefixes) }

// An event tells a state one thing. Events about different things commute.
type event func(*resolve.State)

// events bring an empty state to the world's content, one thing each.
func (w world) events(t *rapid.T) []event {
	var events []event
	for name, labels := range w.namespaces {
		events = append(events, func(s *resolve.State) { s.SetNamespace(name, labels) })
	}
	for i, id := range w.identities {
		events = append(events, func(s *resolve.State) { s.SetIdentity(rule.Revision(i+1), hashOf(id), id) })
	}
	for i, p := range w.policies {
		events = append(events, func(s *resolve.State) {
			if err := s.SetPolicy(fmt.Sprint("p", i), p); err != nil {
				t.Fatal(err)
			}
		})
	}
	if len(w.services) > 0 {
		events = append(events, func(s *resolve.State) { s.SetService("web", w.services) })
	}
	return events
}

func (w world) hashes() []rule.IdentityHash {
	var all []rule.IdentityHash
	for _, id := range w.identities {
		all = append(all, hashOf(id))
	}
	return all
}

// fresh is the state of the world from empty.
func (w world) fresh(t *rapid.T) *resolve.State {
	s := resolve.New()
	for _, e := range w.events(t) {
		e(s)
	}
	return s
}

// What a node gets follows from the content alone: any order of events, with
// things that came, changed and went on the way, and questions in between.
func TestOrderAndDetoursDoNotShow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		want := w.fresh(t)
		got := resolve.New()
		detour(t, got, w)
		for _, e := range rapid.Permutation(w.events(t)).Draw(t, "order") {
			e(got)
			if rapid.IntRange(0, 3).Draw(t, "ask") == 0 {
				got.Node(w.hashes())
			}
		}
		asked := rapid.SliceOf(rapid.SampledFrom(w.hashes())).Draw(t, "asked")
		for _, hashes := range [][]rule.IdentityHash{w.hashes(), asked} {
			if d := diff(want.Node(hashes), got.Node(hashes)); d != "" {
				t.Fatalf("after a detour (-want +got):\n%s", d)
			}
		}
	})
}

// detour tells a state things of another world, and takes back those that the
// world does not overwrite.
func detour(t *rapid.T, s *resolve.State, w world) {
	other := drawWorld(t)
	for _, e := range other.events(t) {
		e(s)
	}
	s.Node(other.hashes())
	for _, h := range other.hashes() {
		s.DeleteIdentity(h)
	}
	for i := len(w.policies); i < len(other.policies); i++ {
		s.DeletePolicy(fmt.Sprint("p", i))
	}
	if rapid.Bool().Draw(t, "forget namespaces") {
		for name := range other.namespaces {
			s.DeleteNamespace(name)
		}
	}
	if len(w.services) == 0 {
		s.DeleteService("web")
	}
}

// A node that Take does not mark has what it needs; and what a node was given
// never changes afterwards.
func TestChangesMarkEveryNodeThatNeedsIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		s := w.fresh(t)
		s.Take()
		nodes := rapid.SliceOfN(rapid.SliceOf(rapid.SampledFrom(w.hashes())), 1, 3).Draw(t, "nodes")
		held := make([]resolve.NodeState, len(nodes))
		texts := make([]string, len(nodes))
		for i := range nodes {
			held[i] = s.Node(nodes[i])
			texts[i] = fmt.Sprintf("%+v", held[i])
		}
		for range rapid.IntRange(1, 5).Draw(t, "events") {
			w.disturb(t, s)
			changes := s.Take()
			for i := range nodes {
				if got := fmt.Sprintf("%+v", held[i]); got != texts[i] {
					t.Fatalf("what node %d was given changed:\n%s\n%s", i, texts[i], got)
				}
				now := s.Node(nodes[i])
				if d := diff(held[i], now); d != "" && !marks(changes, nodes[i], held[i]) {
					t.Fatalf("node %d is not marked by %+v (-had +needs):\n%s", i, changes, d)
				}
				held[i], texts[i] = now, fmt.Sprintf("%+v", now)
			}
		}
	})
}

// marks follows the documentation of Changes.
func marks(c resolve.Changes, identities []rule.IdentityHash, had resolve.NodeState) bool {
	if slices.ContainsFunc(c.Identities, func(h rule.IdentityHash) bool { return slices.Contains(identities, h) }) {
		return true
	}
	uses := func(id rule.ID) bool {
		return slices.ContainsFunc(had.Selectors, func(s rule.Selector) bool { return s.ID == id })
	}
	return slices.ContainsFunc(c.Selectors, uses) ||
		c.Services && slices.ContainsFunc(had.Rules, func(r rule.Rule) bool { return r.Direction == rule.Egress })
}

// disturb tells the state one thing more.
func (w *world) disturb(t *rapid.T, s *resolve.State) {
	switch rapid.IntRange(0, 6).Draw(t, "event") {
	case 0:
		s.DeleteIdentity(rapid.SampledFrom(w.hashes()).Draw(t, "gone"))
	case 1:
		id := drawIdentity(t)
		s.SetIdentity(rule.Revision(rapid.IntRange(100, 200).Draw(t, "revision")), hashOf(id), id)
	case 2:
		name := rapid.SampledFrom(worldNamespaces).Draw(t, "relabelled")
		s.SetNamespace(name, drawNamespaceLabels(t, name))
	case 3:
		s.DeleteNamespace(rapid.SampledFrom(worldNamespaces).Draw(t, "forgotten"))
	case 4:
		n := rapid.IntRange(0, 7).Draw(t, "policy")
		if err := s.SetPolicy(fmt.Sprint("p", n), drawPolicy(t, n)); err != nil {
			t.Fatal(err)
		}
	case 5:
		s.DeletePolicy(fmt.Sprint("p", rapid.IntRange(0, 7).Draw(t, "policy")))
	case 6:
		s.SetService("web", []rule.Service{{Port: uint16(rapid.IntRange(1, 9).Draw(t, "service port"))}})
	}
}

// A namespaced policy governs nobody elsewhere, whatever its selector says.
func TestPolicyKeepsToItsNamespace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		for _, p := range w.policies {
			for _, part := range p.Parts() {
				if p.Origin.Namespace != "" {
					part.Subject = drawSelector(t, rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "claimed"))
				}
			}
		}
		s := w.fresh(t)
		for _, id := range w.identities {
			for _, r := range s.Node([]rule.IdentityHash{hashOf(id)}).Rules {
				if r.Origin.Namespace != "" && r.Origin.Namespace != id.Namespace {
					t.Fatalf("a pod of %s is governed by a policy of %s: %+v", id.Namespace, r.Origin.Namespace, r)
				}
			}
		}
	})
}

// A node state is complete and in order, and merge understands it.
func TestNodeStateIsWellFormed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		n := w.fresh(t).Node(w.hashes())
		if _, err := merge.New(merge.Policy{Selectors: n.Selectors, Rules: n.Rules, RuleSets: n.RuleSets}); err != nil {
			t.Fatal(err)
		}
		used := map[rule.ID]bool{}
		subjects := map[rule.ID]bool{}
		for _, s := range n.Subjects {
			for _, id := range s.Selectors {
				subjects[id] = true
			}
		}
		for _, r := range n.Rules {
			used[r.Peer], used[r.RuleSet] = true, true
			if !subjects[r.Subject] {
				t.Fatalf("a rule for nobody of the node: %+v", r)
			}
		}
		for _, s := range n.Selectors {
			if !used[s.ID] || !slices.IsSorted(s.Identities) {
				t.Fatalf("a selector that no rule names, or not in order: %+v", s)
			}
		}
		for _, s := range n.RuleSets {
			if !used[s.ID] || rule.NewRuleSet(s.Rules).ID != s.ID {
				t.Fatalf("a rule set that no rule names, or not named by its content: %+v", s)
			}
		}
	})
}

func TestRefusedPolicyLeavesTheStateAsItWas(t *testing.T) {
	s := resolve.New()
	s.SetNamespace("a", nil)
	id := rule.Identity{Namespace: "a"}
	s.SetIdentity(1, hashOf(id), id)
	good := &object.Policy{
		Origin: rule.Origin{Namespace: "a"}, Semantics: object.SemanticsV2, IsolatesIngress: true,
		Subject: object.Selector{Namespaces: []string{"a"}},
	}
	if err := s.SetPolicy("p", good); err != nil {
		t.Fatal(err)
	}
	want := s.Node([]rule.IdentityHash{hashOf(id)})
	s.Take()
	for _, bad := range []object.Policy{
		{},
		{Semantics: object.SemanticsV2, Rules: []object.PolicyRule{{}}},
		{Semantics: object.SemanticsV2, Rules: []object.PolicyRule{{Direction: rule.Ingress, Action: 9, Tier: rule.Normal}}},
		{Semantics: object.SemanticsV2, Subject: object.Selector{Labels: []object.Requirement{{Key: "k", Operator: 9}}}},
		{Semantics: object.SemanticsV1, Rules: []object.PolicyRule{{Direction: rule.Ingress, Action: rule.Deny, Tier: rule.Normal}}},
		{Semantics: object.SemanticsV2, Rules: []object.PolicyRule{{
			Direction: rule.Ingress, Action: rule.Allow, Tier: rule.Normal, Peers: []object.Peer{{Entities: []rule.Entity{9}}},
		}}},
		{Semantics: object.SemanticsV2, Also: []*object.Policy{{}}},
	} {
		if err := s.SetPolicy("p", &bad); err == nil {
			t.Errorf("set %+v: want an error", bad)
		}
	}
	if d := diff(want, s.Node([]rule.IdentityHash{hashOf(id)})); d != "" {
		t.Errorf("node state (-want +got):\n%s", d)
	}
	if c := s.Take(); !c.Empty() {
		t.Errorf("changes: got %+v, want none", c)
	}
}

func TestUnknownIdentityHasNoSubject(t *testing.T) {
	id := rule.Identity{Namespace: "a"}
	s := resolve.New()
	s.SetNamespace("a", nil)
	s.SetIdentity(0, hashOf(id), id)
	if n := s.Node([]rule.IdentityHash{hashOf(id)}); len(n.Subjects) != 0 {
		t.Errorf("subjects: got %v, want none", n.Subjects)
	}
}

// What a policy says of namespaces' labels cannot be judged before they are
// known: until then the identity is not in force, on either side.
func TestIdentityWaitsForItsNamespace(t *testing.T) {
	far, near := rule.Identity{Namespace: "far"}, rule.Identity{Namespace: "near"}
	s := resolve.New()
	s.SetNamespace("near", nil)
	s.SetIdentity(1, hashOf(near), near)
	s.SetIdentity(2, hashOf(far), far)
	err := s.SetPolicy("p", &object.Policy{
		Origin: rule.Origin{Namespace: "near"}, Semantics: object.SemanticsV2, IsolatesIngress: true,
		Rules: []object.PolicyRule{{
			Direction: rule.Ingress, Action: rule.Allow, Tier: rule.Normal, AnyPort: true,
			Peers: []object.Peer{{Labels: &object.Selector{AnyNamespace: true, NamespaceLabels: []object.Requirement{
				{Key: "env", Operator: object.NotIn, Values: []string{"prod"}},
			}}}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	in := func(when string, wantPeers []rule.Revision, wantSubject bool) {
		t.Helper()
		n := s.Node([]rule.IdentityHash{hashOf(near)})
		if d := diff(wantPeers, n.Selectors[0].Identities); d != "" {
			t.Errorf("%s: peers (-want +got):\n%s", when, d)
		}
		if got := len(s.Node([]rule.IdentityHash{hashOf(far)}).Subjects) > 0; got != wantSubject {
			t.Errorf("%s: has a subject: got %v, want %v", when, got, wantSubject)
		}
	}
	in("namespace unknown", []rule.Revision{1}, false)
	s.SetNamespace("far", map[string]string{"env": "prod"})
	in("namespace of prod", []rule.Revision{1}, true)
	s.SetNamespace("far", nil)
	in("namespace without labels", []rule.Revision{1, 2}, true)
	s.DeleteNamespace("far")
	in("namespace gone", []rule.Revision{1}, false)
	s.DeleteIdentity(hashOf(far))
	s.SetNamespace("far", nil)
	in("identity gone while it waited", []rule.Revision{1}, false)
}
