package flow_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/rule"
	flowv1 "weir.dev/weir/proto/weir/flow/v1"
	l7proxyv1 "weir.dev/weir/proto/weir/l7proxy/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/enforcer/internal/datapath"
	"weir.dev/weir/services/enforcer/internal/desired"
	"weir.dev/weir/services/enforcer/internal/endpoint"
	"weir.dev/weir/services/enforcer/internal/flow"
	"weir.dev/weir/services/enforcer/internal/plan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addr(s string) netip.Addr            { return netip.MustParseAddr(s) }
func port(s string) netip.AddrPort        { return netip.MustParseAddrPort(s) }
func id(s string) rule.ID                 { return rule.NewID([]byte(s)) }
func hash(s string) (h rule.IdentityHash) { copy(h[:], s); return h }

// cluster is what the names in events come from: the tutorial, as n1 sees it.
type cluster struct{}

func (cluster) List() []endpoint.Endpoint {
	return []endpoint.Endpoint{{
		ID: 1, Ifindex: 7, Namespace: "default", Pod: "app1", PodUID: "app1", Identity: hash("app1"),
		Entered: desired.Position{Generation: 1, Revision: 4}, Labels: []string{"id=app1"}, Addrs: []netip.Addr{addr("10.1.0.1")},
	}}
}

func (cluster) Find(a netip.Addr) (desired.Record, bool) {
	r, ok := records()[a]
	return r, ok
}

func records() map[netip.Addr]desired.Record {
	pod := func(a, name string, entered rule.Revision) desired.Record {
		return desired.Record{Addr: addr(a), Namespace: "default", Pod: name, PodUID: name, Node: "n2", Identity: hash(name),
			Entered: desired.Position{Generation: 1, Revision: entered}}
	}
	return map[netip.Addr]desired.Record{
		addr("10.2.0.2"):    pod("10.2.0.2", "app2", 5),
		addr("10.2.0.3"):    pod("10.2.0.3", "app3", 6),
		addr("192.168.0.2"): {Addr: addr("192.168.0.2"), Node: "n2", NodeAddress: true},
	}
}

// tutorial is the state of policy rule1, and a denial of app3 on port 81.
func tutorial(t *testing.T) (*flow.Translator, desired.Output) {
	t.Helper()
	origin := rule.Origin{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "rule1", Path: "spec", File: "p.yaml", Line: 3}
	path := "/public"
	set := rule.NewRuleSet([]rule.HTTPRule{{Path: &path, Origin: origin}})
	base := rule.Rule{Subject: id("subject"), Direction: rule.Ingress, Tier: rule.Normal, Origin: origin}
	isolate, http, deny := base, base, base
	isolate.ID, isolate.Action = id("isolate"), rule.Isolate
	http.ID, http.Action, http.Peer, http.RuleSet = id("http"), rule.Allow, id("app2"), set.ID
	http.Ports = []rule.PortRange{{Protocol: rule.TCP, Lo: 80, Hi: 80}}
	deny.ID, deny.Action, deny.Peer, deny.Origin.Name = id("deny"), rule.Deny, id("app3"), "denies"
	deny.Ports = []rule.PortRange{{Protocol: rule.TCP, Lo: 81, Hi: 81}}
	rules := []rule.Rule{isolate, http, deny}
	index, err := merge.New(merge.Policy{
		Selectors: []rule.Selector{{ID: id("app2"), Identities: []rule.Revision{5}}, {ID: id("app3"), Identities: []rule.Revision{6}}},
		Rules:     rules, RuleSets: []rule.RuleSet{set},
	})
	if err != nil {
		t.Fatal(err)
	}
	var endpoints []desired.Endpoint
	for _, e := range (cluster{}).List() {
		endpoints = append(endpoints, e.Desired())
	}
	limits := plan.Limits{Peers: 1024}
	out, err := desired.NewBuilder(limits, 0).Build(desired.Input{
		Node: "n1", At: desired.Position{Generation: 1, Revision: 50}, Index: index, Rules: rules, Records: records(), Endpoints: endpoints,
		Subjects: map[rule.IdentityHash]rule.Subject{hash("app1"): {Identity: hash("app1"), Selectors: []rule.ID{id("subject")}}},
		Services: []rule.Service{{Addr: addr("10.96.0.1"), Protocol: rule.TCP, Port: 80, Namespace: "default", Name: "app1-service"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	tr := flow.NewTranslator("n1", cluster{}, cluster{})
	tr.InForce(9, out.State, out.Explain)
	return tr, out
}

// dropped is a drop at app1's ingress.
func dropped(out desired.Output, from string, to uint16) datapath.Event {
	ref := out.State.Addresses[port(from).Addr()]
	return datapath.Event{
		Time: time.Unix(100, 0), Word: 9, Src: port(from), Dst: netip.AddrPortFrom(addr("10.1.0.1"), to), Protocol: rule.TCP, Drop: true,
		Reason: bpf.ReasonNoRule, Ingress: true, Ifindex: 7, Endpoint: 1, Peer: ref.Peer, Class: out.State.Classes[ref.Peer],
		Row: out.State.Endpoints[7].Ingress, Port: to,
	}
}

func TestDropNamesRuleOrPolicies(t *testing.T) {
	tr, out := tutorial(t)
	got := tr.Event(dropped(out, "10.2.0.3:40000", 80))
	app1, app3 := hash("app1"), hash("app3")
	rule1 := &policyv1.Origin{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "rule1", Path: "spec", File: "p.yaml", Line: 3}
	want := &flowv1.Flow{
		Time: timestamppb.New(time.Unix(100, 0)), Node: "n1", Direction: policyv1.Direction_DIRECTION_INGRESS,
		Verdict: policyv1.Verdict_VERDICT_DENY, Reason: "no-rule",
		Source:      &flowv1.Peer{Address: []byte{10, 2, 0, 3}, Namespace: "default", Pod: "app3", Identity: app3[:]},
		Destination: &flowv1.Peer{Address: []byte{10, 1, 0, 1}, Namespace: "default", Pod: "app1", Identity: app1[:], Labels: []string{"id=app1"}},
		Protocol:    6, SourcePort: 40000, DestinationPort: 80, SelectedBy: []*policyv1.Origin{rule1}, Word: 9, Revision: 50,
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("a drop without a rule (-want +got):\n%s", diff)
	}
	got = tr.Event(dropped(out, "10.2.0.3:40000", 81))
	if got.GetReason() != "denied" || got.GetDecidedBy().GetName() != "denies" || len(got.GetSelectedBy()) != 0 {
		t.Errorf("a drop by a rule: %v", got)
	}
	pending := dropped(out, "10.2.0.3:40000", 80)
	pending.Reason = bpf.ReasonPending
	if got = tr.Event(pending); got.GetReason() != "pending" || len(got.GetSelectedBy()) != 0 {
		t.Errorf("a pending peer's drop blames a policy: %v", got)
	}
}

func TestEventsOfPeersThatAreNoPods(t *testing.T) {
	tr, out := tutorial(t)
	world := dropped(out, "203.0.113.9:40000", 80)
	world.Peer = out.State.Prefixes[netip.MustParsePrefix("0.0.0.0/0")].Peer
	if got := tr.Event(world).GetSource(); got.GetEntity() != "world" {
		t.Errorf("world: %v", got)
	}
	if got := tr.Event(dropped(out, "192.168.0.2:40000", 80)).GetSource(); got.GetEntity() != "remote-node" {
		t.Errorf("another node: %v", got)
	}
	service := datapath.Event{Word: 9, Src: port("10.1.0.1:40000"), Dst: port("10.96.0.1:80"), Protocol: rule.TCP, Verdict: rule.Allowed, Row: plan.RowOpen}
	got := tr.Event(service)
	if got.GetVerdict() != policyv1.Verdict_VERDICT_ALLOW || got.GetDestination().GetEntity() != "service app1-service" || got.GetSource().GetPod() != "app1" {
		t.Errorf("to a Service: %v", got)
	}
	// Of a word that nothing explains any more the numbers mean the newest state.
	old := dropped(out, "10.2.0.3:40000", 80)
	old.Word, old.Row, old.Class = 1, 999, 999
	if got := tr.Event(old); got.GetReason() != "no-rule" || got.GetDecidedBy() != nil {
		t.Errorf("of an old word: %v", got)
	}
}

// A pod that sends with another's address is told of as who has sent it.
func TestForgersAreNamed(t *testing.T) {
	tr, _ := tutorial(t)
	forged := datapath.Event{
		Drop: true, Reason: bpf.ReasonSpoofedSource, Endpoint: 1,
		Src: port("10.2.0.2:1000"), Dst: port("10.2.0.3:80"), Protocol: rule.TCP,
	}
	f := tr.Event(forged)
	if f.GetEndpoint().GetPod() != "app1" {
		t.Errorf("forged by app1, told as %v", f)
	}
	if !flow.Matches(&flowv1.ObserveRequest{Pods: []string{"default/app1"}}, f) {
		t.Error("not among the forger's flows")
	}
	forged.Src = port("10.1.0.1:1000")
	if f := tr.Event(forged); f.GetEndpoint() != nil {
		t.Errorf("with its own address: %v", f.GetEndpoint())
	}
}

func TestRequestsNameTheirRule(t *testing.T) {
	tr, out := tutorial(t)
	v := &l7proxyv1.RequestVerdict{
		Direction: policyv1.Direction_DIRECTION_INGRESS, Source: []byte{10, 2, 0, 2}, Destination: []byte{10, 1, 0, 1},
		SourcePort: 40000, DestinationPort: 80, Method: "GET", Path: "/public", Status: 200,
		RuleSet: uint32(out.RuleSets[0].Number), Rule: 0,
	}
	if got := tr.Request(v); got.GetVerdict() != policyv1.Verdict_VERDICT_ALLOW || got.GetDecidedBy().GetName() != "rule1" || got.GetSource().GetPod() != "app2" {
		t.Errorf("allowed: %v", got)
	}
	v.Path, v.Status, v.Denied, v.Rule = "/private", 403, true, -1
	got := tr.Request(v)
	if got.GetVerdict() != policyv1.Verdict_VERDICT_DENY || got.GetReason() != "http-denied" || got.GetHttp().GetStatus() != 403 ||
		len(got.GetSelectedBy()) != 1 || got.GetSelectedBy()[0].GetName() != "rule1" {
		t.Errorf("refused: %v", got)
	}
}

func TestSlowReaderLearnsWhatItLost(t *testing.T) {
	ring := &flow.Ring{}
	add := func(n int) {
		for range n {
			ring.Add(&flowv1.Flow{})
		}
	}
	add(10)
	r := ring.Reader()
	if flows, lost := r.Next(100); len(flows) != 10 || lost != 0 {
		t.Errorf("first: %d flows, %d lost", len(flows), lost)
	}
	add(flow.Size + 5)
	flows, lost := r.Next(flow.Size + 100)
	if len(flows) != flow.Size || lost != 5 {
		t.Errorf("after too many: %d flows, %d lost; want %d and 5", len(flows), lost, flow.Size)
	}
	// A late reader has lost nothing: it begins with what is there.
	if _, lost := ring.Reader().Next(1); lost != 0 {
		t.Errorf("a late reader lost %d", lost)
	}
	woken := make(chan error)
	go func() { woken <- r.Wait(t.Context()) }()
	add(1)
	if err := <-woken; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _ = r.Next(10); r.Wait(ctx) == nil {
		t.Error("waited for nothing, and came back without an error")
	}
}

// observer takes what a server sends.
type observer struct {
	grpc.ServerStream
	ctx context.Context
	got chan *flowv1.ObserveResponse
}

func (o observer) Context() context.Context { return o.ctx }
func (o observer) Send(r *flowv1.ObserveResponse) error {
	o.got <- r
	return nil
}

func TestObserveFilters(t *testing.T) {
	drop := func(pod string, to uint32, path string) *flowv1.Flow {
		f := &flowv1.Flow{
			Verdict: policyv1.Verdict_VERDICT_DENY, Reason: "no-rule", DestinationPort: to,
			Source: &flowv1.Peer{Namespace: "default", Pod: pod}, Destination: &flowv1.Peer{Namespace: "kube-system", Pod: "dns"},
		}
		if path != "" {
			f.Http, f.Reason = &flowv1.HTTPFlow{Path: path}, "http-denied"
		}
		return f
	}
	ring := &flow.Ring{}
	for _, f := range []*flowv1.Flow{drop("app2", 80, ""), drop("app3", 80, "/private"), drop("app3", 53, ""), drop("web-d0b4f6c9g2-cfmbn", 443, "")} {
		ring.Add(f)
	}
	for _, tc := range []struct {
		name string
		q    *flowv1.ObserveRequest
		want int
	}{
		{"nothing asked", &flowv1.ObserveRequest{}, 4},
		{"the last", &flowv1.ObserveRequest{Last: 2}, 2},
		{"a pod", &flowv1.ObserveRequest{Pods: []string{"app3"}}, 2},
		{"a pod with its namespace", &flowv1.ObserveRequest{Pods: []string{"default/app2"}}, 1},
		{"a workload", &flowv1.ObserveRequest{Pods: []string{"web"}}, 1},
		{"a workload with its namespace", &flowv1.ObserveRequest{Pods: []string{"default/web"}}, 1},
		{"half a word", &flowv1.ObserveRequest{Pods: []string{"app", "we", ""}}, 0},
		{"a pod of another namespace", &flowv1.ObserveRequest{Pods: []string{"kube-system/app2"}}, 0},
		{"a namespace of either side", &flowv1.ObserveRequest{Namespaces: []string{"kube-system"}}, 4},
		{"a verdict", &flowv1.ObserveRequest{Verdicts: []policyv1.Verdict{policyv1.Verdict_VERDICT_ALLOW}}, 0},
		{"a reason", &flowv1.ObserveRequest{Reasons: []string{"http-denied"}}, 1},
		{"a port", &flowv1.ObserveRequest{Ports: []uint32{53}}, 1},
		{"a path", &flowv1.ObserveRequest{PathPrefix: "/priv"}, 1},
		{"two things", &flowv1.ObserveRequest{Pods: []string{"app2"}, Ports: []uint32{53}}, 0},
	} {
		o := observer{ctx: t.Context(), got: make(chan *flowv1.ObserveResponse, 10)}
		if err := (flow.Server{Ring: ring}).Observe(tc.q, o); err != nil {
			t.Fatal(err)
		}
		if len(o.got) != tc.want {
			t.Errorf("%s: %d flows, want %d", tc.name, len(o.got), tc.want)
		}
	}
	unknown := &flowv1.ObserveRequest{Reasons: []string{"no-rule", "frob"}}
	if err := (flow.Server{Ring: ring}).Observe(unknown, observer{}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "frob") {
		t.Errorf("a reason that nobody gives: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o := observer{ctx: ctx, got: make(chan *flowv1.ObserveResponse)}
	done := make(chan error)
	go func() {
		done <- flow.Server{Ring: ring}.Observe(&flowv1.ObserveRequest{Follow: true, Last: 1, Ports: []uint32{53}}, o)
	}()
	<-o.got
	ring.Add(drop("app9", 80, ""))
	ring.Add(drop("app4", 53, ""))
	if got := (<-o.got).GetFlow().GetSource().GetPod(); got != "app4" {
		t.Errorf("followed to %s", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
