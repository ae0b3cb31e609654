package server_test

import (
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/engine/rule"
	enforcerv1 "weir.dev/weir/proto/weir/enforcer/v1"
	flowv1 "weir.dev/weir/proto/weir/flow/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/enforcer/internal/datapath"
	"weir.dev/weir/services/enforcer/internal/desired"
	"weir.dev/weir/services/enforcer/internal/endpoint"
	"weir.dev/weir/services/enforcer/internal/plan"
	"weir.dev/weir/services/enforcer/internal/policyclient"
	"weir.dev/weir/services/enforcer/internal/reconcile"
	"weir.dev/weir/services/enforcer/internal/server"
)

// sources are a node with one endpoint that is judged and one that waits.
func sources(t *testing.T) server.Sources {
	t.Helper()
	registry, err := endpoint.Load(filepath.Join(t.TempDir(), "endpoints.json"), func() {})
	if err != nil {
		t.Fatal(err)
	}
	for i, pod := range []string{"app1", "app2"} {
		if _, err := registry.Put(endpoint.Endpoint{
			Key: endpoint.Key{ContainerID: pod}, Namespace: "default", Pod: pod, Ifindex: uint32(7 + i), Identity: rule.IdentityHash{1},
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})},
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := registry.InForce(map[uint32]desired.Judged{1: {Identity: rule.IdentityHash{1}}}); err != nil {
		t.Fatal(err)
	}
	state := plan.State{
		Endpoints: map[uint32]plan.Endpoint{7: {ID: 1, Egress: plan.RowOpen, Ingress: plan.FirstRow}},
		Classes:   map[plan.Peer]plan.Class{1: 1, 2: 1},
		Prefixes:  map[netip.Prefix]plan.PeerRef{netip.MustParsePrefix("0.0.0.0/0"): {Peer: 1}},
		Cells: map[plan.CellKey]plan.PortMap{
			{Row: plan.FirstRow, Class: plan.DefaultClass}: {{}},
			{Row: plan.FirstRow, Class: 1}:                 {{}, {Start: 6<<16 | 80, Verdict: 2}, {Start: 6<<16 | 81}},
		},
	}
	return server.Sources{
		Node: "n1", Version: "test", Started: time.Unix(100, 0), Endpoints: registry,
		Policy: func() policyclient.Status {
			return policyclient.Status{Replica: "p:1", InForce: policyclient.Position{Generation: 3, Revision: 70}, Bytes: 900, LastBytes: 50}
		},
		MovePolicy: func(address string) (string, error) {
			if address != "" {
				return "", policyclient.ErrAddress
			}
			return "p:1", nil
		},
		Current: func() *reconcile.Change {
			return &reconcile.Change{At: desired.Position{Generation: 3, Revision: 70}, State: state}
		},
		Counters: func() ([]datapath.Count, error) {
			return []datapath.Count{{Reason: bpf.ReasonNone, Packets: 5}, {Reason: bpf.ReasonNoRule, Packets: 2}, {Reason: bpf.ReasonNoRule, Ingress: true, Packets: 1}}, nil
		},
		Lost:            func() (uint64, uint64, error) { return 1, 2, nil },
		Conntrack:       func() []datapath.Held { return nil },
		IdentityReplica: func() string { return "i:1" }, NATSConnected: func() bool { return true }, ProxyConnected: func() bool { return false },
		AddressSequence: func() uint64 { return 9 }, Word: func() uint64 { return 12 },
	}
}

func TestStatusTellsWhatIsInForce(t *testing.T) {
	s := server.Server{Sources: sources(t)}
	got, err := s.GetStatus(t.Context(), &enforcerv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetRevision() != 70 || got.GetWord() != 12 || got.GetEndpoints() != 2 || got.GetPeers() != 2 || got.GetClasses() != 1 ||
		got.GetCells() != 2 || got.GetPortMaps() != 2 || got.GetLostEvents() != 3 || got.GetDrops()["no-rule"] != 3 || len(got.GetDrops()) != 1 {
		t.Errorf("status: %v", got)
	}
	broken := sources(t)
	broken.Counters = func() ([]datapath.Count, error) { return nil, errors.New("no map") }
	if _, err := (server.Server{Sources: broken}).GetStatus(t.Context(), &enforcerv1.GetStatusRequest{}); status.Code(err) != codes.Internal {
		t.Errorf("without counters: %v", err)
	}
}

func TestEndpointsSayWhetherTheyAreJudged(t *testing.T) {
	got, err := server.Server{Sources: sources(t)}.ListEndpoints(t.Context(), &enforcerv1.ListEndpointsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]enforcerv1.EndpointState{
		"app1": enforcerv1.EndpointState_ENDPOINT_STATE_READY, "app2": enforcerv1.EndpointState_ENDPOINT_STATE_WAITING,
	}
	for _, e := range got.GetEndpoints() {
		if e.GetState() != want[e.GetPod()] {
			t.Errorf("%s is %s, want %s", e.GetPod(), e.GetState(), want[e.GetPod()])
		}
	}
}

func TestDumpIsReadable(t *testing.T) {
	src := sources(t)
	got, err := server.Server{Sources: src}.DumpState(t.Context(), &enforcerv1.DumpStateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"generation 3 revision 70 word 12", "endpoint 1 ifindex 7 egress row 1 ingress row 2",
		"cell row 2 class 1: 0/0 deny, 6/80 rule set 2, 6/81 deny", "cell row 2 class default: 0/0 deny", "prefix 0.0.0.0/0 peer 1 class 1",
	} {
		if !strings.Contains(got.GetText(), want) {
			t.Errorf("dump has no %q:\n%s", want, got.GetText())
		}
	}
	src.Current = func() *reconcile.Change { return nil }
	if _, err := (server.Server{Sources: src}).DumpState(t.Context(), &enforcerv1.DumpStateRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("with nothing in force: %v", err)
	}
}

func TestOtherReplicaMustBeAConfiguredOne(t *testing.T) {
	s := server.Server{Sources: sources(t)}
	if got, err := s.UsePolicyReplica(t.Context(), &enforcerv1.UsePolicyReplicaRequest{}); err != nil || got.GetLeft() != "p:1" {
		t.Errorf("the next one: %v, %v", got, err)
	}
	if _, err := s.UsePolicyReplica(t.Context(), &enforcerv1.UsePolicyReplicaRequest{Address: "x:1"}); status.Code(err) != codes.NotFound {
		t.Errorf("a stranger: %v", err)
	}
}

func TestMetricsAreWellNamedAndCounted(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m, err := server.NewMetrics(reg, sources(t), plan.Limits{Endpoints: 10, Cells: 20})
	if err != nil {
		t.Fatal(err)
	}
	m.InForce(reconcile.Change{Policy: true, Received: time.Now(), Result: plan.Result{Moved: true, Writes: 7}})
	m.Request(&flowv1.Flow{Verdict: policyv1.Verdict_VERDICT_DENY, Reason: "http-denied"})
	m.Addresses([]time.Time{time.Now(), time.Now().Add(time.Hour)})
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	want := `
		# HELP weir_enforcer_drops_total Packets dropped, by reason and direction.
		# TYPE weir_enforcer_drops_total counter
		weir_enforcer_drops_total{direction="egress",reason="no-rule"} 2
		weir_enforcer_drops_total{direction="ingress",reason="no-rule"} 1
		# HELP weir_enforcer_map_writes_total Map entries written to put changes in force.
		# TYPE weir_enforcer_map_writes_total counter
		weir_enforcer_map_writes_total 7
		# HELP weir_enforcer_http_verdicts_total HTTP verdicts that the proxy told, by verdict and reason.
		# TYPE weir_enforcer_http_verdicts_total counter
		weir_enforcer_http_verdicts_total{reason="http-denied",verdict="deny"} 1
	`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want),
		"weir_enforcer_drops_total", "weir_enforcer_map_writes_total", "weir_enforcer_http_verdicts_total"); err != nil {
		t.Error(err)
	}
}
