package why

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

var services = []*identityv1.Service{
	{
		Namespace: "default", Name: "app1-service", Addresses: [][]byte{{10, 96, 0, 2}},
		Ports: []*identityv1.ServicePort{{Protocol: 6, Port: 80, Backends: []*identityv1.Backend{
			{Address: []byte{10, 244, 1, 2}, Port: 8080}, {Address: []byte{10, 244, 2, 2}, Port: 8080}, {Address: []byte{203, 0, 113, 7}, Port: 81},
		}}},
	},
	{
		Namespace: "default", Name: "both", Addresses: [][]byte{{10, 96, 0, 4}, netip.MustParseAddr("fd00:96::4").AsSlice()},
		Ports: []*identityv1.ServicePort{{Protocol: 6, Port: 80, Backends: []*identityv1.Backend{
			{Address: []byte{10, 244, 1, 2}, Port: 80}, {Address: netip.MustParseAddr("fd00:244:1::2").AsSlice(), Port: 80},
		}}},
	},
	{Namespace: "shop", Name: "empty", Addresses: [][]byte{{10, 96, 0, 3}}, Ports: []*identityv1.ServicePort{{Protocol: 6, Port: 80}}},
}

func TestServiceIsItsBackends(t *testing.T) {
	behind := []string{"default/app1-a:8080", "default/app1-b:8080", "203.0.113.7:81"}
	for _, tc := range []struct {
		text string
		want []string
	}{
		{"svc/app1-service", behind},
		{"service/default/app1-service", behind},
		{"app1-service", behind},
		{"10.96.0.2", behind},
		{"::ffff:10.96.0.2", behind},
		{"app1", []string{"default/app1-a:80"}}, // a pod comes first
		{"203.0.113.9", []string{"203.0.113.9:80"}},
	} {
		to, err := targets(tc.text, "default", 80, 6, records, services)
		var got []string
		for _, x := range to {
			got = append(got, fmt.Sprintf("%s:%d", x.name, x.port))
		}
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, %v; want %v", tc.text, got, err, tc.want)
		}
	}
}

// An address leads to backends of its own family, and is judged by theirs.
func TestServiceOfBothFamilies(t *testing.T) {
	for text, want := range map[string]string{"10.96.0.4": "10.244.1.2", "fd00:96::4": "fd00:244:1::2", "svc/both": "10.244.1.2"} {
		to, err := targets(text, "default", 80, 6, records, services)
		if err != nil || len(to) != 1 {
			t.Fatalf("%s: %v, %v", text, to, err)
		}
		if a, _ := netip.AddrFromSlice(to[0].msg.Addresses[0]); a.Unmap().String() != want {
			t.Errorf("%s: judged by %s, want %s", text, a.Unmap(), want)
		}
	}
}

func TestServiceErrorsSayWhatThereIs(t *testing.T) {
	for _, tc := range []struct {
		text           string
		port, protocol uint32
		want           string
	}{
		{"svc/nobody", 80, 6, `no service "nobody" in namespace "default"`},
		{"svc/app1-service", 81, 6, "service default/app1-service has no port 81/TCP: it has 80/TCP"},
		{"10.96.0.2", 80, 17, "no port 80/UDP: it has 80/TCP"},
		{"svc/shop/empty", 80, 6, "service shop/empty has no backend for port 80"},
		{"nobody", 80, 6, "no pod with an address is called so"},
	} {
		if to, err := targets(tc.text, "default", tc.port, tc.protocol, records, services); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, %v; want %q", tc.text, to, err, tc.want)
		}
	}
}

func TestJSONSaysWhatWasAsked(t *testing.T) {
	var b bytes.Buffer
	r := &policyv1.ExplainResponse{Revision: 9, Ingress: &policyv1.Judgement{Verdict: policyv1.Verdict_VERDICT_DENY}}
	if err := printJSON(&b, "default/app3-x", "default/app1-a", "80/TCP", r); err != nil {
		t.Fatal(err)
	}
	var got struct {
		From, To, Port string
		Allowed        bool
		Ingress        struct{ Verdict string }
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	if got.From != "default/app3-x" || got.To != "default/app1-a" || got.Port != "80/TCP" || got.Allowed || got.Ingress.Verdict != "VERDICT_DENY" {
		t.Errorf("%s", b.String())
	}
}
