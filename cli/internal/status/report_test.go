package status

import (
	"strings"
	"testing"

	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

func said(enforced, nodes uint32) *answers {
	refused := &identityv1.RefusedObject{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "bad", File: "bad.yaml", Line: 7, Reason: "spec.ingress[0].icmps: not supported yet"}
	return &answers{
		policies: &policyv1.ListPoliciesResponse{Revision: 4, Policies: []*policyv1.PolicyStatus{{
			Origin:   &policyv1.Origin{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "rule1", File: "policy-v1.yaml", Line: 1},
			Enforced: enforced, Nodes: nodes,
		}}},
		refused: []*identityv1.RefusedObject{refused, refused},
	}
}

func TestReportNamesWhatIsWrong(t *testing.T) {
	r := &Report{Parts: []Part{{Name: "policy-0", Up: true, Leader: true, Revision: 4}, {Name: "policy-1", Error: "connection refused"}}}
	r.fill(said(2, 3))
	if r.Healthy || len(r.Refused) != 1 {
		t.Errorf("healthy %v, refused %v; want neither healthy nor one refusal twice", r.Healthy, r.Refused)
	}
	for _, want := range []string{"policy-1 cannot be reached: connection refused", "weir demo start policy-1", "default/rule1 is in force on 2 of 3 nodes", "bad.yaml:7 is refused: spec.ingress[0].icmps"} {
		if !strings.Contains(strings.Join(r.Problems, "\n"), want) {
			t.Errorf("problems %q lack %q", r.Problems, want)
		}
	}
	var b strings.Builder
	if err := r.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"policy-0  up, leader  4", "policy-1  DOWN", "CiliumNetworkPolicy default/rule1  2/3", "bad.yaml:7"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the text lacks %q:\n%s", want, b.String())
		}
	}
}

func TestHealthyNeedsAPolicyReplica(t *testing.T) {
	r := &Report{}
	r.fill(&answers{})
	if r.Healthy {
		t.Error("healthy without anyone who tells the policies")
	}
	got := said(3, 3)
	got.refused = nil
	r = &Report{Parts: []Part{{Name: "policy-0", Up: true}}}
	r.fill(got)
	if !r.Healthy {
		t.Errorf("problems: %q", r.Problems)
	}
}

func TestOneIsNotMany(t *testing.T) {
	if one, many := count(1, "policy", "policies"), count(2, "policy", "policies"); one != "1 policy" || many != "2 policies" {
		t.Errorf("%q, %q", one, many)
	}
}
