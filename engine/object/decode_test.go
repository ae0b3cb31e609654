package object_test

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
)

func ptr[T any](v T) *T { return &v }

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTutorialPolicyDecodesWithItsOwnMeaning(t *testing.T) {
	objs, refused := object.Decode("policy-v1.yaml", readFile(t, "testdata/policy-v1.yaml"))
	if len(refused) > 0 || len(objs) != 1 {
		t.Fatalf("got %d objects, refused %v", len(objs), refused)
	}
	o := objs[0]
	if got, want := o.Key(), "CiliumNetworkPolicy/default/rule1"; got != want {
		t.Errorf("key is %s, want %s", got, want)
	}
	origin := rule.Origin{Kind: "CiliumNetworkPolicy", APIVersion: "cilium.io/v1", Namespace: "default", Name: "rule1",
		File: "policy-v1.yaml", Line: 1}
	httpOrigin := origin
	httpOrigin.Path, httpOrigin.Line = "spec.ingress[1].toPorts[0].rules.HTTP[0]", 20
	app := func(name string) object.Selector {
		return object.Selector{
			Namespaces: []string{"default"},
			Labels:     []object.Requirement{{Key: "id", Operator: object.In, Values: []string{name}}},
			Text:       "id=" + name + " in default",
		}
	}
	want := &object.Policy{
		Origin: origin, Semantics: object.SemanticsV1, Subject: app("app1"), IsolatesIngress: true,
		Rules: []object.PolicyRule{
			{Direction: rule.Ingress, Action: rule.Allow, Tier: rule.Normal, Path: "spec.ingress[0]", AnyPort: true,
				Peers: []object.Peer{{Labels: ptr(app("app2")), Path: "spec.ingress[0].fromEndpoints[0]"}}},
			{Direction: rule.Ingress, Action: rule.Allow, Tier: rule.Normal, Path: "spec.ingress[1]", AnyPeer: true,
				Ports: []object.PortRule{{
					Path:  "spec.ingress[1].toPorts[0]",
					Ports: []object.Port{{Range: rule.PortRange{Protocol: rule.TCP, Lo: 80, Hi: 80}}},
					HTTP:  []rule.HTTPRule{{Method: ptr("GET"), Path: ptr("/public"), Origin: httpOrigin}},
				}}},
		},
		Lines: o.Lines,
	}
	if diff := cmp.Diff(want, o.Value); diff != "" {
		t.Errorf("policy (-want +got):\n%s", diff)
	}
	for path, line := range map[string]int{"spec.ingress[0]": 11, "spec.ingress[1]": 14, "spec.ingress[1].toPorts[0].rules.HTTP[0].path": 21} {
		if o.Lines[path] != line {
			t.Errorf("line of %s is %d, want %d", path, o.Lines[path], line)
		}
	}
	again, refusal := object.DecodePolicyJSON(o.JSON, o.Source.File, o.Source.Line, o.Lines)
	if refusal != nil {
		t.Fatal(refusal)
	}
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("policy from its JSON (-want +got):\n%s", diff)
	}
}
