package resolve_test

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/resolve"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/engine/spec"
)

// party is one end of a flow, for the specification and for the engine.
type party struct {
	side spec.Side
	desc merge.PeerDesc
	hash rule.IdentityHash // of a pod
}

func (w world) drawParty(t *rapid.T) party {
	addr := rapid.SampledFrom([]netip.Addr{
		netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("192.0.2.1"),
		netip.MustParseAddr("2001:db8::1"),
	}).Draw(t, "address")
	p := party{
		side: spec.Side{Addr: addr},
		desc: merge.PeerDesc{Prefix: netip.PrefixFrom(addr, addr.BitLen())},
	}
	if rapid.IntRange(0, 2).Draw(t, "pod") > 0 {
		i := rapid.IntRange(0, len(w.identities)-1).Draw(t, "which pod")
		p.side.Identity, p.side.Entity = &w.identities[i], rule.Endpoints
		p.desc.Identity, p.desc.Entity = rule.Revision(i+1), rule.Endpoints
		p.hash = hashOf(w.identities[i])
		return p
	}
	p.side.Entity = rapid.SampledFrom([]rule.Entity{rule.World, rule.Host, rule.RemoteNode}).Draw(t, "entity")
	p.desc.Entity = p.side.Entity
	return p
}

// The engine's fast way and the specification judge every flow alike: which
// kind of verdict, and which requests pass.
func TestAgreesWithSpecification(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		cluster := spec.Cluster{Namespaces: w.namespaces, Policies: w.policies}
		node := w.fresh(t).Node(w.hashes())
		x, err := merge.New(merge.Policy{Selectors: node.Selectors, Rules: node.Rules, RuleSets: node.RuleSets})
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			from, to := w.drawParty(t), w.drawParty(t)
			for _, protocol := range []uint8{rule.TCP, rule.UDP, 47} {
				for _, port := range []uint16{79, 80, 81, 82} {
					f := spec.Flow{From: from.side, To: to.side, Protocol: protocol, Port: port}
					agree(t, "egress", cluster.Egress(f), judge(x, node, rule.Egress, from, to, f), x)
					agree(t, "ingress", cluster.Ingress(f), judge(x, node, rule.Ingress, to, from, f), x)
				}
			}
		}
	})
}

// judge asks the engine; nil if no pod is judged.
func judge(x *merge.Index, node resolve.NodeState, d rule.Direction, subject, peer party, f spec.Flow) *merge.PortVerdict {
	if subject.side.Identity == nil {
		return nil
	}
	for _, s := range node.Subjects {
		if s.Identity == subject.hash {
			row := merge.RowKey{Subjects: s.Selectors, Direction: d}
			ports, _ := x.Judge(row, x.Matches(peer.desc), peer.desc.Entity)
			v := ports.Verdict(f.Protocol, f.Port)
			return &v
		}
	}
	return &merge.PortVerdict{}
}

func agree(t *rapid.T, side string, want spec.Verdict, got *merge.PortVerdict, x *merge.Index) {
	t.Helper()
	kinds := map[spec.Kind]merge.Kind{spec.Deny: merge.Deny, spec.Allow: merge.Allow, spec.HTTP: merge.HTTP}
	switch {
	case got == nil && want.Kind == spec.NotJudged:
		return
	case got == nil || kinds[want.Kind] != got.Kind || want.Kind == spec.NotJudged:
		t.Fatalf("%s: got %+v, want %+v", side, got, want)
	case got.Kind != merge.HTTP:
		return
	}
	set, _ := x.RuleSet(got.RuleSet)
	for _, method := range []string{"GET", "PUT", "DELETE"} {
		q := spec.Request{Method: method, Target: "/"}
		if passes := (spec.Verdict{Kind: spec.HTTP, Rules: set.Rules}).Permits(q); passes != want.Permits(q) {
			t.Fatalf("%s of %s: got %v, want %v", side, method, passes, want.Permits(q))
		}
	}
}

// Policies renamed and written as one for each rule leave every endpoint in the
// row that it was in, and every cell of it as it was: nothing flips.
func TestS18RenamedAndSplitPoliciesMoveNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		before := w.fresh(t).Node(w.hashes())
		after := w
		after.policies = nil
		for _, p := range w.policies {
			for _, part := range p.Parts() {
				after.policies = append(after.policies, splitPolicy(part)...)
			}
		}
		node := after.fresh(t).Node(w.hashes())
		if d := diff(before.Subjects, node.Subjects); d != "" {
			t.Fatalf("subjects (-want +got):\n%s", d)
		}
		x, err := merge.New(merge.Policy{Selectors: before.Selectors, Rules: before.Rules, RuleSets: before.RuleSets})
		if err != nil {
			t.Fatal(err)
		}
		y, err := merge.New(merge.Policy{Selectors: node.Selectors, Rules: node.Rules, RuleSets: node.RuleSets})
		if err != nil {
			t.Fatal(err)
		}
		peer := w.drawParty(t).desc
		for _, s := range before.Subjects {
			for _, d := range []rule.Direction{rule.Ingress, rule.Egress} {
				row := merge.RowKey{Subjects: s.Selectors, Direction: d}
				want, _ := x.Judge(row, x.Matches(peer), peer.Entity)
				got, _ := y.Judge(row, y.Matches(peer), peer.Entity)
				if d := diff(want, got); d != "" {
					t.Fatalf("cell (-want +got):\n%s", d)
				}
			}
		}
	})
}

// splitPolicy writes each rule of a policy as a policy of its own.
func splitPolicy(p *object.Policy) []*object.Policy {
	split := func(rules []object.PolicyRule) *object.Policy {
		one := *p
		one.Also, one.Lines = nil, nil
		one.Rules = rules
		one.Origin.Name = "renamed-" + p.Origin.Name
		return &one
	}
	all := []*object.Policy{split(nil)}
	for i := range p.Rules {
		all = append(all, split(p.Rules[i:i+1]))
	}
	return all
}

// Policies that come from YAML stand in lines; a rule without one takes that of
// the field around it.
func TestOriginsAreAsNearAsLinesAre(t *testing.T) {
	s := resolve.New()
	s.SetNamespace("a", nil)
	id := rule.Identity{Namespace: "a"}
	s.SetIdentity(1, hashOf(id), id)
	err := s.SetPolicy("p", &object.Policy{
		Origin: rule.Origin{Namespace: "a", Line: 1}, Semantics: object.SemanticsV2, Subject: object.Selector{Namespaces: []string{"a"}},
		Lines: map[string]int{"spec.ingress[0]": 5},
		Rules: []object.PolicyRule{
			{Direction: rule.Ingress, Action: rule.Allow, Tier: rule.Normal, AnyPeer: true, AnyPort: true, Path: "spec.ingress[0]"},
			{Direction: rule.Ingress, Action: rule.Allow, Tier: rule.Normal, AnyPeer: true, Path: "spec.ingress[0]", Ports: []object.PortRule{
				{AnyPort: true, Path: "spec.ingress[0].toPorts[2]"},
			}},
			{Direction: rule.Ingress, Action: rule.Allow, Tier: rule.Normal, AnyPeer: true, AnyPort: true, Path: "spec.ingress[1]"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"spec.ingress[0]": 5, "spec.ingress[0].toPorts[2]": 5, "spec.ingress[1]": 1}
	for _, r := range s.Node([]rule.IdentityHash{hashOf(id)}).Rules {
		if r.Origin.Line != want[r.Origin.Path] {
			t.Errorf("line of %s: got %d, want %d", r.Origin.Path, r.Origin.Line, want[r.Origin.Path])
		}
	}
}
