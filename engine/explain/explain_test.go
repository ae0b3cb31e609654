package explain_test

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir.dev/weir/engine/explain"
	"weir.dev/weir/engine/httprule"
	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/resolve"
	"weir.dev/weir/engine/rule"
)

// hash of the pod whose label id has the value.
func hash(name string) rule.IdentityHash { return sha256.Sum256([]byte(name)) }

func state(t *testing.T, files ...string) *resolve.State {
	t.Helper()
	s := resolve.New()
	s.SetNamespace("default", nil)
	for i, name := range []string{"app1", "app2", "app3"} {
		s.SetIdentity(rule.Revision(i+1), hash(name), rule.Identity{
			Namespace: "default",
			Labels:    []rule.Label{{Key: "id", Value: name}},
		})
	}
	for _, file := range files {
		text, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		objects, refused := object.Decode(file, text)
		for _, r := range refused {
			t.Fatal(r.Error())
		}
		for _, o := range objects {
			if err := s.SetPolicy(o.Key(), o.Value.(*object.Policy)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

func TestExplain(t *testing.T) {
	pod := func(name string) explain.Party { return explain.Party{Identity: hash(name)} }
	world := explain.Party{Entity: rule.World, Addr: netip.MustParseAddr("192.0.2.1")}
	get := func(path string) *httprule.Request { return &httprule.Request{Method: "GET", Path: path} }
	rule1 := "CiliumNetworkPolicy default/rule1 (policy-v1.yaml:1)"
	for _, tc := range []struct {
		name            string
		files           []string
		from, to        explain.Party
		port            uint16
		request         *httprule.Request
		egress, ingress string
		allowed         bool
	}{
		{"nothing is allowed of a pod that no policy selects but by default", nil, pod("app2"), pod("app1"), 80, nil,
			"allow: no policy selects the pod for egress, so everything is allowed",
			"allow: no policy selects the pod for ingress, so everything is allowed", true},
		{"a request that a rule lets pass", []string{"policy-v1.yaml"}, pod("app2"), pod("app1"), 80, get("/public"),
			"allow/allow: no policy selects the pod for egress, so everything is allowed",
			"http/allow: GET /public passes by spec.ingress[1].toPorts[0].rules.HTTP[0] of CiliumNetworkPolicy default/rule1 (policy-v1.yaml:20)", true},
		{"a request that no rule lets pass", []string{"policy-v1.yaml"}, pod("app2"), pod("app1"), 80, get("/private"),
			"allow/allow: no policy selects the pod for egress, so everything is allowed",
			"http/deny: no HTTP rule lets GET /private pass; the connection is opened by " +
				"spec.ingress[1].toPorts[0] of CiliumNetworkPolicy default/rule1 (policy-v1.yaml:15)", false},
		{"a peer that no rule allows", []string{"policy-v1.yaml"}, pod("app3"), pod("app1"), 80, nil,
			"allow: no policy selects the pod for egress, so everything is allowed",
			"deny: the pod is selected for ingress by " + rule1 + ", and no rule allows this", false},
		{"a port that no rule allows", []string{"policy-v1.yaml"}, pod("app2"), pod("app1"), 81, nil,
			"allow: no policy selects the pod for egress, so everything is allowed",
			"deny: the pod is selected for ingress by " + rule1 + ", and no rule allows this", false},
		{"the node", []string{"policy-v1.yaml"}, explain.Party{Entity: rule.Host}, pod("app1"), 80, nil,
			"none: no pod is on this side, so no policy is judged here",
			"allow: a node may always reach its own pods, unless a rule denies it", true},
		{"a rule that denies", []string{"deny.yaml"}, world, pod("app1"), 80, nil,
			"none: no pod is on this side, so no policy is judged here",
			"deny: denied by spec.ingressDeny[0].fromCIDR[0] of CiliumNetworkPolicy default/deny (deny.yaml:9)", false},
		{"a pod that is not known", nil, pod("app9"), pod("app1"), 80, nil,
			"deny: the pod's identity is not resolved yet, so all is dropped",
			"deny: the peer's identity is not resolved yet, so it is dropped as pending", false},
		{"a peer that is nothing", []string{"policy-v1.yaml"}, explain.Party{}, pod("app1"), 80, nil,
			"none: no pod is on this side, so no policy is judged here",
			"deny: the peer is neither a pod, a node nor outside of the cluster, so it is dropped", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := explain.Explain(state(t, tc.files...), explain.Flow{
				From: tc.from, To: tc.to, Protocol: rule.TCP, Port: tc.port, Request: tc.request,
			})
			if err != nil {
				t.Fatal(err)
			}
			asked := tc.request != nil
			if diff := cmp.Diff([]string{tc.egress, tc.ingress}, []string{text(got.Egress, asked), text(got.Ingress, asked)}); diff != "" {
				t.Errorf("judgements (-want +got):\n%s", diff)
			}
			if got.Allowed() != tc.allowed {
				t.Errorf("allowed: got %v, want %v", got.Allowed(), tc.allowed)
			}
		})
	}
}

func text(j explain.Judgement, asked bool) string {
	words := map[explain.Verdict]string{
		explain.Deny: "deny", explain.Allow: "allow", explain.HTTP: "http", explain.NotJudged: "none",
	}
	verdict := words[j.Verdict]
	if asked {
		verdict += "/" + words[j.Request]
	}
	return fmt.Sprintf("%s: %s", verdict, j.Reason)
}

func TestDeniedRequestNamesThePoliciesThatSelect(t *testing.T) {
	got, err := explain.Explain(state(t, "policy-v1.yaml"), explain.Flow{
		From:     explain.Party{Identity: hash("app2")},
		To:       explain.Party{Identity: hash("app1")},
		Protocol: rule.TCP,
		Port:     80,
		Request:  &httprule.Request{Method: "GET", Path: "/private"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []rule.Origin{{
		Kind: "CiliumNetworkPolicy", APIVersion: "cilium.io/v1", Namespace: "default", Name: "rule1",
		File: "policy-v1.yaml", Line: 1,
	}}
	if diff := cmp.Diff(want, got.Ingress.SelectedBy); diff != "" {
		t.Errorf("selected by (-want +got):\n%s", diff)
	}
}
