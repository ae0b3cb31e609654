package merge_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/rule"
)

func id(text string) rule.ID { return rule.NewID([]byte(text)) }

func ptr(s string) *string { return &s }

// prefixes nest, so that longest match and union differ.
var prefixes = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/0"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("10.1.0.0/16"),
	netip.MustParsePrefix("10.1.2.0/24"),
	netip.MustParsePrefix("10.1.2.3/32"),
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2001:db8:1::/48"),
}

var addresses = []netip.Addr{
	netip.MustParseAddr("192.0.2.1"),
	netip.MustParseAddr("10.9.0.1"),
	netip.MustParseAddr("10.1.9.1"),
	netip.MustParseAddr("10.1.2.9"),
	netip.MustParseAddr("10.1.2.3"),
	netip.MustParseAddr("2001:db8::1"),
	netip.MustParseAddr("2001:db8:1::1"),
}

var names = []string{"a.example", "b.example"}

func drawSelector(t *rapid.T, n int) rule.Selector {
	s := rule.Selector{
		ID:                 id(fmt.Sprint("selector ", n)),
		PrefixesMatchPods:  rapid.Bool().Draw(t, "pods"),
		PrefixesMatchNodes: rapid.Bool().Draw(t, "nodes"),
		Within:             rapid.IntRange(0, 3).Draw(t, "within") == 0,
	}
	for _, r := range rapid.SliceOfNDistinct(rapid.IntRange(1, 5), 0, 4, rapid.ID[int]).Draw(t, "identities") {
		s.Identities = append(s.Identities, rule.Revision(r))
	}
	for range rapid.IntRange(0, 2).Draw(t, "prefixes") {
		set := rule.PrefixSet{Prefix: rapid.SampledFrom(prefixes).Draw(t, "prefix")}
		for _, e := range prefixes {
			inside := e.Bits() > set.Prefix.Bits() && set.Prefix.Contains(e.Addr())
			if inside && rapid.Bool().Draw(t, "except") {
				set.Except = append(set.Except, e)
			}
		}
		s.Prefixes = append(s.Prefixes, set)
	}
	for _, e := range []rule.Entity{rule.World, rule.Host, rule.RemoteNode, rule.Endpoints} {
		if rapid.IntRange(0, 4).Draw(t, "entity") == 0 {
			s.Entities = append(s.Entities, e)
		}
	}
	for _, name := range names {
		if rapid.IntRange(0, 4).Draw(t, "name") == 0 {
			s.Names = append(s.Names, name)
		}
	}
	return s
}

func drawPorts(t *rapid.T, http bool) []rule.PortRange {
	if !http && rapid.IntRange(0, 3).Draw(t, "any") == 0 {
		return rule.Everything()
	}
	var ports []rule.PortRange
	for range rapid.IntRange(0, 3).Draw(t, "ports") {
		p := rule.PortRange{Protocol: rule.TCP}
		if !http {
			p.Protocol = rapid.SampledFrom([]uint8{rule.ICMP, rule.TCP, rule.UDP, 47, 255}).Draw(t, "protocol")
		}
		p.Lo = uint16(rapid.SampledFrom([]int{0, 1, 79, 80, 81, 255, 443, 65535}).Draw(t, "lo"))
		p.Hi = max(p.Lo, uint16(rapid.SampledFrom([]int{0, 80, 81, 255, 500, 65534, 65535}).Draw(t, "hi")))
		if p.Protocol == rule.ICMP {
			p.Lo, p.Hi = p.Lo&0xff, max(p.Lo&0xff, p.Hi&0xff)
		}
		ports = append(ports, p)
	}
	return ports
}

func drawRule(t *rapid.T, n int, selectors []rule.Selector, sets []rule.RuleSet) rule.Rule {
	r := rule.Rule{
		ID:        id(fmt.Sprint("rule ", n)),
		Subject:   id(rapid.SampledFrom([]string{"one", "one", "two", "three"}).Draw(t, "subject")),
		Direction: rapid.SampledFrom([]rule.Direction{rule.Ingress, rule.Egress}).Draw(t, "direction"),
		Tier:      rapid.SampledFrom([]rule.Tier{rule.Admin, rule.Normal, rule.Normal, rule.Baseline}).Draw(t, "tier"),
		Origin:    rule.Origin{Kind: rapid.SampledFrom([]string{"A", "B"}).Draw(t, "kind"), Name: fmt.Sprint(n)},
	}
	actions := map[rule.Tier][]rule.Action{
		rule.Admin:    {rule.Deny, rule.Allow, rule.Pass},
		rule.Normal:   {rule.Deny, rule.Allow, rule.Allow, rule.Allow, rule.Isolate},
		rule.Baseline: {rule.Deny, rule.Allow},
	}
	r.Action = rapid.SampledFrom(actions[r.Tier]).Draw(t, "action")
	if r.Action == rule.Isolate {
		return r
	}
	if r.Tier != rule.Normal {
		r.Priority = rapid.Uint32Range(0, 2).Draw(t, "priority")
	}
	r.Peer = rapid.SampledFrom(selectors).Draw(t, "peer").ID
	http := r.Action == rule.Allow && rapid.Bool().Draw(t, "http")
	if http {
		r.RuleSet = rapid.SampledFrom(sets).Draw(t, "rule set").ID
	}
	r.Ports = drawPorts(t, http)
	return r
}

func drawPolicy(t *rapid.T) merge.Policy {
	get, post := rule.HTTPRule{Method: ptr("GET")}, rule.HTTPRule{Method: ptr("POST")}
	p := merge.Policy{RuleSets: []rule.RuleSet{
		rule.NewRuleSet([]rule.HTTPRule{get}),
		rule.NewRuleSet([]rule.HTTPRule{post}),
		rule.NewRuleSet([]rule.HTTPRule{{Path: ptr("/public")}}),
		rule.NewRuleSet([]rule.HTTPRule{get, post}),
	}}
	for n := range rapid.IntRange(1, 3).Draw(t, "selectors") {
		p.Selectors = append(p.Selectors, drawSelector(t, n))
	}
	for n := range rapid.IntRange(0, 12).Draw(t, "rules") {
		p.Rules = append(p.Rules, drawRule(t, n, p.Selectors, p.RuleSets))
	}
	return p
}

func drawRow(t *rapid.T) merge.RowKey {
	row := merge.RowKey{Direction: rapid.SampledFrom([]rule.Direction{rule.Ingress, rule.Egress}).Draw(t, "row direction")}
	for _, s := range []string{"one", "two"} {
		if rapid.IntRange(0, 3).Draw(t, "row subject") > 0 {
			row.Subjects = append(row.Subjects, id(s))
		}
	}
	slices.SortFunc(row.Subjects, rule.ID.Compare)
	return row
}

func drawPeer(t *rapid.T) merge.PeerDesc {
	addr := rapid.SampledFrom(addresses).Draw(t, "address")
	d := merge.PeerDesc{
		Entity: rapid.SampledFrom([]rule.Entity{0, rule.World, rule.World, rule.Host, rule.RemoteNode, rule.Endpoints, 9}).Draw(t, "peer entity"),
		Prefix: netip.PrefixFrom(addr, addr.BitLen()),
	}
	switch d.Entity {
	case rule.Endpoints:
		d.Identity = rule.Revision(rapid.IntRange(1, 6).Draw(t, "peer identity"))
	case rule.World:
		d.Names = rapid.SliceOfNDistinct(rapid.SampledFrom(names), 0, 2, rapid.ID[string]).Draw(t, "peer names")
	}
	return d
}

// edges are packets at and beside each end of each range of the rules.
func edges(p merge.Policy) []packet {
	packets := []packet{{0, 0}, {rule.TCP, 80}, {rule.UDP, 80}, {47, 0}, {47, 1}, {255, 0}, {255, 65535}}
	for _, r := range p.Rules {
		for _, ports := range r.Ports {
			for _, n := range []int{int(ports.Lo) - 1, int(ports.Lo), int(ports.Hi), int(ports.Hi) + 1} {
				if n >= 0 && n <= 0xffff && (ports.Protocol != rule.ICMP || n <= 0xff) {
					packets = append(packets, packet{ports.Protocol, uint16(n)})
				}
			}
		}
	}
	return packets
}

func TestCellsAgreeWithNaiveJudge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, row, peer := drawPolicy(t), drawRow(t), drawPeer(t)
		x, err := merge.New(p)
		if err != nil {
			t.Fatal(err)
		}
		ports, attribution := x.Judge(row, x.Matches(peer), peer.Entity)
		wellFormed(t, ports, attribution)
		for _, pkt := range edges(p) {
			want, by := naive(p, row, peer, pkt)
			if got := ports.Verdict(pkt.protocol, pkt.port); got != want {
				t.Fatalf("packet %v: got %v, want %v; ports %v", pkt, got, want, ports)
			}
			if got := attribution.At(pkt.protocol, pkt.port).Rule; got != by {
				t.Fatalf("packet %v: attributed to %v, want %v", pkt, got, by)
			}
			if want.Kind == merge.HTTP {
				if _, ok := x.RuleSet(want.RuleSet); !ok {
					t.Fatalf("packet %v: rule set %v is not there", pkt, want.RuleSet)
				}
			}
			if x.Open(row) && want.Kind != merge.Allow && peer.Entity >= rule.World && peer.Entity <= rule.Endpoints {
				t.Fatalf("packet %v: an open row says %v", pkt, want)
			}
		}
	})
}

func wellFormed(t *rapid.T, ports merge.PortMap, attribution merge.Attribution) {
	t.Helper()
	if len(ports) == 0 || ports[0].Start != 0 || len(attribution) == 0 || attribution[0].Start != 0 {
		t.Fatalf("does not begin at 0: %v, %v", ports, attribution)
	}
	for i := 1; i < len(ports); i++ {
		if ports[i].Start <= ports[i-1].Start || ports[i].Verdict == ports[i-1].Verdict {
			t.Fatalf("range %d does not differ from the one before: %v", i, ports)
		}
	}
	for i := 1; i < len(attribution); i++ {
		if attribution[i].Start <= attribution[i-1].Start {
			t.Fatalf("attribution %d does not ascend: %v", i, attribution)
		}
	}
	for _, r := range ports {
		if merge.Key(uint8(r.Start>>16), uint16(r.Start)) != r.Start {
			t.Fatalf("a range begins where no packet is: %x", r.Start)
		}
	}
}

// Only the peer selectors of a row matter for its cells: this is what classes
// may be made of.
func TestOtherSelectorsDoNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, row, peer := drawPolicy(t), drawRow(t), drawPeer(t)
		x, err := merge.New(p)
		if err != nil {
			t.Fatal(err)
		}
		matched := x.Matches(peer)
		want, _ := x.Judge(row, matched, peer.Entity)
		relevant := x.PeerSelectors(row)
		only := slices.DeleteFunc(slices.Clone(matched), func(s rule.ID) bool { return !slices.Contains(relevant, s) })
		if got, _ := x.Judge(row, only, peer.Entity); !slices.Equal(got, want) {
			t.Fatalf("cell by %v: got %v, want %v", only, got, want)
		}
	})
}

// The order of what New gets changes nothing. A rule written as two, under other
// names, changes who is attributed, and no port map.
func TestS18OrderNamesAndSplittingDoNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, row, peer := drawPolicy(t), drawRow(t), drawPeer(t)
		x, err := merge.New(p)
		if err != nil {
			t.Fatal(err)
		}
		want, wantBy := x.Judge(row, x.Matches(peer), peer.Entity)
		q := merge.Policy{
			Selectors: rapid.Permutation(p.Selectors).Draw(t, "selectors"),
			Rules:     rapid.Permutation(p.Rules).Draw(t, "rules"),
			RuleSets:  rapid.Permutation(p.RuleSets).Draw(t, "rule sets"),
		}
		y, err := merge.New(q)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // asked again it says the same
			got, by := y.Judge(row, y.Matches(peer), peer.Entity)
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Fatalf("permuted: port map (-want +got):\n%s", diff)
			}
			if diff := gocmp.Diff(wantBy, by); diff != "" {
				t.Fatalf("permuted: attribution (-want +got):\n%s", diff)
			}
		}
		z, err := merge.New(merge.Policy{Selectors: p.Selectors, Rules: split(p.Rules), RuleSets: p.RuleSets})
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := z.Judge(row, z.Matches(peer), peer.Entity); !slices.Equal(got, want) {
			t.Fatalf("split: got %v, want %v", got, want)
		}
	})
}

// split writes each port range of each rule as a rule of its own, renamed.
func split(rules []rule.Rule) []rule.Rule {
	var out []rule.Rule
	for _, r := range rules {
		if len(r.Ports) == 0 {
			out = append(out, r)
		}
		for i, ports := range r.Ports {
			one := r
			one.ID = id(fmt.Sprint("split ", r.ID, i))
			one.Ports = []rule.PortRange{ports}
			one.Origin.Name = fmt.Sprint("split ", i, r.Origin.Name)
			out = append(out, one)
		}
	}
	return out
}

// Addresses that the same longest prefix of the list covers are in one class.
func TestPrefixesSayWhereClassesChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPolicy(t)
		x, err := merge.New(p)
		if err != nil {
			t.Fatal(err)
		}
		all := x.Prefixes()
		if !slices.IsSortedFunc(all, netip.Prefix.Compare) {
			t.Fatalf("not sorted: %v", all)
		}
		for _, a := range addresses {
			longest := netip.PrefixFrom(a, 0).Masked()
			for _, p := range all {
				if p.Contains(a) && p.Bits() >= longest.Bits() {
					longest = p
				}
			}
			one := x.Matches(merge.PeerDesc{Entity: rule.World, Prefix: netip.PrefixFrom(a, a.BitLen())})
			whole := x.Matches(merge.PeerDesc{Entity: rule.World, Prefix: longest})
			if !slices.Equal(one, whole) {
				t.Fatalf("%v is matched by %v, its prefix %v by %v", a, one, longest, whole)
			}
		}
	})
}
