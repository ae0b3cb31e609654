package stream_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weir.dev/weir/engine/httprule"
	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/resolve"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/policy/internal/stream"
)

func id(text string) rule.ID { return rule.NewID([]byte(text)) }

func ptr(s string) *string { return &s }

var subjects = []rule.ID{id("one"), id("two"), id("three")}

// drawState draws a node's state: what rules of every kind may say.
func drawState(t *rapid.T) resolve.NodeState {
	var n resolve.NodeState
	for i := range 2 {
		s := rule.Subject{Identity: rule.IdentityHash{byte(i + 1)}, Revision: rule.Revision(i + 1)}
		for _, id := range subjects {
			if rapid.Bool().Draw(t, "in subject") {
				s.Selectors = append(s.Selectors, id)
			}
		}
		slices.SortFunc(s.Selectors, rule.ID.Compare)
		n.Subjects = append(n.Subjects, s)
	}
	for i := range 3 {
		s := rule.Selector{ID: id(fmt.Sprint("selector ", i)), PrefixesMatchPods: rapid.Bool().Draw(t, "pods"), Within: rapid.IntRange(0, 3).Draw(t, "within") == 0}
		for r := rule.Revision(1); r <= 3; r++ {
			if rapid.Bool().Draw(t, "member") {
				s.Identities = append(s.Identities, r)
			}
		}
		if rapid.Bool().Draw(t, "prefix") {
			s.Prefixes = []rule.PrefixSet{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}}
		}
		if rapid.IntRange(0, 2).Draw(t, "entity") == 0 {
			s.Entities = []rule.Entity{rule.World}
		}
		n.Selectors = append(n.Selectors, s)
	}
	slices.SortFunc(n.Selectors, func(a, b rule.Selector) int { return a.ID.Compare(b.ID) })
	n.RuleSets = []rule.RuleSet{
		rule.NewRuleSet([]rule.HTTPRule{{Method: ptr("GET")}, {Headers: []rule.HeaderRule{{Name: "x"}}}}),
		rule.NewRuleSet([]rule.HTTPRule{{Path: ptr("/a"), Headers: []rule.HeaderRule{{Name: "x", Value: ptr("1")}}}}),
		rule.NewRuleSet([]rule.HTTPRule{{Path: ptr("/a")}}),
	}
	slices.SortFunc(n.RuleSets, func(a, b rule.RuleSet) int { return a.ID.Compare(b.ID) })
	for i := range rapid.IntRange(0, 8).Draw(t, "rules") {
		n.Rules = append(n.Rules, drawRule(t, i, n))
	}
	slices.SortFunc(n.Rules, func(a, b rule.Rule) int { return a.ID.Compare(b.ID) })
	return n
}

func drawRule(t *rapid.T, i int, n resolve.NodeState) rule.Rule {
	r := rule.Rule{
		ID: id(fmt.Sprint("rule ", i)), Subject: rapid.SampledFrom(subjects).Draw(t, "subject"),
		Direction: rapid.SampledFrom([]rule.Direction{rule.Ingress, rule.Egress}).Draw(t, "direction"),
		Tier:      rapid.SampledFrom([]rule.Tier{rule.Normal, rule.Normal, rule.Normal, rule.Admin, rule.Baseline}).Draw(t, "tier"),
	}
	actions := map[rule.Tier][]rule.Action{
		rule.Admin:    {rule.Deny, rule.Allow, rule.Pass},
		rule.Normal:   {rule.Deny, rule.Allow, rule.Allow, rule.Allow, rule.Isolate},
		rule.Baseline: {rule.Deny, rule.Allow},
	}
	if r.Action = rapid.SampledFrom(actions[r.Tier]).Draw(t, "action"); r.Action == rule.Isolate {
		return r
	}
	r.Peer = rapid.SampledFrom(n.Selectors).Draw(t, "peer").ID
	r.Ports = rapid.SampledFrom([][]rule.PortRange{
		rule.Everything(), {{Protocol: rule.TCP, Lo: 80, Hi: 80}}, {{Protocol: rule.TCP, Lo: 0, Hi: 65535}},
	}).Draw(t, "ports")
	if r.Action == rule.Allow && !r.Ports[0].Any && rapid.Bool().Draw(t, "http") {
		r.RuleSet = rapid.SampledFrom(n.RuleSets).Draw(t, "rule set").ID
	}
	return r
}

var requests = []httprule.Request{
	{Method: "GET", Path: "/"},
	{Method: "POST", Path: "/a"},
	{Method: "POST", Path: "/a", Headers: []httprule.Header{{Name: "x", Value: "1"}}},
	{Method: "POST", Path: "/b", Headers: []httprule.Header{{Name: "x", Value: "2"}}},
	{Method: "PUT", Path: "/c"},
}

// passes tells for each request whether a packet and the request in it pass;
// the last says it of a connection without a request.
func passes(t *rapid.T, x *merge.Index, row merge.RowKey, peer merge.PeerDesc, port uint16) []bool {
	ports, _ := x.Judge(row, x.Matches(peer), peer.Entity)
	key := uint32(rule.TCP)<<16 | uint32(port)
	var v merge.PortVerdict
	for _, r := range ports {
		if r.Start <= key {
			v = r.Verdict
		}
	}
	out := make([]bool, len(requests)+1)
	for i, req := range requests {
		switch v.Kind {
		case merge.Allow:
			out[i] = true
		case merge.HTTP:
			set, ok := x.RuleSet(v.RuleSet)
			if !ok {
				t.Fatalf("rule set %s is not there", v.RuleSet)
			}
			m, err := httprule.Compile(set.Rules)
			if err != nil {
				t.Fatal(err)
			}
			_, out[i] = m.Match(req)
		}
	}
	out[len(requests)] = v.Kind == merge.Allow
	return out
}

func TestStrictAllowsNothingMore(t *testing.T) {
	peers := []merge.PeerDesc{
		{Identity: 1, Entity: rule.Endpoints, Prefix: netip.MustParsePrefix("10.0.0.1/32")},
		{Identity: 2, Entity: rule.Endpoints, Prefix: netip.MustParsePrefix("172.16.0.2/32")},
		{Entity: rule.World, Prefix: netip.MustParsePrefix("10.0.0.3/32")},
		{Entity: rule.World, Prefix: netip.MustParsePrefix("192.0.2.1/32")},
	}
	names := []string{"deny", "http", "http.headers", "services", "tiers", "within"}
	rapid.Check(t, func(t *rapid.T) {
		n := drawState(t)
		var has []string
		for _, c := range names {
			if rapid.Bool().Draw(t, c) {
				has = append(has, c)
			}
		}
		caps := stream.ParseCapabilities(has)
		strict := stream.Strict(n, caps)
		for _, r := range strict.Rules {
			if r.Action == rule.Deny && !caps.Deny || r.Tier != rule.Normal && !caps.Tiers || r.RuleSet != (rule.ID{}) && !caps.HTTP {
				t.Fatalf("a client with %q is sent %+v", has, r)
			}
		}
		if _, err := stream.Items(strict); err != nil {
			t.Fatal(err)
		}
		whole, err := merge.New(merge.Policy{Selectors: n.Selectors, Rules: n.Rules, RuleSets: n.RuleSets})
		if err != nil {
			t.Fatal(err)
		}
		less, err := merge.New(merge.Policy{Selectors: strict.Selectors, Rules: strict.Rules, RuleSets: strict.RuleSets})
		if err != nil {
			t.Fatalf("the stricter form is no policy: %v", err)
		}
		for _, s := range n.Subjects {
			for _, dir := range []rule.Direction{rule.Ingress, rule.Egress} {
				row := merge.RowKey{Subjects: s.Selectors, Direction: dir}
				for _, p := range peers {
					for _, port := range []uint16{79, 80} {
						want, got := passes(t, whole, row, p, port), passes(t, less, row, p, port)
						for i := range want {
							if got[i] && !want[i] {
								t.Fatalf("client with %q, subject %d, direction %d, peer %+v, port %d, request %d: passes, and does not by what was written\nrules %+v\ntold %+v",
									has, s.Revision, dir, p, port, i, n.Rules, strict.Rules)
							}
						}
					}
				}
			}
		}
	})
}

func TestEveryCapabilityChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawState(t)
		n.Services = []rule.Service{{Addr: netip.MustParseAddr("10.96.0.1"), Protocol: 6, Port: 80}}
		strict := stream.Strict(n, stream.ParseCapabilities([]string{"deny", "http", "http.headers", "named-ports", "services", "tiers", "within"}))
		if len(strict.Rules) != len(n.Rules) || len(strict.Services) != 1 {
			t.Fatalf("rules %v became %v", n.Rules, strict.Rules)
		}
	})
}
