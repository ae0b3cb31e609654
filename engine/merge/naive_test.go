package merge_test

import (
	"cmp"
	"net/netip"
	"slices"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/rule"
)

// packet is what a verdict is about.
type packet struct {
	protocol uint8
	port     uint16
}

// naive judges one packet by all rules, without any index: what a cell must say.
func naive(p merge.Policy, row merge.RowKey, peer merge.PeerDesc, pkt packet) (merge.PortVerdict, rule.ID) {
	if peer.Entity < rule.World || peer.Entity > rule.Endpoints {
		return merge.PortVerdict{}, rule.ID{}
	}
	var admin, normal, baseline []rule.Rule
	isolated := false
	for _, r := range p.Rules {
		if r.Direction != row.Direction || !slices.Contains(row.Subjects, r.Subject) {
			continue
		}
		if r.Action == rule.Isolate {
			isolated = true
			continue
		}
		if !naiveSelects(p, r.Peer, peer) || !naivePorts(r.Ports, pkt) {
			continue
		}
		switch r.Tier {
		case rule.Admin:
			admin = append(admin, r)
		case rule.Normal:
			normal = append(normal, r)
		case rule.Baseline:
			baseline = append(baseline, r)
		}
	}
	if v, by, pass := naiveTier(p, admin); by != (rule.ID{}) && !pass {
		return v, by
	}
	v, by, _ := naiveTier(p, normal)
	low, lowBy, _ := naiveTier(p, baseline)
	host := row.Direction == rule.Ingress && peer.Entity == rule.Host
	allow := merge.PortVerdict{Kind: merge.Allow}
	switch {
	case by != (rule.ID{}) && v.Kind != merge.HTTP:
		return v, by
	case host && by == rule.ID{} && lowBy != rule.ID{} && low.Kind == merge.Deny:
		return low, lowBy
	case host:
		return allow, rule.ID{}
	case by != rule.ID{} && isolated:
		return v, by
	case isolated:
		return merge.PortVerdict{}, rule.ID{}
	case by != rule.ID{} && lowBy != rule.ID{} && low.Kind != merge.Allow:
		return v, by
	case lowBy != rule.ID{}:
		return low, lowBy
	}
	return allow, rule.ID{}
}

// naiveTier is what the rules of one tier that match say: those of the least
// priority; deny before pass before allow before HTTP.
func naiveTier(p merge.Policy, rules []rule.Rule) (v merge.PortVerdict, by rule.ID, pass bool) {
	if len(rules) == 0 {
		return v, by, false
	}
	first := slices.MinFunc(rules, func(a, b rule.Rule) int { return cmp.Compare(a.Priority, b.Priority) }).Priority
	least := func(keep func(rule.Rule) bool) (rule.Rule, bool) {
		var kept []rule.Rule
		for _, r := range rules {
			if r.Priority == first && keep(r) {
				kept = append(kept, r)
			}
		}
		if len(kept) == 0 {
			return rule.Rule{}, false
		}
		return slices.MinFunc(kept, func(a, b rule.Rule) int {
			return cmp.Or(rule.CompareOrigin(a.Origin, b.Origin), a.ID.Compare(b.ID))
		}), true
	}
	if r, ok := least(func(r rule.Rule) bool { return r.Action == rule.Deny }); ok {
		return merge.PortVerdict{}, r.ID, false
	}
	if r, ok := least(func(r rule.Rule) bool { return r.Action == rule.Pass }); ok {
		return merge.PortVerdict{}, r.ID, true
	}
	if r, ok := least(func(r rule.Rule) bool { return r.RuleSet == rule.ID{} }); ok {
		return merge.PortVerdict{Kind: merge.Allow}, r.ID, false
	}
	r, _ := least(func(rule.Rule) bool { return true })
	var http []rule.HTTPRule
	for _, r := range rules {
		for _, s := range p.RuleSets {
			if r.Priority == first && r.RuleSet == s.ID {
				http = append(http, s.Rules...)
			}
		}
	}
	return merge.PortVerdict{Kind: merge.HTTP, RuleSet: rule.NewRuleSet(http).ID}, r.ID, false
}

func naiveSelects(p merge.Policy, id rule.ID, peer merge.PeerDesc) bool {
	for _, s := range p.Selectors {
		if s.ID == id {
			return naiveMatches(s, peer)
		}
	}
	return false
}

func naiveMatches(s rule.Selector, peer merge.PeerDesc) bool {
	if slices.Contains(s.Entities, peer.Entity) {
		return true
	}
	identity := peer.Identity != 0 && slices.Contains(s.Identities, peer.Identity)
	if identity && !s.Within {
		return true
	}
	if peer.Entity == rule.World && slices.ContainsFunc(s.Names, func(n string) bool { return slices.Contains(peer.Names, n) }) {
		return true
	}
	switch {
	case s.Within && !identity:
		return false
	case peer.Entity == rule.Endpoints && !s.PrefixesMatchPods:
		return false
	case (peer.Entity == rule.Host || peer.Entity == rule.RemoteNode) && !s.PrefixesMatchNodes:
		return false
	}
	covers := func(p netip.Prefix) bool { return p.Contains(peer.Prefix.Addr()) }
	return slices.ContainsFunc(s.Prefixes, func(set rule.PrefixSet) bool {
		return covers(set.Prefix) && !slices.ContainsFunc(set.Except, covers)
	})
}

func naivePorts(ports []rule.PortRange, pkt packet) bool {
	return slices.ContainsFunc(ports, func(r rule.PortRange) bool {
		if r.Any {
			return true
		}
		port := pkt.port
		switch r.Protocol {
		case rule.TCP, rule.UDP, rule.SCTP, rule.ICMP, rule.ICMPv6:
		default:
			port = 0
		}
		return r.Protocol == pkt.protocol && r.Lo <= port && port <= r.Hi
	})
}
