package observe

import (
	"strings"
	"testing"

	flowv1 "weir.dev/weir/proto/weir/flow/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

func flow() *flowv1.Flow {
	return &flowv1.Flow{
		Node:            "n1",
		Direction:       policyv1.Direction_DIRECTION_INGRESS,
		Verdict:         policyv1.Verdict_VERDICT_DENY,
		Reason:          "no-rule",
		Source:          &flowv1.Peer{Address: []byte{10, 244, 2, 3}, Namespace: "default", Pod: "app3-x"},
		Destination:     &flowv1.Peer{Address: []byte{10, 244, 1, 2}, Namespace: "default", Pod: "app1-y"},
		Protocol:        6,
		SourcePort:      43211,
		DestinationPort: 80,
		SelectedBy:      []*policyv1.Origin{{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "rule1", File: "policy-v1.yaml", Line: 1}},
	}
}

func TestLineTellsWhy(t *testing.T) {
	refused := flow()
	refused.Reason = "http-denied"
	refused.Http = &flowv1.HTTPFlow{Method: "GET", Path: "/private", Status: 403, Requests: 2}
	outside := flow()
	outside.Source = &flowv1.Peer{Address: append(make([]byte, 15), 1), Entity: "world"}
	outside.SelectedBy, outside.DecidedBy = nil, &policyv1.Origin{Kind: "NetworkPolicy", Namespace: "a", Name: "b", Path: "spec.ingress[0]"}
	preface := flow()
	preface.Reason, preface.Http = "http-version", &flowv1.HTTPFlow{Status: 505, Requests: 1}
	service := flow()
	service.Destination = &flowv1.Peer{Address: []byte{10, 96, 0, 2}, Namespace: "default", Entity: "service app1-service"}
	forged := flow()
	forged.Reason, forged.SelectedBy, forged.DecidedBy = "spoofed-source", nil, nil
	forged.Endpoint = &flowv1.Peer{Namespace: "default", Pod: "evil"}
	for _, tc := range []struct {
		flow *flowv1.Flow
		want string
	}{
		{forged, "TCP spoofed-source at default/evil"},
		{preface, "TCP 505 http-version: selected by CiliumNetworkPolicy default/rule1 (policy-v1.yaml:1); refused whatever the rules say"},
		{service, "default/app3-x:43211 → service default/app1-service:80 TCP"},
		{flow(), "n1 ingress DENY default/app3-x:43211 → default/app1-y:80 TCP no-rule: selected by CiliumNetworkPolicy default/rule1 (policy-v1.yaml:1), and no rule allows it"},
		{refused, "TCP GET /private 403 ×2 http-denied: selected by"},
		{outside, "[::1(world)]:43211 → default/app1-y:80 TCP no-rule: NetworkPolicy a/b spec.ingress[0]"},
	} {
		if got := Line(tc.flow); !strings.Contains(got, tc.want) {
			t.Errorf("got  %s\nwant …%s", got, tc.want)
		}
	}
}

func TestUnknownIsNeverCalledAllowed(t *testing.T) {
	if got := Verdict(99); got != "?" {
		t.Errorf("verdict 99: %q", got)
	}
	if got := Address([]byte{1}); got != "?" {
		t.Errorf("a short address: %q", got)
	}
}

func TestRequestRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, o := range []options{
		{output: "xml"},
		{output: "text", verdicts: []string{"maybe"}},
		{output: "text", ports: []uint{0}},
		{output: "text", ports: []uint{70000}},
	} {
		if req, err := o.request(); err == nil {
			t.Errorf("%+v: %v", o, req)
		}
	}
}
