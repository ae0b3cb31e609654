package spec_test

import (
	"go/build"
	"net/netip"
	"slices"
	"testing"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/engine/spec"
)

// The specification shares nothing with what it judges but the objects.
func TestImports(t *testing.T) {
	pkg, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"net/netip", "regexp", "slices", "strings", "weir.dev/weir/engine/object", "weir.dev/weir/engine/rule"}
	for _, path := range pkg.Imports {
		if !slices.Contains(allowed, path) {
			t.Errorf("imports %s", path)
		}
	}
}

func pod(namespace, name string) spec.Side {
	return spec.Side{
		Identity: &rule.Identity{Cluster: "default", Namespace: namespace, ServiceAccount: "default",
			Labels:     []rule.Label{{Key: "id", Value: name}},
			NamedPorts: []rule.NamedPort{{Name: "web", Protocol: rule.TCP, Port: 8080}}},
		Entity: rule.Endpoints, Addr: netip.MustParseAddr("10.0.0.1"),
	}
}

// cluster has the namespaces default and other, and the policies of the YAML.
func cluster(t *testing.T, yaml string) *spec.Cluster {
	t.Helper()
	c := &spec.Cluster{Namespaces: map[string]map[string]string{
		"default": {object.NamespaceNameLabel: "default"},
		"other":   {object.NamespaceNameLabel: "other", "team": "b"},
	}}
	objects, refused := object.Decode("test.yaml", []byte(yaml))
	for _, r := range refused {
		t.Fatal(r.Error())
	}
	for _, o := range objects {
		c.Policies = append(c.Policies, o.Value.(*object.Policy))
	}
	return c
}

// question about one flow to app1's port.
type question struct {
	from spec.Side
	port uint16
	want spec.Kind
}

func check(t *testing.T, c *spec.Cluster, qs ...question) {
	t.Helper()
	for _, q := range qs {
		f := spec.Flow{From: q.from, To: pod("default", "app1"), Protocol: rule.TCP, Port: q.port}
		if got := c.Ingress(f).Kind; got != q.want {
			t.Errorf("from %+v to port %d: got %v, want %v", q.from, q.port, got, q.want)
		}
	}
}

const v1 = "---\n{apiVersion: cilium.io/v1, kind: CiliumNetworkPolicy, metadata: {name: p}, spec: {endpointSelector: {matchLabels: {id: app1}}, ingress: "

func TestV1JudgesSourcesAndPortsIndependently(t *testing.T) {
	app2, app3, host := pod("default", "app2"), pod("default", "app3"), spec.Side{Entity: rule.Host}
	world := spec.Side{Entity: rule.World, Addr: netip.MustParseAddr("192.0.2.1")}
	sources := v1 + "[{fromEndpoints: [{matchLabels: {id: app2}}, {matchLabels: {id: app3}}]}]}}\n"
	for _, tc := range []struct {
		name string
		yaml string
		ask  []question
	}{
		{"without any source nobody passes but the node", v1 + "[{toPorts: [{ports: [{port: '80'}]}]}]}}\n",
			[]question{{app2, 80, spec.Deny}, {world, 80, spec.Deny}, {host, 80, spec.Allow}}},
		{"without any port all ports are open", sources,
			[]question{{app2, 80, spec.Allow}, {app2, 81, spec.Allow}, {world, 80, spec.Deny}}},
		{"sources and ports of two objects are one set", sources + v1 + "[{toPorts: [{ports: [{port: '80'}]}]}]}}\n",
			[]question{{app2, 80, spec.Allow}, {app3, 80, spec.Allow}, {app2, 81, spec.Deny}, {world, 80, spec.Deny}}},
		{"a requirement of one object holds for the sources of all", sources + v1 + "[{fromRequires: [{matchLabels: {id: app3}}]}]}}\n",
			[]question{{app2, 80, spec.Deny}, {app3, 80, spec.Allow}, {host, 80, spec.Allow}}},
		{"HTTP rules of a port add up, and a plain entry does not widen it",
			sources + v1 + "[{toPorts: [{ports: [{port: '80'}], rules: {HTTP: [{path: /a}]}}]}, {toPorts: [{ports: [{port: '80'}, {port: '81'}]}]}]}}\n",
			[]question{{app2, 80, spec.HTTP}, {app2, 81, spec.Allow}, {app2, 82, spec.Deny}}},
		{"a CIDR is a source", v1 + "[{fromCIDR: [192.0.2.0/24]}]}}\n",
			[]question{{world, 80, spec.Allow}, {app2, 80, spec.Deny}}},
		{"another namespace is not meant", v1 + "[{fromEndpoints: [{}]}]}}\n",
			[]question{{app2, 80, spec.Allow}, {pod("other", "app2"), 80, spec.Deny}}},
		{"v1 does not narrow what v2 allows", sources +
			"---\n{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: b}, spec: {endpointSelector: {}, ingress: [{fromEntities: [world]}]}}\n",
			[]question{{world, 80, spec.Allow}, {app2, 80, spec.Allow}}},
		{"a v2 deny wins over v1", sources +
			"---\n{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: b}, spec: {endpointSelector: {}, ingressDeny: [{fromEntities: [host]}, {fromEndpoints: [{matchLabels: {id: app3}}]}]}}\n",
			[]question{{app2, 80, spec.Allow}, {app3, 80, spec.Deny}, {host, 80, spec.Deny}}},
	} {
		t.Run(tc.name, func(t *testing.T) { check(t, cluster(t, tc.yaml), tc.ask...) })
	}
}

func TestV2SameEntriesAreAlternatives(t *testing.T) {
	c := cluster(t, `{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: p}, spec: {endpointSelector: {matchLabels: {id: app1}},
  ingress: [{fromEndpoints: [{matchLabels: {id: app2}}]}, {toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET, path: /public}]}}]}]}}`)
	check(t, c, question{pod("default", "app2"), 81, spec.Allow}, question{pod("default", "app2"), 80, spec.Allow},
		question{pod("default", "app3"), 80, spec.HTTP}, question{pod("default", "app3"), 81, spec.Deny})
	v := c.Ingress(spec.Flow{From: pod("default", "app3"), To: pod("default", "app1"), Protocol: rule.TCP, Port: 80})
	for target, want := range map[string]bool{"/public": true, "/public?x=1": false, "/private": false, "/public/": false} {
		if got := v.Permits(spec.Request{Method: "GET", Target: target}); got != want {
			t.Errorf("GET %s: got %v, want %v", target, got, want)
		}
	}
	if v.Permits(spec.Request{Method: "POST", Target: "/public"}) {
		t.Error("POST /public passes")
	}
}

func TestNobodyKnownIsNeverAllowed(t *testing.T) {
	c := cluster(t, `{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: p}, spec: {endpointSelector: {}, ingress: [{fromEntities: [all]}]}}`)
	check(t, c, question{spec.Side{}, 80, spec.Deny}, question{spec.Side{Entity: rule.Endpoints}, 80, spec.Deny},
		question{spec.Side{Entity: 77}, 80, spec.Deny}, question{spec.Side{Entity: rule.RemoteNode}, 80, spec.Allow})
	if k := c.Egress(spec.Flow{From: spec.Side{Entity: rule.World}, To: pod("default", "app1")}).Kind; k != spec.NotJudged {
		t.Errorf("egress of the world: got %v", k)
	}
}

func TestHeadersMustBeThereAndEqual(t *testing.T) {
	secret := "secret"
	v := spec.Verdict{Kind: spec.HTTP, Rules: []rule.HTTPRule{{Headers: []rule.HeaderRule{{Name: "x-token", Value: &secret}, {Name: "x-any"}}}}}
	for _, tc := range []struct {
		header []spec.Header
		want   bool
	}{
		{nil, false},
		{[]spec.Header{{Name: "X-Token", Value: "secret"}}, false},
		{[]spec.Header{{Name: "X-Token", Value: "secret"}, {Name: "X-Any"}}, true},
		{[]spec.Header{{Name: "X-Token", Value: "wrong"}, {Name: "X-Any"}}, false},
	} {
		if got := v.Permits(spec.Request{Header: tc.header}); got != tc.want {
			t.Errorf("%v: got %v, want %v", tc.header, got, tc.want)
		}
	}
	if (spec.Verdict{}).Permits(spec.Request{}) {
		t.Error("the zero verdict permits")
	}
}
