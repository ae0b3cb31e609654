package observe

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	flowv1 "weir.dev/weir/proto/weir/flow/v1"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// to is a flow from a pod to 10.96.0.2 of Service app1-service.
func to(port uint32) *flowv1.Flow {
	f := flow()
	f.Direction = policyv1.Direction_DIRECTION_EGRESS
	f.Destination = &flowv1.Peer{Address: []byte{10, 96, 0, 2}, Entity: "world"}
	f.DestinationPort = port
	return f
}

func TestServicesHaveTheirNames(t *testing.T) {
	now := time.Unix(100, 0)
	asked := 0
	var known []*identityv1.Service
	n := &names{now: func() time.Time { return now }, list: func(context.Context) ([]*identityv1.Service, error) {
		if asked++; known == nil {
			return nil, errors.New("identity is away")
		}
		return known, nil
	}}
	entity := func(f *flowv1.Flow) string {
		n.name(t.Context(), f)
		return f.GetDestination().GetNamespace() + " " + f.GetDestination().GetEntity()
	}
	if got := entity(to(80)); got != " world" {
		t.Errorf("while identity is away: %q", got)
	}
	known = []*identityv1.Service{{
		Namespace: "default", Name: "app1-service", Addresses: [][]byte{{10, 96, 0, 2}},
		Ports: []*identityv1.ServicePort{{Protocol: 6, Port: 80}},
	}}
	if entity(to(80)); asked != 1 {
		t.Errorf("asked %d times in no time", asked)
	}
	now = now.Add(askEvery)
	if got := entity(to(80)); got != "default service app1-service" {
		t.Errorf("a Service: %q", got)
	}
	if got := entity(to(8080)); got != " world" {
		t.Errorf("a port that the Service has not: %q", got)
	}
	ingress := to(80)
	ingress.Direction = policyv1.Direction_DIRECTION_INGRESS
	if got := entity(ingress); got != " world" {
		t.Errorf("an end that is judged: %q", got)
	}
	if asked != 2 {
		t.Errorf("asked %d times, want 2", asked)
	}
}

func TestWhatHasHappenedIsInOrder(t *testing.T) {
	var out bytes.Buffer
	p := &printer{out: &out, errOut: &out, sort: true}
	for _, second := range []int64{3, 1, 2} {
		f := flow()
		f.Time, f.SourcePort = timestamppb.New(time.Unix(second, 0)), uint32(second)
		p.print("enforcer-n1", &flowv1.ObserveResponse{Response: &flowv1.ObserveResponse_Flow{Flow: f}})
	}
	p.flush()
	at := -1
	for _, port := range []string{"app3-x:1 ", "app3-x:2 ", "app3-x:3 "} {
		next := strings.Index(out.String(), port)
		if next <= at {
			t.Fatalf("%s is not after the one before it\n%s", port, out.String())
		}
		at = next
	}
}
