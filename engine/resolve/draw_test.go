package resolve_test

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"

	"pgregory.net/rapid"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
)

// A world is all that a state is told, in a small universe: two namespaces, few
// labels, few ports.
type world struct {
	namespaces map[string]map[string]string
	identities []rule.Identity
	policies   []*object.Policy
	services   []rule.Service
}

var (
	worldNamespaces = []string{"a", "b"}
	worldIDs        = []string{"x", "y", "z"}
	worldPortNames  = []string{"http", "dns"}
)

func hashOf(id rule.Identity) rule.IdentityHash {
	return sha256.Sum256(fmt.Appendf(nil, "%+v", id))
}

func drawWorld(t *rapid.T) world {
	w := world{namespaces: map[string]map[string]string{}}
	for _, ns := range worldNamespaces {
		w.namespaces[ns] = drawNamespaceLabels(t, ns)
	}
	w.identities = rapid.SliceOfNDistinct(rapid.Custom(drawIdentity), 1, 6, hashOf).Draw(t, "identities")
	for n := range rapid.IntRange(0, 6).Draw(t, "policies") {
		w.policies = append(w.policies, drawPolicy(t, n))
	}
	if rapid.Bool().Draw(t, "services") {
		w.services = []rule.Service{{Addr: netip.MustParseAddr("10.96.0.1"), Protocol: rule.TCP, Port: 80, Name: "web"}}
	}
	return w
}

func drawNamespaceLabels(t *rapid.T, name string) map[string]string {
	labels := map[string]string{object.NamespaceNameLabel: name}
	if env := rapid.SampledFrom([]string{"", "dev", "prod"}).Draw(t, "env"); env != "" {
		labels["env"] = env
	}
	return labels
}

func drawIdentity(t *rapid.T) rule.Identity {
	id := rule.Identity{
		Cluster:        "weir",
		Namespace:      rapid.SampledFrom(worldNamespaces).Draw(t, "namespace"),
		ServiceAccount: rapid.SampledFrom([]string{"default", "other"}).Draw(t, "account"),
		Labels:         []rule.Label{{Key: "id", Value: rapid.SampledFrom(worldIDs).Draw(t, "id")}},
	}
	if rapid.Bool().Draw(t, "has team") {
		id.Labels = append(id.Labels, rule.Label{Key: "team", Value: rapid.SampledFrom([]string{"p", "q"}).Draw(t, "team")})
	}
	for _, name := range worldPortNames {
		if rapid.IntRange(0, 2).Draw(t, "has port") == 0 {
			id.NamedPorts = append(id.NamedPorts, rule.NamedPort{
				Name:     name,
				Protocol: rapid.SampledFrom([]uint8{rule.TCP, rule.UDP}).Draw(t, "port protocol"),
				Port:     rapid.SampledFrom([]uint16{80, 81}).Draw(t, "port number"),
			})
		}
	}
	return id
}

func drawPolicy(t *rapid.T, n int) *object.Policy {
	semantics := rapid.SampledFrom([]object.Semantics{
		object.SemanticsV1, object.SemanticsV1, object.SemanticsV2, object.SemanticsV2,
		object.SemanticsNetworkPolicy, object.SemanticsCluster,
	}).Draw(t, "semantics")
	namespace := rapid.SampledFrom(worldNamespaces).Draw(t, "policy namespace")
	if semantics == object.SemanticsCluster {
		namespace = ""
	}
	p := drawPart(t, n, semantics, namespace)
	for range rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(t, "more specs") {
		p.Also = append(p.Also, drawPart(t, n, semantics, namespace))
	}
	return p
}

func drawPart(t *rapid.T, n int, semantics object.Semantics, namespace string) *object.Policy {
	p := &object.Policy{
		Origin:    rule.Origin{Kind: "Policy", Namespace: namespace, Name: fmt.Sprint("p", n), File: "f.yaml", Line: 10 * n},
		Semantics: semantics,
		Lines:     map[string]int{"spec.rule[0]": 10*n + 1},
	}
	p.Subject = drawSelector(t, namespace)
	if semantics != object.SemanticsCluster {
		p.IsolatesIngress = rapid.IntRange(0, 3).Draw(t, "ingress") > 0
		p.IsolatesEgress = rapid.IntRange(0, 3).Draw(t, "egress") > 0
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "rules") {
		p.Rules = append(p.Rules, drawRule(t, p, fmt.Sprintf("spec.rule[%d]", i)))
	}
	return p
}

// drawSelector is limited to a namespace, unless that is empty.
func drawSelector(t *rapid.T, namespace string) object.Selector {
	s := object.Selector{Namespaces: []string{namespace}}
	if namespace == "" {
		s = object.Selector{AnyNamespace: true}
		if rapid.Bool().Draw(t, "by namespace") {
			s.NamespaceLabels = append(s.NamespaceLabels, drawRequirement(t, "env", []string{"dev", "prod"}))
		}
	}
	if rapid.IntRange(0, 3).Draw(t, "by id") > 0 {
		s.Labels = append(s.Labels, drawRequirement(t, "id", worldIDs))
	}
	if rapid.IntRange(0, 3).Draw(t, "by team") == 0 {
		s.Labels = append(s.Labels, drawRequirement(t, "team", []string{"p", "q"}))
	}
	return s
}

func drawRequirement(t *rapid.T, key string, values []string) object.Requirement {
	r := object.Requirement{Key: key, Operator: rapid.SampledFrom([]object.Operator{
		object.In, object.In, object.In, object.NotIn, object.Exists, object.DoesNotExist,
	}).Draw(t, "operator")}
	if r.Operator == object.In || r.Operator == object.NotIn {
		r.Values = rapid.SliceOfNDistinct(rapid.SampledFrom(values), 1, 2, rapid.ID[string]).Draw(t, "values")
		slices.Sort(r.Values)
	}
	return r
}

func drawRule(t *rapid.T, p *object.Policy, path string) object.PolicyRule {
	r := object.PolicyRule{
		Path:      path,
		Direction: rapid.SampledFrom([]rule.Direction{rule.Ingress, rule.Egress}).Draw(t, "direction"),
		Action:    rule.Allow,
		Tier:      rule.Normal,
		AnyPort:   rapid.IntRange(0, 2).Draw(t, "any port") == 0,
	}
	switch p.Semantics {
	case object.SemanticsCluster:
		r.Tier = rapid.SampledFrom([]rule.Tier{rule.Admin, rule.Baseline}).Draw(t, "tier")
		r.Priority = rapid.Uint32Range(0, 2).Draw(t, "priority")
		actions := []rule.Action{rule.Allow, rule.Deny, rule.Pass}
		if r.Tier == rule.Baseline {
			actions = actions[:2]
		}
		r.Action = rapid.SampledFrom(actions).Draw(t, "action")
	case object.SemanticsV2:
		r.Action = rapid.SampledFrom([]rule.Action{rule.Allow, rule.Allow, rule.Deny}).Draw(t, "action")
	case object.SemanticsV1:
		if rapid.IntRange(0, 3).Draw(t, "requires") == 0 {
			r.Requires = append(r.Requires, drawSelector(t, p.Origin.Namespace))
		}
	}
	drawPeers(t, p, &r)
	if !r.AnyPort {
		for i := range rapid.IntRange(0, 2).Draw(t, "port lists") {
			r.Ports = append(r.Ports, drawPortRule(t, p, &r, fmt.Sprintf("%s.toPorts[%d]", path, i)))
		}
	}
	return r
}

func drawPeers(t *rapid.T, p *object.Policy, r *object.PolicyRule) {
	if p.Semantics == object.SemanticsCluster {
		s := drawSelector(t, "")
		r.Peers = []object.Peer{{Labels: &s, Path: r.Path + ".peer"}}
		return
	}
	if r.AnyPeer = rapid.IntRange(0, 3).Draw(t, "any peer") == 0; r.AnyPeer {
		return
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "peers") {
		peer := object.Peer{Path: fmt.Sprintf("%s.peers[%d]", r.Path, i)}
		switch rapid.IntRange(0, 3).Draw(t, "kind of peer") {
		case 0, 1:
			s := drawSelector(t, rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "peer namespace"))
			peer.Labels = &s
		case 2:
			peer.Prefix = &rule.PrefixSet{Prefix: netip.MustParsePrefix("10.0.0.0/8")}
			if rapid.Bool().Draw(t, "except") {
				peer.Prefix.Except = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
			}
			peer.PrefixesMatchPods = p.Semantics == object.SemanticsNetworkPolicy
			peer.PrefixesMatchNodes = peer.PrefixesMatchPods
		default:
			peer.Entities = rapid.SliceOfNDistinct(rapid.SampledFrom([]rule.Entity{
				rule.World, rule.Host, rule.RemoteNode, rule.Endpoints,
			}), 1, 3, rapid.ID[rule.Entity]).Draw(t, "entities")
		}
		r.Peers = append(r.Peers, peer)
	}
}

func drawPortRule(t *rapid.T, p *object.Policy, r *object.PolicyRule, path string) object.PortRule {
	out := object.PortRule{Path: path}
	cilium := p.Semantics == object.SemanticsV1 || p.Semantics == object.SemanticsV2
	if cilium && r.Action == rule.Allow && rapid.Bool().Draw(t, "http") {
		for range rapid.IntRange(1, 2).Draw(t, "http rules") {
			method := rapid.SampledFrom([]string{"GET", "PUT"}).Draw(t, "method")
			out.HTTP = append(out.HTTP, rule.HTTPRule{Method: &method})
		}
	}
	byName := p.Semantics != object.SemanticsV1 || r.Direction == rule.Ingress
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		if byName && rapid.IntRange(0, 2).Draw(t, "named") == 0 {
			port := object.Port{Name: rapid.SampledFrom(worldPortNames).Draw(t, "port name"), Protocol: rule.TCP}
			if out.HTTP == nil && rapid.Bool().Draw(t, "any protocol") {
				port.Protocol = 0
			}
			out.Ports = append(out.Ports, port)
			continue
		}
		port := rule.PortRange{Protocol: rule.TCP, Lo: rapid.SampledFrom([]uint16{80, 81}).Draw(t, "port")}
		port.Hi = port.Lo + rapid.Uint16Range(0, 1).Draw(t, "more ports")
		if out.HTTP == nil && rapid.Bool().Draw(t, "udp") {
			port.Protocol = rule.UDP
		}
		out.Ports = append(out.Ports, object.Port{Range: port})
	}
	return out
}
