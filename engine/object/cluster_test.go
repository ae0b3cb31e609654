package object_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
)

const (
	cluster = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\n"
	wide    = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: p}\n"
)

// admin puts a rule into an Admin policy's ingress.
func admin(rule string) string {
	return cluster + "spec: {tier: Admin, priority: 3, subject: {namespaces: {}}, ingress: [" + rule + "]}"
}

func TestClusterNetworkPolicy(t *testing.T) {
	p := decode(t, cluster+`spec:
  tier: Admin
  priority: 7
  subject: {pods: {namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: b}}}}
  egress:
  - {action: Accept, to: [{namespaces: {}}, {nodes: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 9}}}}]}
  - {action: Pass, to: [{networks: [10.1.2.3/8]}]}
  - {action: Deny, to: [{pods: {namespaceSelector: {}, podSelector: {}}}], protocols: [{destinationNamedPort: web}]}
`)
	everybody := object.Selector{AnyNamespace: true, Text: "pods in any namespace"}
	want := []object.PolicyRule{
		{Direction: rule.Egress, Action: rule.Allow, Tier: rule.Admin, Priority: 700, Path: "spec.egress[0]",
			Peers: []object.Peer{{Labels: &everybody, Path: "spec.egress[0].to[0]"},
				{Entities: []rule.Entity{rule.Host, rule.RemoteNode}, Path: "spec.egress[0].to[1]"}},
			Ports: []object.PortRule{{Path: "spec.egress[0].protocols", Ports: []object.Port{
				{Range: rule.PortRange{Protocol: rule.TCP, Lo: 80, Hi: 80}}, {Range: rule.PortRange{Protocol: rule.UDP, Lo: 1, Hi: 9}}}}}},
		{Direction: rule.Egress, Action: rule.Pass, Tier: rule.Admin, Priority: 701, Path: "spec.egress[1]", AnyPort: true,
			Peers: []object.Peer{{Prefix: &rule.PrefixSet{Prefix: netip.MustParsePrefix("10.0.0.0/8")},
				PrefixesMatchPods: true, PrefixesMatchNodes: true, Path: "spec.egress[1].to[0].networks[0]"}}},
		{Direction: rule.Egress, Action: rule.Deny, Tier: rule.Admin, Priority: 702, Path: "spec.egress[2]",
			Peers: []object.Peer{{Labels: &everybody, Path: "spec.egress[2].to[0]"}},
			Ports: []object.PortRule{{Path: "spec.egress[2].protocols", Ports: []object.Port{{Name: "web"}}}}},
	}
	if diff := cmp.Diff(want, p.Rules, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	if p.IsolatesIngress || p.IsolatesEgress || p.Origin.Namespace != "" || p.Subject.Text != "app=b in namespaces with team=a" {
		t.Errorf("got %+v", p)
	}
	base := decode(t, strings.Replace(admin("{action: Pass, from: [{namespaces: {}}]}"), "Admin", "Baseline", 1))
	if r := base.Rules[0]; r.Tier != rule.Baseline || r.Action != rule.Allow {
		t.Errorf("what passes the last tier is not allowed: %+v", r)
	}
}

func TestClusterNetworkPolicyRefusals(t *testing.T) {
	for _, tc := range []struct{ yaml, path, reason string }{
		{admin("{action: Allow, from: [{namespaces: {}}]}"), "spec.ingress[0].action", "Accept, Deny or Pass"},
		{admin("{from: [{namespaces: {}}]}"), "spec.ingress[0].action", "Accept, Deny or Pass"},
		{admin("{action: Deny, from: []}"), "spec.ingress[0].from", "at least one"},
		{admin("{action: Deny}"), "spec.ingress[0].from", "at least one"},
		{admin("{action: Deny, from: [{}]}"), "spec.ingress[0].from[0]", "exactly one"},
		{admin("{action: Deny, from: [{namespaces: {}, pods: {namespaceSelector: {}, podSelector: {}}}]}"), "spec.ingress[0].from[0]", "exactly one"},
		{admin("{action: Deny, from: [{pods: {podSelector: {}}}]}"), "spec.ingress[0].from[0].pods.namespaceSelector", "is required"},
		{admin("{action: Deny, from: [{networks: [10.0.0.0/8]}]}"), "spec.ingress[0].from[0].networks", "unknown field"},
		{admin("{action: Deny, from: [{namespaces: {}}], protocols: []}"), "spec.ingress[0].protocols", "at least one"},
		{admin("{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {}}]}"), "spec.ingress[0].protocols[0].tcp.destinationPort", "exactly one"},
		{admin("{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 2, end: 2}}}}]}"), "spec.ingress[0].protocols[0].tcp.destinationPort.range", "below its end"},
		{admin("{action: Deny, from: [{namespaces: {}}], protocols: [{icmp: {}}]}"), "spec.ingress[0].protocols[0].icmp", "unknown field"},
		{admin("{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod-template-hash: a}}}}]}"), "spec.ingress[0].from[0].pods.podSelector.matchLabels.pod-template-hash", "no part of identities"},
		{strings.Replace(admin("{action: Deny, from: [{namespaces: {}}]}"), "ingress: [{action: Deny, from", "egress: [{action: Deny, to", 1), "", ""},
		{cluster + "spec: {tier: Admin, priority: 3, subject: {namespaces: {}}, egress: [{action: Deny, to: [{nodes: {matchLabels: {a: b}}}]}]}", "spec.egress[0].to[0].nodes", "by labels"},
		{cluster + "spec: {tier: Admin, priority: 3, subject: {namespaces: {}}, egress: [{action: Accept, to: [{domainNames: [a.example]}]}]}", "spec.egress[0].to[0]", "not supported"},
		{cluster + "spec: {tier: Admin, priority: 3, subject: {namespaces: {}}, egress: [{action: Accept, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: a}]}]}", "spec.egress[0].protocols[0].destinationNamedPort", "cannot be used"},
		{cluster + "spec: {tier: Normal, priority: 3, subject: {namespaces: {}}}", "spec.tier", "neither"},
		{cluster + "spec: {tier: Admin, subject: {namespaces: {}}}", "spec.priority", "is required"},
		{cluster + "spec: {tier: Admin, priority: 1001, subject: {namespaces: {}}}", "spec.priority", "0 to 1000"},
		{cluster + "spec: {tier: Admin, priority: 1}", "spec.subject", "is required"},
		{cluster, "spec", "is required"},
		{strings.Replace(admin(""), "name: p", "name: p, namespace: a", 1), "metadata.namespace", "has no namespace"},
		{wide + "spec: {nodeSelector: {}, ingress: [{}]}", "spec.nodeSelector", "policies of nodes"},
	} {
		_, refused := object.Decode("x.yaml", []byte(tc.yaml))
		if tc.reason == "" {
			if len(refused) != 0 {
				t.Errorf("%s\n%s", tc.yaml, refused[0].Error())
			}
			continue
		}
		if len(refused) != 1 || refused[0].Problems[0].Path != tc.path || !strings.Contains(refused[0].Problems[0].Reason, tc.reason) {
			t.Errorf("%s\ngot %+v, want %s: %s", tc.yaml, refused, tc.path, tc.reason)
		}
	}
}

func TestClusterwidePolicyIsLimitedToNoNamespace(t *testing.T) {
	p := decode(t, wide+"spec: {endpointSelector: {matchLabels: {app: a, io.kubernetes.pod.namespace: shop}}, ingress: [{fromEndpoints: [{}, {matchLabels: {io.kubernetes.pod.namespace: dev}}]}]}")
	if got, want := p.Subject.Text, "app=a in namespaces with kubernetes.io/metadata.name=shop"; got != want {
		t.Errorf("subject is %q, want %q", got, want)
	}
	peers := p.Rules[0].Peers
	if a, b := peers[0].Labels.Text, peers[1].Labels.Text; a != "pods in any namespace" || b != "pods in dev" {
		t.Errorf("peers are %q and %q", a, b)
	}
}
