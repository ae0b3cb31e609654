package why

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

func record(pod, identity, addr string) *identityv1.AddressRecord {
	a := netip.MustParseAddr(addr).As16()
	return &identityv1.AddressRecord{Address: a[:], PodNamespace: "default", PodName: pod, PodUid: pod, Identity: []byte(identity)}
}

var records = []*identityv1.AddressRecord{
	record("app1-a", "one", "10.244.1.2"),
	record("app1-a", "one", "fd00:244:1::2"),
	record("app1-b", "one", "10.244.2.2"),
	record("web-a", "two", "10.244.2.3"),
	record("web-b", "three", "10.244.2.4"),
}

func TestFind(t *testing.T) {
	for _, tc := range []struct {
		text, name string
		addresses  int
	}{
		{"app1", "default/app1-a", 2},
		{"deploy/app1", "default/app1-a", 2},
		{"app1-b", "default/app1-b", 1},
		{"default/web-a", "default/web-a", 1},
		{"pod/web-a", "default/web-a", 1},
		{"10.244.2.2", "default/app1-b", 1},
		{"::ffff:10.244.2.2", "default/app1-b", 1},
		{"203.0.113.7", "203.0.113.7", 0},
		{"world", "world", 0},
	} {
		p, err := find(tc.text, "default", records)
		if err != nil || p.name != tc.name || len(p.msg.Addresses) != tc.addresses {
			t.Errorf("%s: %q with %d addresses, %v; want %q with %d", tc.text, p.name, len(p.msg.GetAddresses()), err, tc.name, tc.addresses)
		}
	}
}

// What is asked about an address is answered for that address, not for another
// of the pod's.
func TestAddressAskedForStandsFirst(t *testing.T) {
	for text, want := range map[string]string{"fd00:244:1::2": "fd00:244:1::2", "10.244.1.2": "10.244.1.2", "app1": "10.244.1.2"} {
		p, err := find(text, "default", records)
		if err != nil {
			t.Fatal(err)
		}
		if a, _ := netip.AddrFromSlice(p.msg.Addresses[0]); a.Unmap() != netip.MustParseAddr(want) {
			t.Errorf("%s: judged by %s", text, a.Unmap())
		}
	}
}

// A node's address is no part of the world: it is the host to that node's pods.
func TestNodeAddresses(t *testing.T) {
	a := netip.MustParseAddr("10.200.0.1").As16()
	all := append([]*identityv1.AddressRecord{{Address: a[:], Node: "n1", NodeAddress: true}}, records...)
	for other, want := range map[string]policyv1.Entity{"n1": policyv1.Entity_ENTITY_HOST, "n2": policyv1.Entity_ENTITY_REMOTE_NODE} {
		p, err := find("10.200.0.1", "default", all)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.seenFrom(party{node: other}).msg; got.GetEntity() != want || len(got.Addresses) != 1 {
			t.Errorf("from a pod on %s: %v, want %s", other, got, want)
		}
	}
}

func TestFindRefuses(t *testing.T) {
	if _, err := find("web", "default", records); err == nil || !strings.Contains(err.Error(), "web-b") {
		t.Errorf("pods of two identities: %v", err)
	}
	for _, text := range []string{"app", "app1", "nobody"} {
		ns := "default"
		if text == "app1" {
			ns = "elsewhere"
		}
		if _, err := find(text, ns, records); !errors.Is(err, errNoPod) {
			t.Errorf("%s in %s: %v", text, ns, err)
		}
	}
}

func TestAllowedNeedsBothSides(t *testing.T) {
	j := func(v, r policyv1.Verdict) *policyv1.Judgement { return &policyv1.Judgement{Verdict: v, Request: r} }
	const (
		none  = policyv1.Verdict_VERDICT_UNSPECIFIED
		deny  = policyv1.Verdict_VERDICT_DENY
		allow = policyv1.Verdict_VERDICT_ALLOW
		http  = policyv1.Verdict_VERDICT_HTTP
		not   = policyv1.Verdict_VERDICT_NOT_JUDGED
	)
	for _, tc := range []struct {
		egress, ingress *policyv1.Judgement
		want            bool
	}{
		{j(allow, none), j(allow, none), true},
		{j(not, none), j(http, allow), true},
		{j(allow, none), j(http, deny), false},
		{j(deny, none), j(allow, none), false},
		{j(allow, none), j(none, none), false},
		{j(allow, none), nil, false},
		{j(99, none), j(allow, none), false},
	} {
		if got := allowed(&policyv1.ExplainResponse{Egress: tc.egress, Ingress: tc.ingress}); got != tc.want {
			t.Errorf("%v, %v: %v, want %v", tc.egress, tc.ingress, got, tc.want)
		}
	}
}

func TestQuestionRefusesBadPorts(t *testing.T) {
	o := options{output: "text"}
	for _, port := range []string{"x/TCP", "70000/TCP", "80/FOO", ""} {
		if req, err := o.question([]string{"a", "b", port}); err == nil {
			t.Errorf("%q: %v", port, req)
		}
	}
	if req, err := o.question([]string{"a", "b", "443"}); err != nil || req.Protocol != 6 || req.Port != 443 {
		t.Errorf("443: %v, %v", req, err)
	}
}
