package object

import (
	"net/netip"
	"slices"
	"strings"

	"weir.dev/weir/engine/rule"
)

// How much one policy may say.
const (
	maxSpecs = 100
	maxRules = 1000  // in each of ingress, egress, ingressDeny, egressDeny
	maxPeers = 10000 // in one list
	maxPorts = 40    // in one list of ports
	maxHTTP  = 1000  // rules in one http list
	maxText  = 4096  // bytes of one regular expression
)

// ciliumPolicy decodes a CiliumNetworkPolicy, or a CiliumClusterwideNetworkPolicy,
// which differs in that neither its subject nor its peers are limited to a
// namespace.
//
// What cilium.io/v2 means by lists that are empty or absent: no list of peers
// means everybody, an empty one nobody; no toPorts or an empty one every
// packet, but an entry of toPorts without ports nothing; a rule that has
// neither peers nor ports allows and denies nothing, and isolates.
func ciliumPolicy(origin rule.Origin, sem Semantics, root field) *Policy {
	c := &ciliumDecoder{sem: sem, origin: origin}
	known := []string{"apiVersion", "kind", "metadata", "spec", "specs", "status"}
	if sem == SemanticsV1 {
		known = append(known, "description")
	}
	m := root.members(known, nil)
	m["metadata"].metadata()
	m["description"].str()
	var parts []*Policy
	if m["spec"].present() {
		parts = append(parts, c.spec(m["spec"]))
	}
	for _, s := range m["specs"].list(maxSpecs) {
		parts = append(parts, c.spec(s))
	}
	if len(parts) == 0 {
		root.r.add("spec", false, "is required: write spec or specs")
		return nil
	}
	parts[0].Also = parts[1:]
	if len(parts) == 1 {
		parts[0].Also = nil
	}
	return parts[0]
}

type ciliumDecoder struct {
	sem    Semantics
	origin rule.Origin
}

// metadata is what the API server knows of every object.
func (f field) metadata() {
	m := f.members([]string{"name", "namespace", "labels", "annotations", "uid", "resourceVersion", "generation",
		"creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences", "finalizers",
		"managedFields", "generateName", "selfLink"}, nil)
	m["labels"].stringMap()
	m["annotations"].stringMap()
}

var specFields = map[Semantics][]string{
	SemanticsV1: {"endpointSelector", "ingress", "egress", "description", "labels"},
	SemanticsV2: {"endpointSelector", "nodeSelector", "ingress", "egress", "ingressDeny", "egressDeny",
		"enableDefaultDeny", "description", "labels"},
}

func (c *ciliumDecoder) spec(f field) *Policy {
	p := &Policy{Origin: c.origin, Semantics: c.sem}
	m := f.members(specFields[c.sem], map[string]string{
		"log": "values for flow logs are not supported: remove the field",
	})
	m["description"].str()
	if m["nodeSelector"].present() {
		if c.origin.Kind == KindCiliumNetworkPolicy {
			m["nodeSelector"].fail("a CiliumNetworkPolicy selects pods, not nodes: use endpointSelector")
		} else {
			m["nodeSelector"].unsupported("policies of nodes are not supported: use endpointSelector")
		}
	}
	p.Subject = c.subject(f, m["endpointSelector"])
	dd := m["enableDefaultDeny"].members([]string{"ingress", "egress"}, nil)
	ingress, ingressDeny := m["ingress"].list(maxRules), m["ingressDeny"].list(maxRules)
	egress, egressDeny := m["egress"].list(maxRules), m["egressDeny"].list(maxRules)
	p.IsolatesIngress = isolates(dd["ingress"].boolean(), ingress, ingressDeny)
	p.IsolatesEgress = isolates(dd["egress"].boolean(), egress, egressDeny)
	for _, l := range []struct {
		rules  []field
		dir    rule.Direction
		action rule.Action
	}{
		{ingress, rule.Ingress, rule.Allow}, {ingressDeny, rule.Ingress, rule.Deny},
		{egress, rule.Egress, rule.Allow}, {egressDeny, rule.Egress, rule.Deny},
	} {
		for _, e := range l.rules {
			if rl, ok := c.rule(e, l.dir, l.action); ok {
				p.Rules = append(p.Rules, rl)
			}
		}
	}
	if len(ingress)+len(ingressDeny)+len(egress)+len(egressDeny) == 0 {
		f.fail("has no rule: write at least one entry of ingress, ingressDeny, egress or egressDeny; [{}] allows nothing")
	}
	return p
}

// subject limits the selector to the policy's own namespace, also if it names
// another, as Cilium does.
func (c *ciliumDecoder) subject(spec, f field) Selector {
	if !f.present() {
		spec.fail("endpointSelector is required: {} selects every pod of the namespace")
		return Selector{}
	}
	conds := f.conditions()
	if c.sem == SemanticsV1 && len(conds) == 0 {
		f.fail("is empty: cilium.io/v1 wants labels here")
	}
	sel := c.ownNamespace()
	for _, cd := range conds {
		switch source, k := splitSource(cd.Key); {
		case source == "reserved":
			cd.at.unsupported("reserved labels are not supported for subjects: select pods by their labels")
		case source != "":
			cd.at.unsupported("label source %q is not supported: write the label's key alone", source)
		case k == labelNamespace && !sel.AnyNamespace && cd.Operator == In && len(cd.Values) == 1 && strings.Contains(cd.at.path, "matchLabels"):
			// Overwritten by the policy's own namespace.
			if cd.Values[0] != c.origin.Namespace {
				cd.at.warn("is overwritten: the policy selects pods of its own namespace %s only", c.origin.Namespace)
			}
		case k == labelNamespace:
			cd.Key = NamespaceNameLabel
			sel.NamespaceLabels = append(sel.NamespaceLabels, cd.Requirement)
		case strings.HasPrefix(k, labelNamespaceLabels):
			cd.Key = strings.TrimPrefix(k, labelNamespaceLabels)
			cd.checkNamespaceLabel()
			sel.NamespaceLabels = append(sel.NamespaceLabels, cd.Requirement)
		default:
			cd.Key = k
			cd.check(subjectOf)
			sel.Labels = append(sel.Labels, cd.Requirement)
		}
	}
	return sel.finish()
}

// ownNamespace is where a selector that names no namespace looks.
func (c *ciliumDecoder) ownNamespace() Selector {
	if c.origin.Namespace == "" {
		return Selector{AnyNamespace: true}
	}
	return Selector{Namespaces: []string{c.origin.Namespace}}
}

// splitSource takes the source off a label's key. "any" and "k8s" are what pods'
// labels have, and none.
func splitSource(key string) (source, rest string) {
	source, rest, ok := strings.Cut(key, ":")
	if !ok {
		return "", key
	}
	if source == "any" || source == "k8s" {
		return "", rest
	}
	return source, rest
}

var ruleFields = map[Semantics]map[rule.Direction][]string{
	SemanticsV1: {
		rule.Ingress: {"fromEndpoints", "fromRequires", "fromCIDR", "toPorts"},
		rule.Egress:  {"toPorts"},
	},
	SemanticsV2: {
		rule.Ingress: {"fromEndpoints", "fromEntities", "fromCIDR", "fromCIDRSet", "toPorts", "icmps"},
		rule.Egress:  {"toEndpoints", "toEntities", "toCIDR", "toCIDRSet", "toPorts", "icmps"},
	},
}

var refusedRuleFields = map[Semantics]map[rule.Direction]map[string]string{
	SemanticsV1: {
		rule.Ingress: {
			"fromEntities": "cilium.io/v1 has no entities here: use cilium.io/v2",
			"fromCIDRSet":  "cilium.io/v1 has no CIDR sets here: use fromCIDR or cilium.io/v2",
		},
		rule.Egress: {
			"toCIDR":      "egress of cilium.io/v1 has ports, no peers here: use cilium.io/v2",
			"toEndpoints": "egress of cilium.io/v1 has ports, no peers: use cilium.io/v2",
			"toEntities":  "egress of cilium.io/v1 has ports, no peers: use cilium.io/v2",
		},
	},
	SemanticsV2: {
		rule.Ingress: {
			"fromNodes":      "peers by labels of nodes are not supported: use the entities host and remote-node",
			"fromGroups":     "groups of cloud providers are not supported: write their CIDRs",
			"fromRequires":   "is gone from cilium.io/v2: put the condition into each entry of fromEndpoints",
			"authentication": "mutual authentication is not supported: remove the field",
		},
		rule.Egress: {
			"toNodes":        "peers by labels of nodes are not supported: use the entities host and remote-node",
			"toGroups":       "groups of cloud providers are not supported: write their CIDRs",
			"toServices":     "peers by Service are not supported yet: select the Service's pods by labels with toEndpoints",
			"toFQDNs":        "DNS names are not supported yet: write the addresses with toCIDR",
			"toRequires":     "is gone from cilium.io/v2: put the condition into each entry of toEndpoints",
			"authentication": "mutual authentication is not supported: remove the field",
		},
	},
}

// rule decodes one entry of a list of rules. ok is false if it allows or denies
// nothing, or is refused.
func (c *ciliumDecoder) rule(f field, dir rule.Direction, action rule.Action) (PolicyRule, bool) {
	out := PolicyRule{Direction: dir, Action: action, Tier: rule.Normal, Path: f.path, AnyPeer: true, AnyPort: true}
	m := f.members(ruleFields[c.sem][dir], refusedRuleFields[c.sem][dir])
	side := "from"
	if dir == rule.Egress {
		side = "to"
	}
	as := allows
	if action == rule.Deny {
		as = denies
	}
	var used string
	for _, l := range []struct {
		name string
		peer func(field, role) []Peer
	}{
		{"Endpoints", c.endpoints}, {"Entities", c.entity}, {"CIDR", c.cidr}, {"CIDRSet", c.cidrSet},
	} {
		list := m[side+l.name]
		if !list.present() {
			continue
		}
		out.AnyPeer = false
		entries := list.list(maxPeers)
		if len(entries) > 0 {
			// v1 judged them side by side.
			if used != "" && c.sem != SemanticsV1 {
				list.fail("cannot be together with %s in one rule: make two rules of it", used)
			}
			used = side + l.name
		}
		for _, e := range entries {
			out.Peers = append(out.Peers, l.peer(e, as)...)
		}
	}
	for _, e := range m["fromRequires"].list(maxPeers) {
		for _, p := range c.endpoints(e, allows) {
			if p.Labels == nil {
				e.unsupported("reserved labels are not supported here: use cilium.io/v2 with fromEntities")
				continue
			}
			out.Requires = append(out.Requires, *p.Labels)
		}
	}
	c.portRules(&out, m["toPorts"], m["icmps"])
	switch {
	case out.AnyPeer && out.AnyPort && len(out.Requires) == 0:
		f.warn("has neither peers nor ports: it %s nothing, and closes what no other rule opens", verb(action))
		return PolicyRule{}, false
	case !out.AnyPeer && len(out.Peers) == 0:
		f.warn("its list of peers is empty: it %s nobody; leave the list out to mean everybody", verb(action))
	}
	if c.sem == SemanticsV1 && dir == rule.Egress {
		out.AnyPeer, out.Peers = false, []Peer{{Entities: everything(), Path: f.path}}
	}
	return out, true
}

func verb(a rule.Action) string {
	if a == rule.Deny {
		return "denies"
	}
	return "allows"
}

// endpoints decodes a selector of peers. It is limited to the policy's own
// namespace unless it speaks of namespaces itself.
func (c *ciliumDecoder) endpoints(f field, as role) []Peer {
	conds := f.conditions()
	if len(conds) == 1 {
		if source, name := splitSource(conds[0].Key); source == "reserved" {
			return c.reserved(f, conds[0], name)
		}
	}
	sel := Selector{}
	var inNamespaces []condition
	named := false
	for _, cd := range conds {
		source, k := splitSource(cd.Key)
		cd.Key = k
		switch {
		case source == "reserved":
			cd.at.unsupported("reserved labels are not supported beside others: use entities")
		case source != "":
			cd.at.unsupported("label source %q is not supported: write the label's key alone", source)
		case k == labelNamespace:
			inNamespaces = append(inNamespaces, cd)
		case strings.HasPrefix(k, labelNamespaceLabels):
			named = true
			cd.Key = strings.TrimPrefix(k, labelNamespaceLabels)
			cd.checkNamespaceLabel()
			sel.NamespaceLabels = append(sel.NamespaceLabels, cd.Requirement)
		default:
			cd.check(as)
			sel.Labels = append(sel.Labels, cd.Requirement)
		}
	}
	switch {
	case len(inNamespaces) == 1 && inNamespaces[0].Operator == In:
		sel.Namespaces = slices.Clone(inNamespaces[0].Values)
	case len(inNamespaces) > 0 || named:
		sel.AnyNamespace = true
		for _, cd := range inNamespaces {
			cd.Key = NamespaceNameLabel
			sel.NamespaceLabels = append(sel.NamespaceLabels, cd.Requirement)
		}
	default:
		own := c.ownNamespace()
		sel.Namespaces, sel.AnyNamespace = own.Namespaces, own.AnyNamespace
	}
	sel = sel.finish()
	return []Peer{{Labels: &sel, Path: f.path}}
}

// reserved decodes a selector that has one condition, on a reserved label: an
// entity, or everybody else, whatever the namespace.
func (c *ciliumDecoder) reserved(f field, cd condition, name string) []Peer {
	one, ok := map[string]rule.Entity{"host": rule.Host, "remote-node": rule.RemoteNode, "world": rule.World}[name]
	if !ok {
		cd.at.unsupported("reserved label %q is not supported: it may be host, remote-node or world", name)
		return nil
	}
	entities := []rule.Entity{one}
	switch {
	case cd.Operator == DoesNotExist:
		entities = slices.DeleteFunc(everything(), func(e rule.Entity) bool { return e == one })
	case cd.Operator == Exists, cd.Operator == In && slices.Equal(cd.Values, []string{""}):
	default:
		cd.at.unsupported("reserved labels have no values here: use Exists or DoesNotExist")
		return nil
	}
	return []Peer{{Entities: entities, Path: f.path}}
}

var entities = map[string][]rule.Entity{
	"all":         everything(),
	"cluster":     {rule.Host, rule.RemoteNode, rule.Endpoints},
	"world":       {rule.World},
	"host":        {rule.Host},
	"remote-node": {rule.RemoteNode},
}

// worldOf are the entities that are the whole of one address family outside.
var worldOf = map[string]netip.Prefix{
	"world-ipv4": netip.PrefixFrom(netip.IPv4Unspecified(), 0),
	"world-ipv6": netip.PrefixFrom(netip.IPv6Unspecified(), 0),
}

func (c *ciliumDecoder) entity(f field, _ role) []Peer {
	name := f.str()
	if p, ok := worldOf[name]; ok {
		return []Peer{{Prefix: &rule.PrefixSet{Prefix: p}, Path: f.path}}
	}
	switch list, ok := entities[name]; {
	case ok:
		return []Peer{{Entities: slices.Clone(list), Path: f.path}}
	case name == "none":
		return nil
	case slices.Contains([]string{"init", "health", "unmanaged", "ingress", "kube-apiserver", "cluster-mesh"}, name):
		f.unsupported("entity %s is not supported: it may be all, cluster, world, world-ipv4, world-ipv6, host, remote-node or none", name)
	default:
		f.fail("entity %q is unknown: it may be all, cluster, world, world-ipv4, world-ipv6, host, remote-node or none", name)
	}
	return nil
}

// cidr decodes a CIDR or a single address. CIDRs of cilium.io never match pods
// or nodes.
func (c *ciliumDecoder) cidr(f field, _ role) []Peer {
	text := f.str()
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" && !a.Is4In6() {
		return []Peer{{Prefix: &rule.PrefixSet{Prefix: netip.PrefixFrom(a, a.BitLen())}, Path: f.path}}
	}
	p, ok := prefix(f, text)
	if !ok {
		return nil
	}
	return []Peer{{Prefix: &rule.PrefixSet{Prefix: p}, Path: f.path}}
}

func (c *ciliumDecoder) cidrSet(f field, _ role) []Peer {
	before := len(f.r.problems)
	m := f.members([]string{"cidr", "except"}, map[string]string{
		"cidrGroupRef":      "CIDR groups are not supported yet: write their CIDRs",
		"cidrGroupSelector": "CIDR groups are not supported yet: write their CIDRs",
	})
	if !m["cidr"].present() {
		if len(f.r.problems) == before {
			f.fail("cidr is required")
		}
		return nil
	}
	at := m["except"].list(maxPeers)
	var excepts []string
	for _, e := range at {
		excepts = append(excepts, e.str())
	}
	set, ok := prefixSet(m["cidr"], m["cidr"].str(), func(i int) field { return at[i] }, excepts)
	if !ok {
		return nil
	}
	return []Peer{{Prefix: &set, Path: f.path}}
}
