package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	enforcerv1 "weir.dev/weir/proto/weir/enforcer/v1"
	flowv1 "weir.dev/weir/proto/weir/flow/v1"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/enforcer/internal/nodetest"
)

// The tutorial's L3 and L4, from the CNI's call to the flow that explains a drop;
// and what a kill of the enforcer leaves.
func TestEnforcerOnANode(t *testing.T) {
	f := newFixture(t)
	f.start(t)
	app1 := f.node.Pod(t, "10.1.0.1", "fd00:1::1")
	app2 := f.node.Pod(t, "10.1.0.2", "fd00:1::2")
	app3 := f.node.Pod(t, "10.1.0.3", "fd00:1::3")
	f.set(t)
	for name, pod := range map[string]*nodetest.Pod{"app1": app1, "app2": app2, "app3": app3} {
		f.add(t, pod, name)
	}
	listen(t, app1, 80)
	listen(t, app1, 81)
	all := map[*nodetest.Pod]string{app2: "hello", app3: "hello"}
	f.wantCalls(t, "without a policy", app1, 80, all)

	f.set(t, allowOnly("app1", "app2", 80)...)
	one, none := map[*nodetest.Pod]string{app2: "hello", app3: "nothing"}, map[*nodetest.Pod]string{app2: "nothing", app3: "nothing"}
	f.wantCalls(t, "with the policy", app1, 80, one)
	f.wantCalls(t, "with the policy", app1, 81, none)
	flows := f.flows(t, &flowv1.ObserveRequest{Verdicts: []policyv1.Verdict{policyv1.Verdict_VERDICT_DENY}, Pods: []string{"default/app1"}})
	if !slices.ContainsFunc(flows, func(x *flowv1.Flow) bool {
		return x.GetReason() == "no-rule" && x.GetSource().GetPod() == "app3" && x.GetDestinationPort() == 80 &&
			len(x.GetSelectedBy()) == 1 && x.GetSelectedBy()[0].GetName() == "rule1"
	}) {
		t.Errorf("no drop of app3 that names rule1 among %d: %v", len(flows), flows)
	}

	// The kernel goes on without an enforcer; the next one adopts, and changes
	// nothing by itself.
	f.stop(t, syscall.SIGKILL)
	f.wantCalls(t, "killed", app1, 80, one)
	f.start(t)
	f.set(t, allowOnly("app1", "app2", 81)...)
	f.wantCalls(t, "adopted", app1, 81, one)
	f.wantCalls(t, "adopted", app1, 80, none)

	conn := f.dial(t, filepath.Join(f.dir, "run", "cni.sock"))
	if _, err := enforcerv1.NewEndpointServiceClient(conn).DeleteEndpoint(t.Context(), &enforcerv1.DeleteEndpointRequest{ContainerId: "app2", Interface: "eth0"}); err != nil {
		t.Fatal(err)
	}
	f.set(t)
	f.wantCalls(t, "policy deleted", app1, 80, map[*nodetest.Pod]string{app3: "hello"})
	f.wantMetrics(t)
}

// S4, in the kernel: an address that nothing was heard of is pending and looked
// up at once; one whose identity is newer than the policy stays pending until
// the policy follows. Neither is ever judged as world, which is allowed here.
func TestS4PendingOnANode(t *testing.T) {
	f := newFixture(t)
	known, early := netip.MustParseAddr("10.1.0.8"), netip.MustParseAddr("10.1.0.9")
	for a, revision := range map[netip.Addr]uint64{known: entered["app2"], early: 1000} {
		wide := a.As16()
		f.identityService.records[a] = &identityv1.AddressRecord{
			Address: wide[:], PodUid: "x", PodNamespace: "default", PodName: "remote", Node: "n2",
			Identity: identityOf("app2"), IdentityRevision: revision, Generation: 1,
		}
	}
	f.start(t)
	app1 := f.node.Pod(t, "10.1.0.1")
	f.set(t)
	f.add(t, app1, "app1")
	reasons := func(to netip.Addr) (out []string) {
		for _, x := range f.flows(t, &flowv1.ObserveRequest{Pods: []string{"default/app1"}}) {
			if a, _ := netip.AddrFromSlice(x.GetDestination().GetAddress()); a == to {
				out = append(out, x.GetReason())
			}
		}
		return out
	}
	// until calls to is judged as wanted; each call is one SYN.
	until := func(when string, to netip.Addr, want string) {
		t.Helper()
		for range 20 {
			call(t, app1, to, 80)
			if got := reasons(to); len(got) > 0 && got[len(got)-1] == want {
				return
			}
		}
		t.Fatalf("%s: %s is judged as %q, want %q at last", when, to, reasons(to), want)
	}
	until("looked up", known, "")
	if got := reasons(known)[0]; got != "pending" {
		t.Errorf("before the look-up: %q, want pending", got)
	}
	until("identity newer than the policy", early, "pending")
	if got := <-f.identityService.asked; got != known {
		t.Errorf("first looked up %s, want %s", got, known)
	}
	if got := <-f.identityService.asked; got != early {
		t.Errorf("then looked up %s, want %s", got, early)
	}
	call(t, app1, early, 80)
	for _, got := range reasons(early) {
		if got != "pending" {
			t.Errorf("identity newer than the policy: %q, want pending", got)
		}
	}
	f.mu.Lock()
	f.revision = 1000
	f.mu.Unlock()
	f.set(t)
	until("the policy followed", early, "")
}

// wantMetrics asks for what an operator watches.
func (f *fixture) wantMetrics(t *testing.T) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(f.dir, "h"))
	}}}
	defer client.CloseIdleConnections()
	get := func(path string) (int, []byte) {
		r, err := client.Get("http://enforcer" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, b
	}
	if code, b := get("/readyz?verbose"); code != http.StatusOK {
		t.Errorf("readyz: %d %s", code, b)
	}
	_, text := get("/metrics")
	for _, want := range []string{
		`weir_enforcer_drops_total{direction="ingress",reason="no-rule"}`, `weir_enforcer_lost_events_total{ring="drops"} 0`,
		"weir_enforcer_policy_in_force_seconds_count 2", `weir_enforcer_map_entries{map="addresses"}`, `weir_enforcer_endpoints{state="ready"} 2`,
	} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("metrics have no %s", want)
		}
	}
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	s, err := enforcerv1.NewEnforcerServiceClient(f.dial(t, filepath.Join(f.dir, "s"))).GetStatus(t.Context(), &enforcerv1.GetStatusRequest{})
	if err != nil || s.GetRevision() != f.revision || s.GetPolicyReplica() == "" || s.GetDrops()["no-rule"] == 0 || s.GetWatchLastBytes() == 0 {
		t.Errorf("status: %v, %v", s, err)
	}
}
