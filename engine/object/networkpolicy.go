package object

import (
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"weir.dev/weir/engine/rule"
)

// networkPolicy converts and validates a NetworkPolicy.
//
// As Kubernetes says, rules of a direction that policyTypes does not name are
// ignored (Cilium enforces them), an absent policyTypes means Ingress, and
// Egress if there are egress rules. An ipBlock may match pods and nodes; the
// cluster's switch cidrSelectsPods turns that off (LimitCIDRs). An empty list
// of peers or ports is as good as an absent one here: everybody, everything.
func networkPolicy(r *reader, origin rule.Origin, spec *networkingv1.NetworkPolicySpec) *Policy {
	n := networkDecoder{r: r, namespace: origin.Namespace}
	p := &Policy{Origin: origin, Semantics: SemanticsNetworkPolicy}
	p.Subject = n.pods("spec.podSelector", &spec.PodSelector, subjectOf, Selector{Namespaces: []string{origin.Namespace}})
	types := spec.PolicyTypes
	if len(types) == 0 {
		types = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(spec.Egress) > 0 {
			types = append(types, networkingv1.PolicyTypeEgress)
		}
	}
	for i, t := range types {
		switch t {
		case networkingv1.PolicyTypeIngress:
			p.IsolatesIngress = true
		case networkingv1.PolicyTypeEgress:
			p.IsolatesEgress = true
		default:
			r.add(index("spec.policyTypes", i), false, fmt.Sprintf("policy type %q is neither Ingress nor Egress", t))
		}
	}
	// Rules of both directions are validated, also those that are ignored.
	if len(spec.Ingress) > 0 && !p.IsolatesIngress {
		field{r: r, path: "spec.ingress"}.warn("is ignored: policyTypes does not name Ingress")
	}
	if len(spec.Egress) > 0 && !p.IsolatesEgress {
		field{r: r, path: "spec.egress"}.warn("is ignored: policyTypes does not name Egress")
	}
	for i, in := range spec.Ingress {
		rl := n.rule(index("spec.ingress", i), rule.Ingress, "from", in.From, in.Ports)
		if p.IsolatesIngress {
			p.Rules = append(p.Rules, rl)
		}
	}
	for i, out := range spec.Egress {
		rl := n.rule(index("spec.egress", i), rule.Egress, "to", out.To, out.Ports)
		if p.IsolatesEgress {
			p.Rules = append(p.Rules, rl)
		}
	}
	return p
}

type networkDecoder struct {
	r         *reader
	namespace string
}

func (n networkDecoder) rule(path string, dir rule.Direction, side string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) PolicyRule {
	out := PolicyRule{Direction: dir, Action: rule.Allow, Tier: rule.Normal, Path: path,
		AnyPeer: len(peers) == 0, AnyPort: len(ports) == 0}
	for i, p := range peers {
		out.Peers = append(out.Peers, n.peer(index(join(path, side), i), p))
	}
	if out.AnyPort {
		return out
	}
	pr := PortRule{Path: join(path, "ports")}
	for i, p := range ports {
		if port, ok := n.port(index(pr.Path, i), p); ok {
			pr.Ports = append(pr.Ports, port)
		}
	}
	out.Ports = []PortRule{pr}
	return out
}

func (n networkDecoder) peer(path string, p networkingv1.NetworkPolicyPeer) Peer {
	out := Peer{Path: path}
	switch {
	case p.IPBlock != nil && (p.PodSelector != nil || p.NamespaceSelector != nil):
		n.r.add(path, false, "ipBlock cannot be together with podSelector or namespaceSelector: make two peers of it")
	case p.IPBlock != nil:
		set, ok := prefixSet(field{r: n.r, path: join(join(path, "ipBlock"), "cidr")}, p.IPBlock.CIDR, func(i int) field {
			return field{r: n.r, path: index(join(join(path, "ipBlock"), "except"), i)}
		}, p.IPBlock.Except)
		if ok {
			out.Prefix, out.PrefixesMatchPods, out.PrefixesMatchNodes = &set, true, true
		}
	case p.PodSelector == nil && p.NamespaceSelector == nil:
		n.r.add(path, false, "must have one of podSelector, namespaceSelector, ipBlock; for everybody leave the list of peers out")
	default:
		sel := Selector{Namespaces: []string{n.namespace}}
		if p.NamespaceSelector != nil {
			sel = Selector{AnyNamespace: true}
			for _, c := range n.conditions(join(path, "namespaceSelector"), p.NamespaceSelector) {
				c.checkNamespaceLabel()
				sel.NamespaceLabels = append(sel.NamespaceLabels, c.Requirement)
			}
		}
		sel = n.pods(join(path, "podSelector"), p.PodSelector, allows, sel)
		out.Labels = &sel
	}
	return out
}

// pods completes a selector by the conditions on pods.
func (n networkDecoder) pods(path string, ls *metav1.LabelSelector, role role, sel Selector) Selector {
	if ls != nil {
		for _, c := range n.conditions(path, ls) {
			if c.Key == LabelServiceAccount || c.Key == LabelCluster {
				c.at.unsupported("%s is no label of a pod in a NetworkPolicy: use a CiliumNetworkPolicy", c.Key)
			}
			c.check(role)
			sel.Labels = append(sel.Labels, c.Requirement)
		}
	}
	return sel.finish()
}

func (n networkDecoder) conditions(path string, ls *metav1.LabelSelector) []condition {
	var out []condition
	for k, v := range ls.MatchLabels {
		at := field{r: n.r, path: join(join(path, "matchLabels"), k)}
		out = append(out, condition{at, Requirement{Key: k, Operator: In, Values: []string{v}}})
	}
	for i, e := range ls.MatchExpressions {
		c := condition{field{r: n.r, path: index(join(path, "matchExpressions"), i)},
			Requirement{Key: e.Key, Values: slices.Clone(e.Values)}}
		c.setOperator(string(e.Operator))
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b condition) int { return cmpString(a.at.path, b.at.path) })
	return out
}

func (n networkDecoder) port(path string, p networkingv1.NetworkPolicyPort) (Port, bool) {
	proto := rule.TCP
	if p.Protocol != nil {
		var ok bool
		if proto, ok = ProtocolNumber(*p.Protocol); !ok {
			n.r.add(join(path, "protocol"), false, fmt.Sprintf("protocol %q is none of TCP, UDP, SCTP", *p.Protocol))
			return Port{}, false
		}
	}
	if p.Port == nil {
		if p.EndPort != nil {
			n.r.add(join(path, "endPort"), false, "needs port")
			return Port{}, false
		}
		return Port{Range: rule.PortRange{Protocol: proto, Lo: 0, Hi: 65535}}, true
	}
	if p.Port.Type == intstr.String {
		if errs := validation.IsValidPortName(p.Port.StrVal); len(errs) > 0 {
			n.r.add(join(path, "port"), false, fmt.Sprintf("port name %q: %s", p.Port.StrVal, errs[0]))
			return Port{}, false
		}
		if p.EndPort != nil {
			n.r.add(join(path, "endPort"), false, "cannot be together with a named port")
			return Port{}, false
		}
		return Port{Name: p.Port.StrVal, Protocol: proto}, true
	}
	lo, hi := p.Port.IntVal, p.Port.IntVal
	if p.EndPort != nil {
		hi = *p.EndPort
	}
	if lo < 1 || hi > 65535 || hi < lo {
		n.r.add(path, false, fmt.Sprintf("ports %d to %d are no range within 1 to 65535", lo, hi))
		return Port{}, false
	}
	return Port{Range: rule.PortRange{Protocol: proto, Lo: uint16(lo), Hi: uint16(hi)}}, true
}

// prefixSet reads a CIDR and its excepts. Host bits are masked away, as both
// APIs do; an except must lie inside.
func prefixSet(at field, cidr string, exceptAt func(int) field, excepts []string) (rule.PrefixSet, bool) {
	p, ok := prefix(at, cidr)
	if !ok {
		return rule.PrefixSet{}, false
	}
	out := rule.PrefixSet{Prefix: p}
	for i, e := range excepts {
		x, ok := prefix(exceptAt(i), e)
		if !ok {
			return rule.PrefixSet{}, false
		}
		if x.Bits() < p.Bits() || !p.Contains(x.Addr()) {
			exceptAt(i).fail("%s is not inside of %s", e, cidr)
			return rule.PrefixSet{}, false
		}
		out.Except = append(out.Except, x)
	}
	slices.SortFunc(out.Except, netip.Prefix.Compare)
	out.Except = slices.Compact(out.Except)
	return out, true
}

func prefix(at field, text string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		at.fail("%q is not a CIDR: write an address, a slash and a length", text)
		return netip.Prefix{}, false
	}
	if p.Addr().Is4In6() {
		at.fail("%q: write IPv4 prefixes as IPv4", text)
		return netip.Prefix{}, false
	}
	return p.Masked(), true
}
