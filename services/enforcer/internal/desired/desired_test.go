package desired_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/deptest"
	"weir.dev/weir/services/enforcer/internal/desired"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// What is desired is pure: nothing here can read a clock, a file or a socket.
func TestImports(t *testing.T) {
	deptest.OnlyImports(t, "cmp", "fmt", "maps", "net/netip", "slices", "strings",
		"weir.dev/weir/engine/merge", "weir.dev/weir/engine/rule",
		"weir.dev/weir/services/enforcer/internal/plan")
}

var limits = plan.Limits{
	Endpoints: 64, Addresses: 4096, Prefixes: 256, Peers: 1024, Cells: 4096,
	Ranges: 4096, Services: 256, Backends: 1024, Pairs: 256,
}

func id(s string) rule.ID                 { return rule.NewID([]byte(s)) }
func hash(s string) (h rule.IdentityHash) { copy(h[:], s); return h }
func addr(s string) netip.Addr            { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix        { return netip.MustParsePrefix(s) }
func at(r rule.Revision) desired.Position { return desired.Position{Generation: 1, Revision: r} }
func tcp(ports ...uint16) []rule.PortRange {
	var out []rule.PortRange
	for _, p := range ports {
		out = append(out, rule.PortRange{Protocol: rule.TCP, Lo: p, Hi: p})
	}
	return out
}

// world is a node n1 with pods "app1" (10.1.0.1, isolated for ingress and
// egress by what a test adds) and what a test knows of others.
type world struct {
	in        desired.Input
	selectors []rule.Selector
	rules     []rule.Rule
	ruleSets  []rule.RuleSet
}

const app1 = uint32(7) // ifindex, and ID, of the endpoint under test

func newWorld() *world {
	w := &world{in: desired.Input{
		Node: "n1", At: at(100), Subjects: map[rule.IdentityHash]rule.Subject{},
		Records: map[netip.Addr]desired.Record{}, ClusterCIDRs: []netip.Prefix{prefix("10.0.0.0/8"), prefix("fd00::/16")},
		NodeAddrs: []netip.Addr{addr("192.168.0.1"), addr("10.1.0.254")},
		Endpoints: []desired.Endpoint{{
			ID: app1, Ifindex: app1, PodUID: "uid-app1", Identity: hash("app1"), Entered: at(10),
			Addrs: []netip.Addr{addr("10.1.0.1"), addr("fd00::1")},
		}},
	}}
	w.in.Subjects[hash("app1")] = rule.Subject{Identity: hash("app1"), Revision: 10, Selectors: []rule.ID{id("subject")}}
	return w
}

func (w *world) pod(a, name string, entered rule.Revision) {
	w.in.Records[addr(a)] = desired.Record{Addr: addr(a), PodUID: "uid-" + a, Node: "n2", Identity: hash(name), Entered: at(entered)}
}

func (w *world) isolate(d rule.Direction, policy string) {
	w.rules = append(w.rules, rule.Rule{
		ID: id(policy + fmt.Sprint(d)), Subject: id("subject"), Direction: d, Tier: rule.Normal, Action: rule.Isolate,
		Origin: rule.Origin{Kind: "NetworkPolicy", Namespace: "default", Name: policy},
	})
}

func (w *world) rule(name string, d rule.Direction, action rule.Action, s rule.Selector, ports []rule.PortRange, set rule.ID) {
	s.ID = id("selector of " + name)
	w.selectors = append(w.selectors, s)
	w.rules = append(w.rules, rule.Rule{
		ID: id(name), Subject: id("subject"), Direction: d, Tier: rule.Normal, Action: action, Peer: s.ID, Ports: ports, RuleSet: set,
		Origin: rule.Origin{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: name, Path: "spec"},
	})
}

func (w *world) httpSet(path string) rule.ID {
	set := rule.NewRuleSet([]rule.HTTPRule{{Path: &path, Origin: rule.Origin{Name: "of " + path}}})
	w.ruleSets = append(w.ruleSets, set)
	return set.ID
}

func (w *world) input(t testing.TB) desired.Input {
	t.Helper()
	byID := func(a, b rule.Selector) int { return a.ID.Compare(b.ID) }
	slices.SortFunc(w.selectors, byID)
	slices.SortFunc(w.rules, func(a, b rule.Rule) int { return a.ID.Compare(b.ID) })
	slices.SortFunc(w.ruleSets, func(a, b rule.RuleSet) int { return a.ID.Compare(b.ID) })
	index, err := merge.New(merge.Policy{Selectors: w.selectors, Rules: w.rules, RuleSets: w.ruleSets})
	if err != nil {
		t.Fatal(err)
	}
	in := w.in
	in.Index, in.Rules = index, slices.Clone(w.rules)
	in.Records = maps.Clone(w.in.Records)
	return in
}

func build(t *testing.T, b *desired.Builder, in desired.Input) desired.Output {
	t.Helper()
	out, err := b.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// pending is what peerOf tells of an address that must not be judged.
const pending = "pending"

// ingress judges a TCP packet from an address to app1 as the programs do.
func ingress(out desired.Output, from string, port uint16) string {
	return judge(out, out.State.Endpoints[app1].Ingress, from, port)
}

func egress(out desired.Output, to string, port uint16) string {
	return judge(out, out.State.Endpoints[app1].Egress, to, port)
}

func judge(out desired.Output, row plan.Row, peer string, port uint16) string {
	ref := refOf(out, addr(peer))
	if ref.Flags&(plan.FlagPending|plan.FlagCluster) != 0 {
		return pending
	}
	class := out.State.Classes[ref.Peer]
	switch {
	case class == plan.NoClass:
		return pending
	case row == plan.RowClosed:
		return "closed"
	case row == plan.RowOpen:
		return "allow"
	}
	ports, ok := out.State.Cells[plan.CellKey{Row: row, Class: class}]
	if !ok {
		ports = out.State.Cells[plan.CellKey{Row: row, Class: plan.DefaultClass}]
	}
	verdict := rule.Denied
	for _, r := range ports {
		if r.Start <= merge.Key(rule.TCP, port) {
			verdict = r.Verdict
		}
	}
	switch verdict {
	case rule.Denied:
		return "deny"
	case rule.Allowed:
		return "allow"
	}
	return fmt.Sprint("rule set ", verdict)
}

func refOf(out desired.Output, a netip.Addr) plan.PeerRef {
	if ref, ok := out.State.Addresses[a]; ok {
		return ref
	}
	for bits := a.BitLen(); bits >= 0; bits-- {
		if ref, ok := out.State.Prefixes[netip.PrefixFrom(a, bits).Masked()]; ok {
			return ref
		}
	}
	return plan.PeerRef{}
}

// S1: two pods with equal labels on both sides of an ipBlock's except have one
// identity and two verdicts: the address is classed, not the identity.
func TestS1AddressIsClassedNotIdentity(t *testing.T) {
	w := newWorld()
	w.isolate(rule.Ingress, "p")
	w.rule("block", rule.Ingress, rule.Allow, rule.Selector{
		Prefixes:          []rule.PrefixSet{{Prefix: prefix("10.2.0.0/16"), Except: []netip.Prefix{prefix("10.2.9.0/24")}}},
		PrefixesMatchPods: true,
	}, tcp(80), rule.ID{})
	w.pod("10.2.1.1", "twin", 20)
	w.pod("10.2.9.1", "twin", 20)
	out := build(t, desired.NewBuilder(limits, 0), w.input(t))
	if in, except := ingress(out, "10.2.1.1", 80), ingress(out, "10.2.9.1", 80); in != "allow" || except != "deny" {
		t.Errorf("pods of one identity: inside the block %s, in its except %s; want allow and deny", in, except)
	}
}

// S2: a name's address inside a denied CIDR: the exact entry must not hide the
// prefix that denies.
func TestS2NameInsideADeniedPrefixStaysDenied(t *testing.T) {
	w := newWorld()
	w.isolate(rule.Egress, "p")
	w.rule("names", rule.Egress, rule.Allow, rule.Selector{Names: []string{"example.org"}}, rule.Everything(), rule.ID{})
	w.rule("denied", rule.Egress, rule.Deny, rule.Selector{Prefixes: []rule.PrefixSet{{Prefix: prefix("203.0.113.0/26")}}}, rule.Everything(), rule.ID{})
	w.in.Names = map[netip.Addr][]string{addr("203.0.113.5"): {"example.org"}, addr("203.0.113.200"): {"example.org"}}
	out := build(t, desired.NewBuilder(limits, 0), w.input(t))
	if in, outside := egress(out, "203.0.113.5", 443), egress(out, "203.0.113.200", 443); in != "deny" || outside != "allow" {
		t.Errorf("the name's address: inside the denied prefix %s, outside %s; want deny and allow", in, outside)
	}
}

// S4: an address may be known before its identity, or not at all. Whichever
// comes first, it is pending until both are there, never world.
func TestS4AddressBeforeItsIdentityIsPending(t *testing.T) {
	w := newWorld()
	w.isolate(rule.Ingress, "p")
	w.rule("all", rule.Ingress, rule.Allow, rule.Selector{
		Entities: []rule.Entity{rule.World, rule.Endpoints, rule.RemoteNode}, Prefixes: []rule.PrefixSet{{Prefix: prefix("10.2.0.0/24")}},
	}, rule.Everything(), rule.ID{})
	w.rule("but", rule.Ingress, rule.Deny, rule.Selector{Identities: []rule.Revision{120}}, rule.Everything(), rule.ID{})
	const peer = "10.2.0.5"
	b := desired.NewBuilder(limits, 0)
	anew := desired.Position{Generation: 2, Revision: 500}
	for _, step := range []struct {
		name   string
		change func()
		want   string
	}{
		{"nothing is known", func() {}, pending},
		{"the address, of an identity newer than the policy in force", func() { w.pod(peer, "new", 120) }, pending},
		{"the policy follows", func() { w.in.At = at(120) }, "deny"},
		{"the address goes", func() { delete(w.in.Records, addr(peer)) }, pending},
		{"the identity was known first", func() { w.pod(peer, "new", 120) }, "deny"},
		{"the log begins anew, and the address is of the old one", func() { w.in.At = anew }, pending},
		{"back", func() { w.in.At = at(120) }, "deny"},
		{"the address is of the new log, the policy not yet", func() {
			r := w.in.Records[addr(peer)]
			r.Entered = desired.Position{Generation: 2, Revision: 120}
			w.in.Records[addr(peer)] = r
		}, "deny"},
		{"an identity that only the new log has", func() {
			r := w.in.Records[addr(peer)]
			r.Identity = hash("newer")
			w.in.Records[addr(peer)] = r
		}, pending},
		{"the policy follows into the new log", func() { w.in.At = anew }, "deny"},
	} {
		step.change()
		if got := ingress(build(t, b, w.input(t)), peer, 80); got != step.want {
			t.Errorf("%s: got %s, want %s", step.name, got, step.want)
		}
	}
}

// S18: attribution is beside the verdicts, so renaming or splitting a policy
// writes nothing.
func TestS18RenameWritesNothing(t *testing.T) {
	w := newWorld()
	w.isolate(rule.Ingress, "p")
	w.rule("old name", rule.Ingress, rule.Allow, rule.Selector{Identities: []rule.Revision{20}}, tcp(80), rule.ID{})
	w.pod("10.2.0.5", "peer", 20)
	b := desired.NewBuilder(limits, 0)
	before := build(t, b, w.input(t))
	b.InForce()
	for i := range w.rules {
		w.rules[i].Origin.Name += " renamed"
		w.rules[i].ID = id(w.rules[i].Origin.Name + fmt.Sprint(w.rules[i].Action))
	}
	after := build(t, b, w.input(t))
	if diff := cmp.Diff(before.State, after.State, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("a rename changed the state (-before +after):\n%s", diff)
	}
	ref := refOf(after, addr("10.2.0.5"))
	d := after.Explain.Decide(after.State.Endpoints[app1].Ingress, after.State.Classes[ref.Peer], rule.TCP, 80)
	if d.Rule == nil || d.Rule.Origin.Name != "old name renamed" {
		t.Errorf("attributed to %+v", d.Rule)
	}
}

func TestKnownThingsWriteOnlyThemselves(t *testing.T) {
	w := newWorld()
	w.isolate(rule.Ingress, "p")
	w.rule("allow", rule.Ingress, rule.Allow, rule.Selector{Identities: []rule.Revision{20}}, tcp(80), rule.ID{})
	w.pod("10.2.0.5", "peer", 20)
	w.pod("10.2.0.7", "other", 21)
	b := desired.NewBuilder(limits, 0)
	before := build(t, b, w.input(t)).State
	b.InForce()

	w.pod("10.2.0.6", "peer", 20)
	pod := build(t, b, w.input(t)).State
	if _, ok := pod.Addresses[addr("10.2.0.6")]; !ok || len(pod.Addresses) != len(before.Addresses)+1 {
		t.Errorf("a new pod of a known identity: %d addresses, had %d", len(pod.Addresses), len(before.Addresses))
	}
	if !maps.Equal(before.Classes, pod.Classes) || !cmp.Equal(before.Cells, pod.Cells) {
		t.Error("a new pod of a known identity touched classes or cells")
	}
	b.InForce()

	w.pod("10.2.0.8", "a third", 22)
	identity := build(t, b, w.input(t)).State
	if len(identity.Classes) != len(pod.Classes)+1 || !cmp.Equal(pod.Cells, identity.Cells) {
		t.Errorf("a new identity of a known class: %d classes, had %d; cells equal: %v",
			len(identity.Classes), len(pod.Classes), cmp.Equal(pod.Cells, identity.Cells))
	}
}

func TestEndpointsAreClosedUntilTheirIdentityIsInForce(t *testing.T) {
	w := newWorld()
	w.isolate(rule.Ingress, "p")
	b := desired.NewBuilder(limits, 0)
	for _, tc := range []struct {
		name            string
		change          func(e *desired.Endpoint)
		ingress, egress plan.Row
		ready           desired.Judged
	}{
		{"not registered", func(e *desired.Endpoint) { e.Identity = rule.IdentityHash{} }, plan.RowClosed, plan.RowClosed, desired.Judged{}},
		{"no subject", func(e *desired.Endpoint) { e.Identity = hash("unknown") }, plan.RowClosed, plan.RowClosed, desired.Judged{}},
		{"policy too old", func(e *desired.Endpoint) { e.Identity, e.Entered = hash("app1"), at(101) }, plan.RowClosed, plan.RowClosed, desired.Judged{}},
		{"known", func(e *desired.Endpoint) { e.Entered = at(10) }, plan.FirstRow, plan.RowOpen, desired.Judged{Identity: hash("app1"), Entered: at(10)}},
		{
			"relabelled, not known yet", func(e *desired.Endpoint) { e.Next, e.NextEntered = hash("next"), at(105) },
			plan.FirstRow, plan.RowOpen, desired.Judged{Identity: hash("app1"), Entered: at(10)},
		},
	} {
		tc.change(&w.in.Endpoints[0])
		out := build(t, b, w.input(t))
		got := out.State.Endpoints[app1]
		if got.Ingress != tc.ingress || got.Egress != tc.egress || out.Ready[app1] != tc.ready {
			t.Errorf("%s: rows %d and %d, judged by %x; want %d, %d, %x", tc.name,
				got.Ingress, got.Egress, out.Ready[app1], tc.ingress, tc.egress, tc.ready)
		}
	}
	w.in.At = at(105)
	w.in.Subjects[hash("next")] = rule.Subject{Identity: hash("next"), Revision: 105}
	if out := build(t, b, w.input(t)); out.State.Endpoints[app1].Ingress != plan.RowOpen || out.Ready[app1].Identity != hash("next") {
		t.Errorf("relabelled and known: %+v, judged by %+v", out.State.Endpoints[app1], out.Ready[app1])
	}
}

func TestNodesAreTheirOwn(t *testing.T) {
	w := newWorld()
	w.isolate(rule.Ingress, "p")
	w.rule("nodes", rule.Ingress, rule.Allow, rule.Selector{Entities: []rule.Entity{rule.RemoteNode}}, tcp(80), rule.ID{})
	w.in.Records[addr("192.168.0.2")] = desired.Record{Addr: addr("192.168.0.2"), Node: "n2", NodeAddress: true}
	w.in.Records[addr("192.168.0.1")] = desired.Record{Addr: addr("192.168.0.1"), PodUID: "liar", Node: "n2", Identity: hash("liar"), Entered: at(20)}
	out := build(t, desired.NewBuilder(limits, 0), w.input(t))
	for a, want := range map[string]plan.Flags{"192.168.0.1": plan.FlagHost, "fe80::1": plan.FlagHost, "febf::1": plan.FlagHost, "fec0::1": 0, "ff02::1": plan.FlagHost, "224.0.0.1": plan.FlagHost, "224.0.0.251": 0, "10.1.0.254": plan.FlagHost, "192.168.0.2": plan.FlagRemoteNode} {
		if got := refOf(out, addr(a)).Flags; got != want {
			t.Errorf("flags of %s: got %d, want %d", a, got, want)
		}
	}
	// The own node always reaches its pods; others by rule.
	for _, tc := range []struct {
		from string
		port uint16
		want string
	}{{"192.168.0.1", 22, "allow"}, {"192.168.0.2", 80, "allow"}, {"192.168.0.2", 22, "deny"}, {"203.0.113.1", 80, "deny"}, {"10.77.0.1", 80, pending}} {
		if got := ingress(out, tc.from, tc.port); got != tc.want {
			t.Errorf("from %s to port %d: got %s, want %s", tc.from, tc.port, got, tc.want)
		}
	}
}

func TestBackendsOfAServiceMustAgree(t *testing.T) {
	w := newWorld()
	a, b := w.httpSet("/a"), w.httpSet("/b")
	w.isolate(rule.Egress, "p")
	w.rule("to a", rule.Egress, rule.Allow, rule.Selector{Identities: []rule.Revision{20}}, tcp(8080), a)
	w.rule("to b", rule.Egress, rule.Allow, rule.Selector{Identities: []rule.Revision{21}}, tcp(8080), b)
	w.pod("10.2.0.1", "a", 20)
	w.pod("10.2.0.2", "b", 21)
	service := plan.ServiceKey{Addr: addr("10.96.0.1"), Protocol: rule.TCP, Port: 80}
	w.in.Services = []rule.Service{{Addr: service.Addr, Protocol: service.Protocol, Port: service.Port, Backends: []rule.Backend{
		{Addr: addr("10.2.0.1"), Port: 8080}, {Addr: addr("10.2.0.2"), Port: 8080}, {Addr: addr("10.2.0.1"), Port: 8080},
	}}}
	out := build(t, desired.NewBuilder(limits, 0), w.input(t))
	if got := len(out.State.Services[service]); got != 2 {
		t.Errorf("%d backends, want 2 different ones", got)
	}
	if len(out.State.Pairs) != 1 || len(out.RuleSets) != 3 {
		t.Fatalf("pairs %v and %d rule sets, want one pair and three", out.State.Pairs, len(out.RuleSets))
	}
	for pair, both := range out.State.Pairs {
		i := slices.IndexFunc(out.RuleSets, func(s desired.RuleSet) bool { return s.Number == both })
		if pair.A >= pair.B || i < 0 || len(out.RuleSets[i].AllOf) != 2 {
			t.Errorf("pair %v is rule set %d", pair, both)
		}
	}
	w.in.Services[0].Backends = append(w.in.Services[0].Backends, rule.Backend{Addr: addr("10.2.0.99"), Port: 8080})
	out = build(t, desired.NewBuilder(limits, 0), w.input(t))
	if !slices.Contains(out.State.Services[service], plan.Backend{Peer: plan.NoPeer, Port: 8080}) {
		t.Errorf("a backend that is pending has a peer: %v", out.State.Services[service])
	}
}

func TestRuleSetNumbersAreNeverReused(t *testing.T) {
	w := newWorld()
	w.isolate(rule.Ingress, "p")
	b := desired.NewBuilder(limits, 40)
	seen := map[rule.Verdict]rule.ID{}
	for i := range 20 {
		w.rules, w.selectors, w.ruleSets = w.rules[:1], nil, nil
		set := w.httpSet(fmt.Sprint("/", i%7))
		w.rule("http", rule.Ingress, rule.Allow, rule.Selector{Identities: []rule.Revision{20}}, tcp(80), set)
		w.rules = slices.DeleteFunc(w.rules, func(r rule.Rule) bool { return r.Action == rule.Allow && r.RuleSet != set })
		if !slices.ContainsFunc(w.rules, func(r rule.Rule) bool { return r.Action == rule.Isolate }) {
			w.isolate(rule.Ingress, "p")
		}
		w.pod("10.2.0.5", "peer", 20)
		for _, s := range build(t, b, w.input(t)).RuleSets {
			if old, ok := seen[s.Number]; ok && old != s.AllOf[0].ID || s.Number < 40 {
				t.Fatalf("number %d means %s and %s", s.Number, old, s.AllOf[0].ID)
			}
			seen[s.Number] = s.AllOf[0].ID
		}
		b.InForce()
	}
	if b.NextRuleSet() != 60 {
		t.Errorf("next rule set number is %d, want 60", b.NextRuleSet())
	}
}

// However a builder came to a policy, its state says the same of every flow.
func TestHistoryDoesNotMatter(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	old := desired.NewBuilder(limits, 0)
	flows := []string{"10.2.0.1", "10.2.0.2", "10.2.0.200", "10.3.0.1", "203.0.113.9", "192.168.0.1"}
	for range 200 {
		w := newWorld()
		if rng.IntN(3) > 0 {
			w.isolate(rule.Ingress, "p")
		}
		for i := range rng.IntN(5) {
			s := rule.Selector{PrefixesMatchPods: rng.IntN(2) == 0}
			for _, r := range []rule.Revision{20, 21, 22} {
				if rng.IntN(2) == 0 {
					s.Identities = append(s.Identities, r)
				}
			}
			if rng.IntN(2) == 0 {
				s.Prefixes = []rule.PrefixSet{{Prefix: prefix("10.2.0.0/24"), Except: []netip.Prefix{prefix("10.2.0.128/25")}}}
			}
			w.rule(fmt.Sprint("r", i), rule.Ingress, []rule.Action{rule.Allow, rule.Deny}[rng.IntN(2)], s, tcp(80, uint16(8080+rng.IntN(2))), rule.ID{})
		}
		w.pod("10.2.0.1", "a", 20)
		w.pod("10.2.0.2", "b", 21)
		if rng.IntN(2) == 0 {
			w.pod("10.2.0.200", "a", 20)
		}
		in := w.input(t)
		got, want := build(t, old, in), build(t, desired.NewBuilder(limits, 0), in)
		if rng.IntN(2) == 0 {
			old.InForce()
		}
		for _, f := range flows {
			for _, port := range []uint16{22, 80, 8080, 8081} {
				if g, x := ingress(got, f, port), ingress(want, f, port); g != x {
					t.Fatalf("from %s to port %d: with a history %s, from nothing %s", f, port, g, x)
				}
			}
		}
	}
}
