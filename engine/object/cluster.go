package object

import (
	"slices"

	"weir.dev/weir/engine/rule"
)

// clusterPolicy decodes a ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2.
//
// It isolates nobody. Its rules are asked in the order of priority, and those of
// one policy in the order they stand in. Peers select pods, but for nodes and
// networks; networks may match pods and nodes like a NetworkPolicy's ipBlock.
func clusterPolicy(origin rule.Origin, root field) *Policy {
	c := clusterDecoder{r: root.r}
	m := root.members([]string{"apiVersion", "kind", "metadata", "spec", "status"}, nil)
	m["metadata"].metadata()
	if !m["spec"].present() {
		m["spec"].fail("is required")
		return nil
	}
	s := m["spec"].members([]string{"tier", "priority", "subject", "ingress", "egress"}, nil)
	switch name := s["tier"].str(); name {
	case "Admin":
		c.tier = rule.Admin
	case "Baseline":
		c.tier = rule.Baseline
	default:
		s["tier"].fail("tier %q is neither Admin nor Baseline", name)
	}
	if !s["priority"].present() {
		s["priority"].fail("is required")
	}
	c.priority, _ = s["priority"].integer(0, 1000)
	p := &Policy{Origin: origin, Semantics: SemanticsCluster}
	if sel := c.pods(s["subject"], subjectOf); sel != nil {
		p.Subject = *sel
	}
	for i, f := range s["ingress"].list(maxClusterRules) {
		p.Rules = append(p.Rules, c.rule(f, i, rule.Ingress))
	}
	for i, f := range s["egress"].list(maxClusterRules) {
		p.Rules = append(p.Rules, c.rule(f, i, rule.Egress))
	}
	return p
}

// maxClusterRules and so on are the API's own limits.
const (
	maxClusterRules = 25
	maxClusterPeers = 25
)

type clusterDecoder struct {
	r        *reader
	tier     rule.Tier
	priority int
}

var clusterActions = map[string]rule.Action{"Accept": rule.Allow, "Deny": rule.Deny, "Pass": rule.Pass}

// rule decodes a rule of a list by its place in it.
func (c clusterDecoder) rule(f field, place int, dir rule.Direction) PolicyRule {
	side := "from"
	if dir == rule.Egress {
		side = "to"
	}
	m := f.members([]string{"name", "action", side, "protocols"}, nil)
	m["name"].str()
	out := PolicyRule{Direction: dir, Tier: c.tier, Path: f.path, AnyPort: true,
		Priority: uint32(c.priority*100 + place)} // a list has at most 25 entries
	action := clusterActions[m["action"].str()]
	if action == 0 {
		m["action"].fail("must be Accept, Deny or Pass")
	}
	if out.Action = action; action == rule.Pass && c.tier == rule.Baseline {
		out.Action = rule.Allow // what passes the last tier is allowed
	}
	as := allows
	if out.Action != rule.Allow {
		as = denies
	}
	list := m[side].list(maxClusterPeers)
	if len(list) == 0 {
		m[side].fail("needs at least one peer")
	}
	for _, e := range list {
		out.Peers = append(out.Peers, c.peer(e, dir, as)...)
	}
	if protocols := m["protocols"]; protocols.present() {
		out.AnyPort = false
		out.Ports = []PortRule{c.protocols(protocols, list)}
	}
	return out
}

func (c clusterDecoder) peer(f field, dir rule.Direction, as role) []Peer {
	m := f.fieldsOfUnion()
	if dir == rule.Egress {
		switch {
		case m["nodes"]:
			return c.nodes(f)
		case m["networks"]:
			return c.networks(f)
		case m["domainNames"]:
			f.unsupported("domainNames are not supported yet: write the addresses with networks")
			return nil
		}
	}
	sel := c.pods(f, as)
	if sel == nil {
		return nil
	}
	return []Peer{{Labels: sel, Path: f.path}}
}

// fieldsOfUnion are the names of the fields that are there.
func (f field) fieldsOfUnion() map[string]bool {
	out := map[string]bool{}
	if m, ok := f.v.(map[string]any); ok {
		for k, v := range m {
			out[k] = v != nil
		}
	}
	return out
}

// nodes matches every node or none: Weir does not tell nodes by their labels.
func (c clusterDecoder) nodes(f field) []Peer {
	nodes := f.members([]string{"nodes"}, nil)["nodes"]
	if len(nodes.conditions()) > 0 {
		nodes.unsupported("nodes by labels are not supported: {} means every node")
		return nil
	}
	return []Peer{{Entities: []rule.Entity{rule.Host, rule.RemoteNode}, Path: f.path}}
}

func (c clusterDecoder) networks(f field) []Peer {
	list := f.members([]string{"networks"}, nil)["networks"]
	if len(list.list(maxClusterPeers)) == 0 {
		list.fail("needs at least one CIDR")
	}
	var out []Peer
	for _, e := range list.list(maxClusterPeers) {
		if p, ok := prefix(e, e.str()); ok {
			out = append(out, Peer{Prefix: &rule.PrefixSet{Prefix: p}, PrefixesMatchPods: true, PrefixesMatchNodes: true, Path: e.path})
		}
	}
	return out
}

// pods decodes a union of namespaces and pods: who is selected.
func (c clusterDecoder) pods(f field, as role) *Selector {
	if !f.present() {
		f.fail("is required")
		return nil
	}
	m := f.members([]string{"namespaces", "pods"}, nil)
	sel := Selector{AnyNamespace: true}
	namespaces := m["namespaces"]
	switch {
	case m["namespaces"].present() == m["pods"].present():
		f.fail("must have exactly one of its fields")
		return nil
	case m["pods"].present():
		pm := m["pods"].members([]string{"namespaceSelector", "podSelector"}, nil)
		namespaces = pm["namespaceSelector"]
		for _, part := range []field{namespaces, pm["podSelector"]} {
			if !part.present() {
				part.fail("is required: {} selects all")
			}
		}
		for _, cd := range pm["podSelector"].conditions() {
			if cd.Key == LabelServiceAccount || cd.Key == LabelCluster {
				cd.at.unsupported("%s is no label of a pod here", cd.Key)
			}
			cd.check(as)
			sel.Labels = append(sel.Labels, cd.Requirement)
		}
	}
	for _, cd := range namespaces.conditions() {
		cd.checkNamespaceLabel()
		sel.NamespaceLabels = append(sel.NamespaceLabels, cd.Requirement)
	}
	sel = sel.finish()
	return &sel
}

// protocols decodes the ports. A port's name has no number where nodes or
// networks are reached.
func (c clusterDecoder) protocols(f field, peers []field) PortRule {
	out := PortRule{Path: f.path}
	list := f.list(maxClusterPeers)
	if len(list) == 0 {
		f.fail("needs at least one entry: leave it out to mean every port")
	}
	for _, e := range list {
		m := e.members([]string{"tcp", "udp", "sctp", "destinationNamedPort"}, nil)
		if len(e.fieldsOfUnion()) != 1 {
			e.fail("must have exactly one of tcp, udp, sctp, destinationNamedPort")
			continue
		}
		if named := m["destinationNamedPort"]; named.present() {
			if slices.ContainsFunc(peers, func(p field) bool { u := p.fieldsOfUnion(); return u["nodes"] || u["networks"] || u["domainNames"] }) {
				named.fail("cannot be used with peers that are nodes, networks or domainNames")
			}
			if name := named.str(); name == "" {
				named.fail("must be a port's name")
			} else {
				out.Ports = append(out.Ports, Port{Name: name})
			}
			continue
		}
		for _, p := range []struct {
			name   string
			number uint8
		}{{"tcp", rule.TCP}, {"udp", rule.UDP}, {"sctp", rule.SCTP}} {
			if m[p.name].present() {
				out.Ports = append(out.Ports, c.destinationPort(m[p.name], p.number)...)
			}
		}
	}
	return out
}

func (c clusterDecoder) destinationPort(f field, protocol uint8) []Port {
	port := f.members([]string{"destinationPort"}, nil)["destinationPort"]
	m := port.members([]string{"number", "range"}, nil)
	if m["number"].present() == m["range"].present() {
		port.fail("must have exactly one of number and range")
		return nil
	}
	if m["number"].present() {
		n, ok := m["number"].integer(1, 65535)
		if !ok {
			return nil
		}
		return []Port{{Range: rule.PortRange{Protocol: protocol, Lo: uint16(n), Hi: uint16(n)}}}
	}
	rm := m["range"].members([]string{"start", "end"}, nil)
	lo, okLo := rm["start"].integer(1, 65535)
	hi, okHi := rm["end"].integer(1, 65535)
	if !okLo || !okHi || lo >= hi {
		m["range"].fail("needs a start below its end")
		return nil
	}
	return []Port{{Range: rule.PortRange{Protocol: protocol, Lo: uint16(lo), Hi: uint16(hi)}}}
}
