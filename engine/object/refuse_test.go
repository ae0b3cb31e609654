package object_test

import (
	"fmt"
	"strings"
	"testing"

	"weir.dev/weir/engine/object"
)

const (
	cnpV1 = "apiVersion: cilium.io/v1\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n"
	cnpV2 = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: shop}\n"
	np    = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\n"
)

// in puts a rule into a v2 policy's ingress.
func in(rule string) string { return cnpV2 + "spec: {endpointSelector: {}, ingress: [" + rule + "]}" }

// out puts a rule into a v2 policy's egress.
func out(rule string) string { return cnpV2 + "spec: {endpointSelector: {}, egress: [" + rule + "]}" }

// peers puts a NetworkPolicy's rule into ingress.
func peers(rule string) string { return np + "spec: {podSelector: {}, ingress: [" + rule + "]}" }

// refusal is a document that is refused, and the first problem it has.
type refusal struct {
	yaml        string
	path        string
	reason      string // a part of it
	unsupported bool
}

// Whatever is not understood wholly refuses the object, with the field's path.
func TestRefusalsOfPeers(t *testing.T) {
	for _, r := range []refusal{
		{in("{fromEndpoint: []}"), "spec.ingress[0].fromEndpoint", "unknown field", false},
		{in("{fromEndpoints: {}}"), "spec.ingress[0].fromEndpoints", "must be a list", false},
		{in("{fromEndpoints: [null]}"), "spec.ingress[0].fromEndpoints[0]", "null", false},
		{in("null"), "spec.ingress[0]", "null", false},
		{in("{fromEndpoints: [{matchLabels: {a: 1}}]}"), "spec.ingress[0].fromEndpoints[0].matchLabels.a", "in quotes", false},
		{in("{fromEndpoints: [{matchLabels: {'a b': c}}]}"), "spec.ingress[0].fromEndpoints[0].matchLabels.a b", "label key", false},
		{in("{fromEndpoints: [{matchLabels: {a: 'b c'}}]}"), "spec.ingress[0].fromEndpoints[0].matchLabels.a", "label value", false},
		{in("{fromEndpoints: [{matchExpressions: [{key: a, operator: Is}]}]}"), "spec.ingress[0].fromEndpoints[0].matchExpressions[0]", "operator \"Is\"", false},
		{in("{fromEndpoints: [{matchExpressions: [{key: a, operator: In}]}]}"), "spec.ingress[0].fromEndpoints[0].matchExpressions[0]", "needs values", false},
		{in("{fromEndpoints: [{matchExpressions: [{key: a, operator: Exists, values: [b]}]}]}"), "spec.ingress[0].fromEndpoints[0].matchExpressions[0]", "takes no values", false},
		{in("{fromEndpoints: [{matchExpressions: [{key: pod-template-hash, operator: NotIn, values: [b]}]}]}"), "spec.ingress[0].fromEndpoints[0].matchExpressions[0]", "no part of identities", true},
		{in("{fromEndpoints: [{matchLabels: {'container:a': b}}]}"), "spec.ingress[0].fromEndpoints[0].matchLabels[container:a]", "label source", true},
		{in("{fromEndpoints: [{matchLabels: {'reserved:host': '', a: b}}]}"), "spec.ingress[0].fromEndpoints[0].matchLabels[reserved:host]", "reserved", true},
		{in("{fromEndpoints: [{}], fromCIDR: [10.0.0.0/8]}"), "spec.ingress[0].fromCIDR", "together with fromEndpoints", false},
		{in("{fromRequires: [{}]}"), "spec.ingress[0].fromRequires", "gone", true},
		{in("{fromNodes: [{}]}"), "spec.ingress[0].fromNodes", "not supported", true},
		{in("{fromGroups: [{}]}"), "spec.ingress[0].fromGroups", "not supported", true},
		{in("{authentication: {mode: required}}"), "spec.ingress[0].authentication", "not supported", true},
		{in("{fromEntities: [kube-apiserver]}"), "spec.ingress[0].fromEntities[0]", "not supported", true},
		{in("{fromEntities: [everybody]}"), "spec.ingress[0].fromEntities[0]", "unknown", false},
		{in("{fromCIDR: [10.0.0.0/33]}"), "spec.ingress[0].fromCIDR[0]", "not a CIDR", false},
		{in("{fromCIDR: ['::ffff:10.0.0.0/104']}"), "spec.ingress[0].fromCIDR[0]", "IPv4", false},
		{in("{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]}"), "spec.ingress[0].fromCIDRSet[0].except[0]", "not inside", false},
		{in("{fromCIDRSet: [{except: [11.0.0.0/16]}]}"), "spec.ingress[0].fromCIDRSet[0]", "cidr is required", false},
		{in("{fromCIDRSet: [{cidrGroupRef: g}]}"), "spec.ingress[0].fromCIDRSet[0].cidrGroupRef", "not supported", true},
	} {
		r.check(t)
	}
}

func TestRefusalsOfPorts(t *testing.T) {
	for _, r := range []refusal{
		{in("{toPorts: [{ports: [{protocol: TCP}]}]}"), "spec.ingress[0].toPorts[0].ports[0]", "port is required", false},
		{in("{toPorts: [{ports: [{port: 80}]}]}"), "spec.ingress[0].toPorts[0].ports[0].port", "in quotes", false},
		{in("{toPorts: [{ports: [{port: '70000'}]}]}"), "spec.ingress[0].toPorts[0].ports[0].port", "beyond 65535", false},
		{in("{toPorts: [{ports: [{port: 'a_b'}]}]}"), "spec.ingress[0].toPorts[0].ports[0].port", "neither a number", false},
		{in("{toPorts: [{ports: [{port: '080'}]}]}"), "spec.ingress[0].toPorts[0].ports[0].port", "octal", false},
		{in("{toPorts: [{ports: [{port: '80', protocol: VRRP}]}]}"), "spec.ingress[0].toPorts[0].ports[0].protocol", "not supported", true},
		{in("{fromEntities: [World]}"), "spec.ingress[0].fromEntities[0]", "unknown", false},
		{in("{toPorts: [{ports: [{port: '80', protocol: ICMP}]}]}"), "spec.ingress[0].toPorts[0].ports[0].protocol", "use icmps", false},
		{in("{toPorts: [{ports: [{port: '80', protocol: XTP}]}]}"), "spec.ingress[0].toPorts[0].ports[0].protocol", "none of", false},
		{in("{toPorts: [{ports: [{port: '80'}], rules: {http: [{}]}}]}"), "spec.ingress[0].toPorts[0].ports[0].protocol", "TCP only", false},
		{in("{toPorts: [{ports: [{port: '0', protocol: TCP}], rules: {http: [{}]}}]}"), "spec.ingress[0].toPorts[0].ports[0].port", "one port", false},
		{in("{toPorts: [{ports: [{port: '53'}], rules: {dns: [{matchPattern: '*'}]}}]}"), "spec.ingress[0].toPorts[0].rules.dns", "not supported", true},
		{in("{toPorts: [{ports: [{port: '80'}], serverNames: [a]}]}"), "spec.ingress[0].toPorts[0].serverNames", "not supported", true},
		{in("{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: '/a('}]}}]}"), "spec.ingress[0].toPorts[0].rules.http[0].path", "RE2", false},
		{in("{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: '/a)|(/b'}]}}]}"), "spec.ingress[0].toPorts[0].rules.http[0].path", "RE2", false},
		{in("{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: '\\Q/a'}]}}]}"), "spec.ingress[0].toPorts[0].rules.http[0].path", "RE2", false},
		{in("{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: '" + strings.Repeat("a", 5000) + "'}]}}]}"), "spec.ingress[0].toPorts[0].rules.http[0].path", "more than 4096", false},
		{in("{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{headerMatches: [{name: a, mismatch: LOG}]}]}}]}"), "spec.ingress[0].toPorts[0].rules.http[0].headerMatches[0].mismatch", "not supported", true},
		{in("{icmps: [{fields: [{type: 8}]}], toPorts: [{ports: [{port: '80'}]}]}"), "spec.ingress[0].icmps", "together with toPorts", false},
		{in("{icmps: [{fields: [{type: 256}]}]}"), "spec.ingress[0].icmps[0].fields[0].type", "0 to 255", false},
		{in("{icmps: [{fields: [{type: Ping}]}]}"), "spec.ingress[0].icmps[0].fields[0].type", "unknown", false},
	} {
		r.check(t)
	}
}

func TestRefusalsOfSpecs(t *testing.T) {
	for _, r := range []refusal{
		{out("{toFQDNs: [{matchName: a.example}]}"), "spec.egress[0].toFQDNs", "not supported", true},
		{out("{toServices: []}"), "spec.egress[0].toServices", "not supported", true},
		{out("{fromEndpoints: [{}]}"), "spec.egress[0].fromEndpoints", "unknown field", false},
		{cnpV2 + "spec: {endpointSelector: {}, ingressDeny: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]}]}", "spec.ingressDeny[0].toPorts[0].rules", "deny rule", false},
		{cnpV2 + "spec: {endpointSelector: {}}", "spec", "no rule", false},
		{cnpV2 + "spec: {endpointSelector: {}, ingress: []}", "spec", "no rule", false},
		{cnpV2 + "spec: {ingress: [{}]}", "spec", "endpointSelector is required", false},
		{cnpV2 + "spec: {nodeSelector: {}, endpointSelector: {}, ingress: [{}]}", "spec.nodeSelector", "pods, not nodes", false},
		{cnpV2 + "spec: {endpointSelector: {matchLabels: {pod-template-hash: a}}, ingress: [{}]}", "spec.endpointSelector.matchLabels.pod-template-hash", "no part of identities", true},
		{cnpV2 + "spec: {endpointSelector: {}, log: {value: a}, ingress: [{}]}", "spec.log", "not supported", true},
		{cnpV2 + "spec: {endpointSelector: {}, enableDefaultDeny: {ingress: 'no'}, ingress: [{}]}", "spec.enableDefaultDeny.ingress", "true or false", false},
		{cnpV2 + "spec: {endpointSelector: {}, Ingress: [{}]}", "spec.Ingress", "unknown field", false},
		{cnpV2 + "description: a\nspec: {endpointSelector: {}, ingress: [{}]}", "description", "unknown field", false},
		{cnpV2, "spec", "is required", false},
		{strings.Replace(in("{}"), "name: p", "name: P_", 1), "metadata.name", "lowercase", false},
		{strings.Replace(in("{}"), "shop", "a.b", 1), "metadata.namespace", "must", false},
		{cnpV1 + "spec: {endpointSelector: {}, ingress: [{}]}", "spec.endpointSelector", "is empty", false},
		{cnpV1 + "spec: {endpointSelector: {matchLabels: {a: b}}, ingressDeny: [{}]}", "spec.ingressDeny", "unknown field", false},
		{cnpV1 + "spec: {endpointSelector: {matchLabels: {a: b}}, egress: [{toCIDR: [10.0.0.0/8]}]}", "spec.egress[0].toCIDR", "use cilium.io/v2", true},
		{cnpV1 + "spec: {endpointSelector: {matchLabels: {a: b}}, ingress: [{}], Ingress: [{}]}", "spec.ingress", "is there twice", false},
	} {
		r.check(t)
	}
}

func TestRefusalsOfNetworkPolicies(t *testing.T) {
	for _, r := range []refusal{
		{peers("{form: []}"), "spec.ingress[0].form", "unknown field", false},
		{peers("{from: [{}]}"), "spec.ingress[0].from[0]", "must have one of", false},
		{peers("{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}"), "spec.ingress[0].from[0]", "two peers", false},
		{peers("{from: [{ipBlock: {cidr: 10.0.0.1}}]}"), "spec.ingress[0].from[0].ipBlock.cidr", "not a CIDR", false},
		{peers("{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}"), "spec.ingress[0].from[0].ipBlock.except[0]", "not inside", false},
		{peers("{from: [{podSelector: {matchLabels: {'a/b/c': d}}}]}"), "spec.ingress[0].from[0].podSelector.matchLabels[a/b/c]", "label key", false},
		{peers("{from: [{podSelector: {matchLabels: {io.cilium.k8s.policy.cluster: d}}}]}"), "spec.ingress[0].from[0].podSelector.matchLabels[io.cilium.k8s.policy.cluster]", "CiliumNetworkPolicy", true},
		{peers("{ports: [{port: 80, protocol: ICMP}]}"), "spec.ingress[0].ports[0].protocol", "none of", false},
		{peers("{ports: [{port: 0}]}"), "spec.ingress[0].ports[0]", "no range", false},
		{peers("{ports: [{port: 90, endPort: 80}]}"), "spec.ingress[0].ports[0]", "no range", false},
		{peers("{ports: [{endPort: 80}]}"), "spec.ingress[0].ports[0].endPort", "needs port", false},
		{peers("{ports: [{port: web, endPort: 80}]}"), "spec.ingress[0].ports[0].endPort", "named port", false},
		{peers("{ports: [{port: 'no_name'}]}"), "spec.ingress[0].ports[0].port", "port name", false},
		{np + "spec: {podSelector: {}, policyTypes: [Both]}", "spec.policyTypes[0]", "neither", false},
		{np + "spec: {podSelector: {}, policyTypes: [Ingress], egress: [{to: [{}]}]}", "spec.egress[0].to[0]", "must have one of", false},
		{peers("null"), "spec.ingress[0]", "null", false},
		{peers("{from: [{podSelector: {matchLabels: {a: null}}}]}"), "spec.ingress[0].from[0].podSelector.matchLabels.a", "null", false},
	} {
		r.check(t)
	}
}

func TestRefusalsOfDocuments(t *testing.T) {
	for _, r := range []refusal{
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: A}\n", "metadata.name", "lowercase", false},
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: a.b}\n", "metadata.namespace", "must", false},
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {'b c': d}}\n", "metadata.labels", "Invalid value", false},
		{"apiVersion: cilium.io/v3\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n", "kind", "not a policy that Weir reads", true},
		{"apiVersion: networking.k8s.io/v1beta1\nkind: NetworkPolicy\nmetadata: {name: p}\n", "kind", "not a policy that Weir reads", true},
		{"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: p}\n", "", "not one that Weir reads", false},
		{"apiVersion: v1\nkind: Pod\nmetadata: {}\n", "metadata.name", "is required", false},
		{"apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}\n", "metadata.namespace", "has no namespace", false},
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, imagine: x}]}\n", "spec.containers[0].imagine", "unknown field", false},
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {a: 1}}\n", "", "", false},
		{"a: [", "", "not YAML", false},
		{"[1]", "", "not a Kubernetes object", false},
		{"a: 1\na: 2\n", "", "is there twice", false},
		{"a: &x {b: 1}\nc: {<<: *x}\n", "", "merge keys", false},
		{"a: .nan\n", "", "not a number", false},
		{"a: !!binary aGk=\n", "", "tag", false},
		{"? [a]\n: b\n", "", "a key must be a string", false},
		{"a: &a [*a]\n", "", "", false},
		{"a: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]\n" +
			"d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e, *e, *e, *e]\n" +
			"g: [*f, *f, *f, *f, *f, *f, *f, *f, *f, *f]\n", "", "more than", false},
	} {
		r.check(t)
	}
}

func (want refusal) check(t *testing.T) {
	t.Helper()
	objs, refused := object.Decode("x.yaml", []byte(want.yaml))
	if len(objs) != 0 || len(refused) != 1 {
		t.Errorf("%s\ngot %d objects and %d refusals", want.yaml, len(objs), len(refused))
		return
	}
	r := refused[0]
	p := r.Problems[0]
	if p.Path != want.path || !strings.Contains(p.Reason, want.reason) || r.Unsupported() != want.unsupported {
		t.Errorf("%s\ngot unsupported=%v %+v, want unsupported=%v at %q: %q",
			want.yaml, r.Unsupported(), p, want.unsupported, want.path, want.reason)
	}
	outside := p.Path == "" || p.Path == "spec" || strings.HasPrefix(p.Path, "kind") || strings.HasPrefix(p.Path, "metadata")
	if !outside && p.Line == 0 {
		t.Errorf("%s\nno line for %s", want.yaml, p.Path)
	}
}

func TestUnsupportedKindsAreRefusedByName(t *testing.T) {
	for _, kind := range []string{"cilium.io/v1/CiliumClusterwideNetworkPolicy", "policy.networking.k8s.io/v1alpha1/ClusterNetworkPolicy",
		"cilium.io/v2/CiliumCIDRGroup", "policy.networking.k8s.io/v1alpha1/AdminNetworkPolicy", "cilium.io/v2/CiliumEgressGatewayPolicy"} {
		i := strings.LastIndexByte(kind, '/')
		yaml := fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: a}\n", kind[:i], kind[i+1:])
		_, refused := object.Decode("x.yaml", []byte(yaml))
		if len(refused) != 1 || !refused[0].Unsupported() || !strings.Contains(refused[0].Error(), kind[i+1:]) {
			t.Errorf("%s: got %v", kind, refused)
		}
	}
}

func TestBadDocumentRefusesItselfAlone(t *testing.T) {
	file := strings.Join([]string{
		"# a comment\n",
		"\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n",
		"\nkind: [unclosed\n",
		"\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n...\n",
		" # one\n" + in("{toFQDNs: []}") + "\n",
		"\n" + in("{}") + "\n",
	}, "---")
	objs, refused := object.Decode("dir/x.yaml", []byte(file))
	var got []string
	for _, o := range objs {
		got = append(got, fmt.Sprintf("%s %s", o.Key(), o.Source))
	}
	for _, r := range refused {
		got = append(got, r.Error())
	}
	want := []string{
		"Namespace/a dir/x.yaml:3",
		"Namespace/b dir/x.yaml:9",
		"CiliumNetworkPolicy/shop/p dir/x.yaml:19",
		"dir/x.yaml:6: document refused: not YAML, near line 7: did not find expected ',' or ']'",
		"dir/x.yaml:14: CiliumNetworkPolicy/shop/p refused: line 17: spec.ingress[0].toFQDNs: unknown field: check its spelling and place",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Whoever keeps the last good version of an object finds it by the refusal's key.
func TestRefusalHasTheKeyOfItsObject(t *testing.T) {
	for yaml, want := range map[string]string{
		"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {x: y}\n":                                             "Pod/default/p",
		"apiVersion: v1\nkind: Node\nmetadata: {name: p}\nspec: {x: y}\n":                                            "Node/p",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {x: y}\n":                 "NetworkPolicy/default/p",
		"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec: {x: y}\n":                   "CiliumNetworkPolicy/default/p",
		"apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: {}\n": "ClusterNetworkPolicy/p",
	} {
		_, refused := object.Decode("x.yaml", []byte(yaml))
		if len(refused) != 1 || refused[0].Key() != want {
			t.Errorf("%s\ngot %+v, want %s", yaml, refused, want)
		}
	}
}

func TestPolicyHasABound(t *testing.T) {
	_, r := object.DecodePolicyJSON([]byte(strings.Repeat(" ", 2<<20)), "", 0, nil)
	if r == nil || !strings.Contains(r.Error(), "split it") {
		t.Errorf("got %v", r)
	}
	_, refused := object.Decode("x.yaml", []byte(in(strings.Repeat("{fromEndpoints: ["+strings.Repeat("{}, ", 1000)+"]}, ", 100))))
	if len(refused) != 1 || !strings.Contains(refused[0].Error(), "with its field paths") {
		t.Errorf("got %d refusals", len(refused))
	}
}
