package object_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
)

// decode is the one policy of a document.
func decode(t *testing.T, yaml string) *object.Policy {
	t.Helper()
	objs, refused := object.Decode("x.yaml", []byte(yaml))
	if len(refused) > 0 {
		t.Fatalf("%s\n%v", yaml, refused[0].Error())
	}
	if len(objs) != 1 {
		t.Fatalf("%s\ngot %d objects", yaml, len(objs))
	}
	return objs[0].Value.(*object.Policy)
}

// What is empty and what is absent differ, and differently in each API.
func TestEmptyAndAbsentLists(t *testing.T) {
	for _, tc := range []struct {
		name, yaml       string
		rules            int
		anyPeer, anyPort bool // of the first rule
		peers, ports     int
	}{
		{"v2: an empty rule is none", in("{}"), 0, false, false, 0, 0},
		{"v2: no peers and an empty toPorts are an empty rule", in("{toPorts: []}"), 0, false, false, 0, 0},
		{"v2: an empty list of peers is nobody", in("{fromEndpoints: []}"), 1, false, true, 0, 0},
		{"v2: so is an empty list of CIDRs", in("{fromCIDR: [], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}"), 1, false, false, 0, 1},
		{"v2: null is absent", in("{fromEndpoints: null, toPorts: [{ports: [{port: '80', protocol: TCP}]}]}"), 1, true, false, 0, 1},
		{"v2: no peers with ports are everybody", in("{toPorts: [{ports: [{port: '80', protocol: TCP}]}]}"), 1, true, false, 0, 1},
		{"v2: an entry of toPorts without ports is no port", in("{toPorts: [{}]}"), 1, true, false, 0, 0},
		{"v2: so is one with an empty list", in("{toPorts: [{ports: []}]}"), 1, true, false, 0, 0},
		{"v2: peers with an empty toPorts have every port", in("{fromEndpoints: [{}], toPorts: []}"), 1, false, true, 1, 0},
		{"v2: entity none is nobody", in("{fromEntities: [none]}"), 1, false, true, 0, 0},
		{"NetworkPolicy: an empty rule is everything", peers("{}"), 1, true, true, 0, 0},
		{"NetworkPolicy: empty lists too", peers("{from: [], ports: []}"), 1, true, true, 0, 0},
		{"NetworkPolicy: a port without a number is all of TCP", peers("{ports: [{}]}"), 1, true, false, 0, 1},
	} {
		p := decode(t, tc.yaml)
		if len(p.Rules) != tc.rules || !p.IsolatesIngress || p.IsolatesEgress {
			t.Errorf("%s: got %d rules, isolates ingress %v, egress %v", tc.name, len(p.Rules), p.IsolatesIngress, p.IsolatesEgress)
			continue
		}
		if tc.rules == 0 {
			continue
		}
		r, ports := p.Rules[0], 0
		for _, pr := range r.Ports {
			ports += len(pr.Ports)
		}
		if r.AnyPeer != tc.anyPeer || r.AnyPort != tc.anyPort || len(r.Peers) != tc.peers || ports != tc.ports {
			t.Errorf("%s: got %+v", tc.name, r)
		}
	}
}

func TestWhoIsIsolated(t *testing.T) {
	for _, tc := range []struct {
		yaml            string
		ingress, egress bool
	}{
		{cnpV2 + "spec: {endpointSelector: {}, ingressDeny: [{}]}", true, false},
		{cnpV2 + "spec: {endpointSelector: {}, ingress: [], egress: [{}]}", false, true},
		{cnpV2 + "spec: {endpointSelector: {}, ingress: [{}], enableDefaultDeny: {ingress: false, egress: true}}", false, true},
		{cnpV1 + "spec: {endpointSelector: {matchLabels: {a: b}}, egress: [{toPorts: [{ports: [{port: '53'}]}]}]}", false, true},
		{np + "spec: {podSelector: {}}", true, false},
		{np + "spec: {podSelector: {}, egress: [{}]}", true, true},
		{np + "spec: {podSelector: {}, policyTypes: [Ingress], egress: [{}]}", true, false},
		{np + "spec: {podSelector: {}, policyTypes: [Egress]}", false, true},
		{np + "spec: {}", true, false},
	} {
		p := decode(t, tc.yaml)
		if p.IsolatesIngress != tc.ingress || p.IsolatesEgress != tc.egress {
			t.Errorf("%s\ngot ingress %v, egress %v", tc.yaml, p.IsolatesIngress, p.IsolatesEgress)
		}
	}
}

// Kubernetes ignores rules of a direction that policyTypes does not name.
func TestNetworkPolicyIgnoresRulesOfOtherTypes(t *testing.T) {
	p := decode(t, np+"spec: {podSelector: {}, policyTypes: [Ingress], egress: [{}], ingress: [{}]}")
	if len(p.Rules) != 1 || p.Rules[0].Direction != rule.Ingress {
		t.Errorf("got %+v", p.Rules)
	}
	if w := object.Lint(p); len(w) != 1 || !strings.Contains(w[0], "spec.egress: is ignored") {
		t.Errorf("warnings: %q", w)
	}
}

func TestPeerSelectorsAndNamespaces(t *testing.T) {
	for _, tc := range []struct{ peer, want string }{
		{"{}", "pods in shop"},
		{"{matchLabels: {a: b, 'k8s:c': d, 'any:e': f}}", "a=b,c=d,e=f in shop"},
		{"{matchExpressions: [{key: a, operator: NotIn, values: [c, b, c]}, {key: d, operator: DoesNotExist}]}", "a notin (b,c),!d in shop"},
		{"{matchLabels: {'k8s:io.kubernetes.pod.namespace': other}}", "pods in other"},
		{"{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: In, values: [b, a]}]}", "pods in a or b"},
		{"{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [shop]}]}", "pods in namespaces with kubernetes.io/metadata.name!=shop"},
		{"{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: Exists}]}", "pods in namespaces with kubernetes.io/metadata.name"},
		{"{matchLabels: {io.cilium.k8s.namespace.labels.team: a, app: b}}", "app=b in namespaces with team=a"},
		{"{matchLabels: {io.cilium.k8s.policy.serviceaccount: sa}}", "io.cilium.k8s.policy.serviceaccount=sa in shop"},
	} {
		p := decode(t, in("{fromEndpoints: ["+tc.peer+"]}"))
		if got := p.Rules[0].Peers[0].Labels.Text; got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.peer, got, tc.want)
		}
	}
	for _, tc := range []struct{ peer, want string }{
		{"{podSelector: {}}", "pods in shop"},
		{"{namespaceSelector: {}}", "pods in any namespace"},
		{"{namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: b}}}", "app=b in namespaces with team=a"},
	} {
		p := decode(t, peers("{from: ["+tc.peer+"]}"))
		if got := p.Rules[0].Peers[0].Labels.Text; got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.peer, got, tc.want)
		}
	}
}

func TestSubjectStaysInItsNamespace(t *testing.T) {
	p := decode(t, cnpV2+"spec: {endpointSelector: {matchLabels: {app: web, 'k8s:io.kubernetes.pod.namespace': pay}}, ingress: [{fromEndpoints: [{}]}]}")
	if p.Subject.Text != "app=web in shop" {
		t.Errorf("subject is %q", p.Subject.Text)
	}
	if w := object.Lint(p); len(w) != 1 || !strings.Contains(w[0], "overwritten") {
		t.Errorf("warnings: %q", w)
	}
}

func TestEntities(t *testing.T) {
	everything := []rule.Entity{rule.World, rule.Host, rule.RemoteNode, rule.Endpoints}
	for name, want := range map[string][]rule.Entity{
		"all": everything, "cluster": everything[1:], "world": {rule.World}, "host": {rule.Host}, "remote-node": {rule.RemoteNode},
	} {
		p := decode(t, out("{toEntities: ["+name+"]}"))
		if diff := cmp.Diff([]object.Peer{{Entities: want, Path: "spec.egress[0].toEntities[0]"}}, p.Rules[0].Peers); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for expr, want := range map[string][]rule.Entity{
		"{matchLabels: {'reserved:host': ''}}":                                                           {rule.Host},
		"{matchExpressions: [{key: 'reserved:world', operator: Exists}]}":                                {rule.World},
		"{matchExpressions: [{key: 'reserved:host', operator: DoesNotExist}]}":                           {rule.World, rule.RemoteNode, rule.Endpoints},
		"{matchExpressions: [{key: 'reserved:remote-node', operator: DoesNotExist}], matchLabels: null}": {rule.World, rule.Host, rule.Endpoints},
	} {
		p := decode(t, in("{fromEndpoints: ["+expr+"]}"))
		if diff := cmp.Diff(want, p.Rules[0].Peers[0].Entities); diff != "" {
			t.Errorf("%s (-want +got):\n%s", expr, diff)
		}
	}
}

func TestPorts(t *testing.T) {
	tcp := func(lo, hi uint16) object.Port {
		return object.Port{Range: rule.PortRange{Protocol: rule.TCP, Lo: lo, Hi: hi}}
	}
	each := func(lo, hi uint16, protocols ...uint8) (out []object.Port) {
		for _, p := range protocols {
			out = append(out, object.Port{Range: rule.PortRange{Protocol: p, Lo: lo, Hi: hi}})
		}
		return out
	}
	v2 := func(port string) string { return in("{toPorts: [{ports: [" + port + "]}]}") }
	v1 := func(entry string) string {
		return cnpV1 + "spec: {endpointSelector: {matchLabels: {a: b}}, ingress: [{toPorts: [" + entry + "]}]}"
	}
	for _, tc := range []struct {
		yaml string
		want []object.Port
	}{
		{v2("{port: '80', protocol: tcp}"), []object.Port{tcp(80, 80)}},
		{v2("{port: '80', endPort: 90, protocol: TCP}"), []object.Port{tcp(80, 90)}},
		{v2("{port: '80', endPort: 70, protocol: TCP}"), []object.Port{tcp(80, 80)}},
		{v2("{port: '0', protocol: TCP}"), []object.Port{tcp(0, 65535)}},
		{v2("{port: '80'}"), each(80, 80, rule.TCP, rule.UDP, rule.SCTP)},
		{v2("{port: '0', protocol: ANY}"), each(0, 65535, rule.TCP, rule.UDP, rule.SCTP)},
		{v2("{port: HTTP, protocol: TCP}"), []object.Port{{Name: "http", Protocol: rule.TCP}}},
		{v2("{port: dns}"), []object.Port{{Name: "dns"}}},
		{v2("{port: dns, endPort: 9}"), []object.Port{{Name: "dns"}}},
		{v1("{ports: [{port: '80'}]}"), each(80, 80, rule.TCP, rule.UDP)},
		{v1("{ports: [{port: '80'}], rules: {HTTP: [{}]}}"), each(80, 80, rule.TCP)},
		{in("{icmps: [{fields: [{type: '8'}, {type: EchoRequest, family: IPv6}]}]}"),
			[]object.Port{{Range: rule.PortRange{Protocol: rule.ICMP, Lo: 8, Hi: 8}}, {Range: rule.PortRange{Protocol: rule.ICMPv6, Lo: 128, Hi: 128}}}},
		{peers("{ports: [{}]}"), []object.Port{tcp(0, 65535)}},
		{peers("{ports: [{port: 80, endPort: 90}]}"), []object.Port{tcp(80, 90)}},
		{peers("{ports: [{port: web, protocol: UDP}]}"), []object.Port{{Name: "web", Protocol: rule.UDP}}},
	} {
		p := decode(t, tc.yaml)
		if diff := cmp.Diff(tc.want, p.Rules[0].Ports[0].Ports); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.yaml, diff)
		}
	}
}

func TestCIDRs(t *testing.T) {
	p := decode(t, in("{fromCIDR: [10.1.2.3/8, 192.0.2.1, '2001:db8::1']}, {fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.2.3.4/16, 10.1.0.0/16]}]}"))
	var got []string
	for _, r := range p.Rules {
		for _, peer := range r.Peers {
			if peer.PrefixesMatchPods || peer.PrefixesMatchNodes {
				t.Errorf("%s may match pods or nodes", peer.Path)
			}
			text := peer.Prefix.Prefix.String()
			for _, e := range peer.Prefix.Except {
				text += " -" + e.String()
			}
			got = append(got, text)
		}
	}
	want := []string{"10.0.0.0/8", "192.0.2.1/32", "2001:db8::1/128", "10.0.0.0/8 -10.1.0.0/16 -10.2.0.0/16"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	block := decode(t, peers("{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}"))
	if peer := block.Rules[0].Peers[0]; !peer.PrefixesMatchPods || !peer.PrefixesMatchNodes {
		t.Error("an ipBlock does not match pods and nodes")
	}
	block.LimitCIDRs()
	if peer := block.Rules[0].Peers[0]; peer.PrefixesMatchPods || peer.PrefixesMatchNodes {
		t.Error("an ipBlock matches pods or nodes with the switch off")
	}
}

func TestHTTPRules(t *testing.T) {
	p := decode(t, in("{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET, path: '/a|/b', host: 'x:80', headers: ['X-Token: a b', X-Any, 'X:y'], headerMatches: [{name: X-B, value: c}]}]}}]}"))
	got := p.Rules[0].Ports[0].HTTP[0]
	got.Origin = rule.Origin{}
	want := rule.HTTPRule{Method: ptr("GET"), Path: ptr("/a|/b"), Host: ptr("x:80"), Headers: []rule.HeaderRule{
		{Name: "x-any"}, {Name: "x-b", Value: ptr("c")}, {Name: "x-token", Value: ptr("a b")}, {Name: "x:y"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if p := decode(t, in("{toPorts: [{ports: [{port: '80'}], rules: {http: []}}]}")); p.Rules[0].Ports[0].HTTP != nil {
		t.Error("an empty list of HTTP rules is no HTTP judgement")
	}
}

func TestSpecsAreParts(t *testing.T) {
	p := decode(t, cnpV1+"specs: [{endpointSelector: {matchLabels: {id: a}}, ingress: [{fromEndpoints: [{}]}]}, {endpointSelector: {matchLabels: {id: b}}, egress: [{toPorts: [{ports: [{port: '53'}]}]}]}]")
	parts := p.Parts()
	if len(parts) != 2 || parts[0].Subject.Text != "id=a in default" || parts[1].Subject.Text != "id=b in default" {
		t.Fatalf("got %+v", parts)
	}
	r := parts[1].Rules[0]
	if r.Path != "specs[1].egress[0]" || r.AnyPeer || len(r.Peers) != 1 || len(r.Peers[0].Entities) != 4 {
		t.Errorf("egress of v1 without peers is not everybody's: %+v", r)
	}
	if o := parts[1].Origin; parts[1].Lines[r.Path] != 4 || o.Name != "p" {
		t.Errorf("line %d of %+v", parts[1].Lines[r.Path], o)
	}
}

func TestV1FieldNamesInAnyCase(t *testing.T) {
	p := decode(t, "apiVersion: cilium.io/v1\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nDescription: d\nSpec: {EndpointSelector: {MATCHLABELS: {id: a}}, INGRESS: [{fromendpoints: [{matchLabels: {Id: B}}], fromRequires: [{}]}]}")
	r := p.Rules[0]
	if r.Peers[0].Labels.Text != "Id=B in default" || len(r.Requires) != 1 || r.Path != "Spec.INGRESS[0]" {
		t.Errorf("got %+v", r)
	}
}

func TestLint(t *testing.T) {
	for _, tc := range []struct{ yaml, want string }{
		{cnpV1 + "spec: {endpointSelector: {matchLabels: {a: b}}, ingress: [{toPorts: [{ports: [{port: '80'}]}]}]}", "asks for a source"},
		{in("{}"), "neither peers nor ports"},
		{in("{fromEndpoints: []}"), "allows nobody"},
		{in("{toPorts: [{}]}"), "has no ports"},
		{in("{fromEndpoints: [{}], toPorts: [{ports: [{port: '80', endPort: 70}]}]}"), "below port"},
		{in("{fromEndpoints: [{matchLabels: {pod-template-hash: a}}]}"), "nobody is selected"},
		{in("{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{headers: ['A:b']}]}}]}"), "blank after the colon"},
		{in("{fromEndpoints: [{}]}, {fromEndpoints: [{}], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]}"), "spec.ingress[0] allows the same peers"},
		{in("{toPorts: [{ports: [{port: '1', endPort: 99}]}]}, {fromEntities: [host], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]}"), "spec.ingress[0].toPorts[0] allows the same peers"},
	} {
		w := object.Lint(decode(t, tc.yaml))
		if len(w) == 0 || !strings.Contains(strings.Join(w, "\n"), tc.want) {
			t.Errorf("%s\ngot %q, want %q", tc.yaml, w, tc.want)
		}
	}
	for _, yaml := range []string{
		in("{fromEndpoints: [{matchLabels: {a: b}}]}, {fromEndpoints: [{}], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]}"),
		string(readFile(t, "testdata/policy-v1.yaml")),
		peers("{}"),
	} {
		if w := object.Lint(decode(t, yaml)); len(w) > 0 {
			t.Errorf("%s\ngot %q", yaml, w)
		}
	}
}

func TestIdentityOfPod(t *testing.T) {
	yaml := `
apiVersion: v1
kind: Pod
metadata:
  name: web-0
  labels: {app.kubernetes.io/name: web, app: web, pod-template-hash: abc, statefulset.kubernetes.io/pod-name: web-0, kubernetes.io/os: linux,
    controller-revision-hash: x, io.kubernetes.pod.namespace: lie, io.cilium.k8s.policy.serviceaccount: lie, topology.kubernetes.io/zone: z,
    beta.kubernetes.io/os: l, x.beta.kubernetes.io/y: l, annotation.x: y, k8s-app: dns, statefulset.kubernetes.io/podx: y}
spec:
  serviceAccountName: sa
  initContainers:
  - {name: side, restartPolicy: Always, ports: [{name: admin, containerPort: 9000}]}
  - {name: once, ports: [{name: gone, containerPort: 9001}]}
  containers:
  - {name: c, ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}, {containerPort: 1}]}
status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
`
	objs, refused := object.Decode("x.yaml", []byte(yaml))
	if len(refused) > 0 {
		t.Fatal(refused[0].Error())
	}
	pod := objs[0].Value.(*corev1.Pod)
	want := rule.Identity{
		Cluster: "c1", Namespace: "default", ServiceAccount: "sa",
		Labels: []rule.Label{{Key: "app", Value: "web"}, {Key: "app.kubernetes.io/name", Value: "web"}, {Key: "k8s-app", Value: "dns"},
			{Key: "statefulset.kubernetes.io/podx", Value: "y"}, {Key: "topology.kubernetes.io/zone", Value: "z"}},
		NamedPorts: []rule.NamedPort{{Name: "admin", Protocol: rule.TCP, Port: 9000}, {Name: "dns", Protocol: rule.UDP, Port: 53}, {Name: "http", Protocol: rule.TCP, Port: 8080}},
	}
	got := object.PodIdentity("c1", pod)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("identity (-want +got):\n%s", diff)
	}
	if l := object.SelectorLabels(got); l[object.LabelServiceAccount] != "sa" || l[object.LabelCluster] != "c1" || l["app"] != "web" {
		t.Errorf("selector labels %v", l)
	}
	if a := object.PodAddresses(pod); len(a) != 2 || a[0].String() != "10.0.0.1" || a[1].String() != "fd00::1" {
		t.Errorf("addresses %v", a)
	}
}

func TestOrdinaryObjects(t *testing.T) {
	yaml := `
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}
- {apiVersion: v1, kind: Node, metadata: {name: n1}}
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: app1}
  spec: {replicas: 2, selector: {matchLabels: {id: app1}}, template: {metadata: {labels: {id: app1}}, spec: {containers: [{name: c}]}}}
- {apiVersion: v1, kind: Service, metadata: {name: s, namespace: shop}, spec: {ports: [{port: 80}]}}
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s-1, namespace: shop}, addressType: IPv4}
- {apiVersion: v1, kind: Secret, metadata: {name: s}}
`
	objs, refused := object.Decode("x.yaml", []byte(yaml))
	var got []string
	for _, o := range objs {
		got = append(got, o.Key()+" "+o.Source.String())
	}
	for _, r := range refused {
		got = append(got, r.Error())
	}
	want := []string{"Namespace/shop x.yaml:5", "Node/n1 x.yaml:6", "Deployment/default/app1 x.yaml:7", "Service/shop/s x.yaml:11",
		"EndpointSlice/shop/s-1 x.yaml:12", "x.yaml:13: Secret/s refused: kind Secret of v1 is not one that Weir reads: take it out of the folder"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if l := objs[0].Value.(*corev1.Namespace).Labels[object.NamespaceNameLabel]; l != "shop" {
		t.Errorf("the namespace's label is %q", l)
	}
}

func TestJSONIsYAMLToo(t *testing.T) {
	text, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "a"}})
	if err != nil {
		t.Fatal(err)
	}
	objs, refused := object.Decode("x.json", text)
	if len(refused) > 0 || len(objs) != 1 || string(objs[0].JSON) != string(text) {
		t.Errorf("got %v, %v", objs, refused)
	}
}
