// Package spec is the naive specification of what policies mean: one flow, all
// objects, no index, no merging, as obvious as can be. The engine's fast way
// (resolve, merge) is tested against it. It shares nothing with that way but
// the decoded objects (package object) and the values of package rule, and may
// import nothing else of Weir.
package spec

import (
	"net/netip"
	"slices"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
)

// Cluster is all that a verdict depends on, but for the flow.
type Cluster struct {
	// Namespaces' labels, by name.
	Namespaces map[string]map[string]string
	Policies   []*object.Policy
}

// Side is one end of a flow, as the other end sees it.
type Side struct {
	// Identity of a pod; nil: not a pod.
	Identity *rule.Identity
	// Entity of what is not a pod: World, Host (the node of the other end),
	// RemoteNode. Any other value is nobody that a policy could allow.
	Entity rule.Entity
	Addr   netip.Addr
}

// Flow is the first packet of one.
type Flow struct {
	From, To Side
	Protocol uint8
	Port     uint16 // destination port; ICMP type for ICMP
}

// Kind of a verdict. The zero Kind denies.
type Kind uint8

// Kinds of verdicts.
const (
	Deny Kind = iota
	Allow
	HTTP      // requests are judged by HTTPRules
	NotJudged // no pod on this side
)

func (k Kind) String() string {
	switch k {
	case Deny:
		return "deny"
	case Allow:
		return "allow"
	case HTTP:
		return "l7"
	case NotJudged:
		return "none"
	}
	return "unknown"
}

// Verdict of one side.
type Verdict struct {
	Kind  Kind
	Rules []rule.HTTPRule // for HTTP: one must match
}

// Egress judges the flow at the pod that it comes from.
func (c *Cluster) Egress(f Flow) Verdict {
	if f.From.Identity == nil {
		return Verdict{Kind: NotJudged}
	}
	return c.judge(rule.Egress, f, f.From, f.To)
}

// Ingress judges the flow at the pod that it goes to.
func (c *Cluster) Ingress(f Flow) Verdict {
	if f.To.Identity == nil {
		return Verdict{Kind: NotJudged}
	}
	return c.judge(rule.Ingress, f, f.To, f.From)
}

// judge asks the tiers in their order. The first that decides decides. Of a peer
// that is nobody known everything is denied, also where nothing else is.
func (c *Cluster) judge(dir rule.Direction, f Flow, subject, peer Side) Verdict {
	if peer.Identity == nil && !slices.Contains([]rule.Entity{rule.World, rule.Host, rule.RemoteNode}, peer.Entity) {
		return Verdict{Kind: Deny}
	}
	parts := c.governing(subject)
	switch c.tier(rule.Admin, parts, dir, f, peer) {
	case rule.Deny:
		return Verdict{Kind: Deny}
	case rule.Allow:
		return Verdict{Kind: Allow}
	}
	v, decided := c.normal(parts, dir, f, peer)
	if decided {
		return v
	}
	if c.tier(rule.Baseline, parts, dir, f, peer) == rule.Deny {
		return v
	}
	return Verdict{Kind: Allow}
}

// governing are the policies that select the subject.
func (c *Cluster) governing(subject Side) []*object.Policy {
	var out []*object.Policy
	for _, p := range c.Policies {
		for _, part := range p.Parts() {
			if c.selects(part.Subject, subject) {
				out = append(out, part)
			}
		}
	}
	return out
}

// tier of Admin or Baseline: of the rules that match, those of the lowest
// priority decide; among them deny wins over pass, and pass over allow. Zero:
// nothing matches, or pass.
func (c *Cluster) tier(tier rule.Tier, parts []*object.Policy, dir rule.Direction, f Flow, peer Side) rule.Action {
	var matching []object.PolicyRule
	for _, p := range parts {
		for _, r := range p.Rules {
			if r.Tier == tier && r.Direction == dir && c.matchesPeer(r, peer) && len(matchingPorts(r, f)) > 0 {
				matching = append(matching, r)
			}
		}
	}
	if len(matching) == 0 {
		return 0
	}
	first := slices.MinFunc(matching, func(a, b object.PolicyRule) int { return int(a.Priority) - int(b.Priority) }).Priority
	has := func(a rule.Action) bool {
		return slices.ContainsFunc(matching, func(r object.PolicyRule) bool { return r.Priority == first && r.Action == a })
	}
	switch {
	case has(rule.Deny):
		return rule.Deny
	case has(rule.Pass):
		return 0
	case has(rule.Allow):
		return rule.Allow
	}
	return rule.Deny
}

// normal judges by the policies without tiers. A deny wins over everything; an
// allow without HTTP rules opens whatever HTTP rules others have; the local
// node may reach its pods unless it is denied. decided is false if no policy
// isolates the subject and nothing opens the flow: then v is what HTTP rules let
// pass, whatever the baseline says, and denies all else.
func (c *Cluster) normal(parts []*object.Policy, dir rule.Direction, f Flow, peer Side) (v Verdict, decided bool) {
	isolated, open := false, false
	var http []rule.HTTPRule
	var v1 []object.PolicyRule
	for _, p := range parts {
		if dir == rule.Ingress && p.IsolatesIngress || dir == rule.Egress && p.IsolatesEgress {
			isolated = true
		}
		for _, r := range p.Rules {
			switch {
			case r.Tier != rule.Normal || r.Direction != dir:
				continue
			case p.Semantics == object.SemanticsV1:
				v1 = append(v1, r)
				continue
			case !c.matchesPeer(r, peer):
				continue
			}
			for _, pr := range matchingPorts(r, f) {
				switch {
				case r.Action != rule.Allow:
					return Verdict{Kind: Deny}, true
				case len(pr.HTTP) == 0:
					open = true
				default:
					http = append(http, pr.HTTP...)
				}
			}
		}
	}
	if allowed, rules := c.fold(v1, f, peer); allowed {
		open = open || len(rules) == 0
		http = append(http, rules...)
	}
	if dir == rule.Ingress && peer.Identity == nil && peer.Entity == rule.Host {
		open = true
	}
	switch {
	case open:
		return Verdict{Kind: Allow}, true
	case len(http) > 0:
		return Verdict{Kind: HTTP, Rules: http}, isolated
	}
	return Verdict{Kind: Deny}, isolated
}

// fold judges by all rules of cilium.io/v1 that govern a subject in a direction:
// who, on which ports, and with which requests are asked one by one, and all
// must agree. An allow with rules allows those requests only.
func (c *Cluster) fold(rules []object.PolicyRule, f Flow, peer Side) (allowed bool, http []rule.HTTPRule) {
	source, ports, namesPorts := false, false, false
	for _, r := range rules {
		for _, p := range r.Peers {
			source = source || c.isPeer(p, peer)
		}
		for _, sel := range r.Requires {
			if !c.selects(sel, peer) {
				return false, nil
			}
		}
		if r.AnyPort {
			continue
		}
		namesPorts = true
		for _, pr := range matchingPorts(r, f) {
			ports = true
			http = append(http, pr.HTTP...)
		}
	}
	return source && (ports || !namesPorts), http
}

func (c *Cluster) matchesPeer(r object.PolicyRule, peer Side) bool {
	if r.AnyPeer {
		return true
	}
	return slices.ContainsFunc(r.Peers, func(p object.Peer) bool { return c.isPeer(p, peer) })
}

func (c *Cluster) isPeer(p object.Peer, side Side) bool {
	switch {
	case p.Labels != nil:
		return c.selects(*p.Labels, side)
	case p.Prefix != nil:
		return inPrefix(p, side)
	case side.Identity != nil:
		return slices.Contains(p.Entities, rule.Endpoints)
	}
	return slices.Contains(p.Entities, side.Entity)
}

func inPrefix(p object.Peer, side Side) bool {
	switch {
	case side.Identity != nil && !p.PrefixesMatchPods:
		return false
	case side.Identity == nil && side.Entity != rule.World && !p.PrefixesMatchNodes:
		return false
	case !p.Prefix.Prefix.Contains(side.Addr):
		return false
	}
	return !slices.ContainsFunc(p.Prefix.Except, func(e netip.Prefix) bool { return e.Contains(side.Addr) })
}

// selects tells whether a selector of pods selects this side.
func (c *Cluster) selects(s object.Selector, side Side) bool {
	if side.Identity == nil {
		return false
	}
	if !s.AnyNamespace && !slices.Contains(s.Namespaces, side.Identity.Namespace) {
		return false
	}
	return holds(s.NamespaceLabels, c.Namespaces[side.Identity.Namespace]) &&
		holds(s.Labels, object.SelectorLabels(*side.Identity))
}

func holds(reqs []object.Requirement, labels map[string]string) bool {
	for _, r := range reqs {
		v, has := labels[r.Key]
		met := false
		switch r.Operator {
		case object.In:
			met = has && slices.Contains(r.Values, v)
		case object.NotIn:
			met = !has || !slices.Contains(r.Values, v)
		case object.Exists:
			met = has
		case object.DoesNotExist:
			met = !has
		}
		if !met {
			return false
		}
	}
	return true
}

// matchingPorts are the entries of a rule's ports that the flow matches.
func matchingPorts(r object.PolicyRule, f Flow) []object.PortRule {
	if r.AnyPort {
		return []object.PortRule{{AnyPort: true}}
	}
	var out []object.PortRule
	for _, pr := range r.Ports {
		if pr.AnyPort || slices.ContainsFunc(pr.Ports, func(p object.Port) bool { return isPort(p, f) }) {
			out = append(out, pr)
		}
	}
	return out
}

// isPort tells whether the flow goes to the port. A port's name is that of the
// pod that the flow goes to, in whatever direction it is judged.
func isPort(p object.Port, f Flow) bool {
	if p.Name == "" {
		return p.Range.Any || p.Range.Protocol == f.Protocol && p.Range.Lo <= f.Port && f.Port <= p.Range.Hi
	}
	if f.To.Identity == nil || p.Protocol != 0 && p.Protocol != f.Protocol {
		return false
	}
	return slices.Contains(f.To.Identity.NamedPorts, rule.NamedPort{Name: p.Name, Protocol: f.Protocol, Port: f.Port})
}
