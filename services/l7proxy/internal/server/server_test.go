package server

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/testing/protocmp"

	"weir.dev/weir/engine/httprule"
	l7proxyv1 "weir.dev/weir/proto/weir/l7proxy/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/l7proxy/internal/proxy"
	"weir.dev/weir/services/l7proxy/internal/rules"
)

type fixedCounts struct{}

func (fixedCounts) Open() int                      { return 3 }
func (fixedCounts) Requests() (all, denied uint64) { return 20, 4 }

// serve serves a Server and returns a client of it.
func serve(t *testing.T, s *Server) l7proxyv1.ProxyServiceClient {
	t.Helper()
	ln := bufconn.Listen(1 << 16)
	g := grpc.NewServer()
	l7proxyv1.RegisterProxyServiceServer(g, s)
	done := make(chan error, 1)
	go func() { done <- g.Serve(ln) }()
	conn, err := grpc.NewClient("passthrough:proxy", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l7proxyv1.NewProxyServiceClient(conn)
}

func newServer() (*Server, *rules.Table, *Ring) {
	var table rules.Table
	var ring Ring
	return New(Config{Version: "v9", Rules: &table, Ring: &ring, Counts: fixedCounts{}, Log: slog.New(slog.DiscardHandler)}), &table, &ring
}

func str(s string) *string { return &s }

func TestSetRuleSets(t *testing.T) {
	s, table, _ := newServer()
	c := serve(t, s)
	select {
	case <-s.Taught():
		t.Error("taught before anything was set")
	default:
	}
	if _, err := c.SetRuleSets(t.Context(), &l7proxyv1.SetRuleSetsRequest{RuleSets: []*l7proxyv1.NumberedRuleSet{
		{Number: 2, AllOf: []*policyv1.RuleSet{{Rules: []*policyv1.HTTPRule{{
			Method: str("GET"), Path: str("/a"), Host: str("h"), Headers: []*policyv1.HeaderRule{{Name: "x", Value: str("1")}, {Name: "y"}},
		}}}}},
		{Number: 3, AllOf: []*policyv1.RuleSet{{Rules: []*policyv1.HTTPRule{{Path: str("(")}}}}},
		{Number: 4, AllOf: []*policyv1.RuleSet{{}}},
		{Number: 5},
	}}); err != nil {
		t.Fatal(err)
	}
	<-s.Taught()
	good := httprule.Request{Method: "GET", Path: "/a", Host: "h", Headers: []httprule.Header{{Name: "x", Value: "1"}, {Name: "y"}}}
	if d := table.Get(2).Judge(good); !d.Allowed {
		t.Errorf("rule set 2: %+v", d)
	}
	for _, bad := range []httprule.Request{
		{Method: "GET", Path: "/a", Host: "h", Headers: good.Headers[:1]}, {Method: "GET", Path: "/a", Host: "i", Headers: good.Headers},
	} {
		if d := table.Get(2).Judge(bad); d.Allowed {
			t.Errorf("rule set 2 lets %+v pass", bad)
		}
	}
	for _, n := range []uint32{3, 4, 5} {
		if set := table.Get(n); set == nil || set.Judge(good).Allowed {
			t.Errorf("rule set %d, which says nothing that could match, lets a request pass or is not known", n)
		}
	}
	for _, n := range []uint32{0, 1} {
		if _, err := c.SetRuleSets(t.Context(), &l7proxyv1.SetRuleSetsRequest{RuleSets: []*l7proxyv1.NumberedRuleSet{{Number: n}}}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("number %d: %v, want InvalidArgument", n, err)
		}
	}
	st, err := c.GetStatus(t.Context(), &l7proxyv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := &l7proxyv1.GetStatusResponse{Version: "v9", Connections: 3, Requests: 20, Denied: 4, RuleSets: 4}
	if d := cmp.Diff(want, st, protocmp.Transform()); d != "" {
		t.Errorf("status (-want +got):\n%s", d)
	}
}

func verdict(path string) proxy.Verdict {
	return proxy.Verdict{
		Time: time.Unix(1, 5), Method: "GET", Path: path, Host: "h\x1b[2J", Status: 403, Denied: true, Reason: "http-denied", RuleSet: 2, Rule: -1,
		Flow: proxy.Flow{Direction: proxy.Egress, Client: netip.MustParseAddrPort("10.0.0.1:5"), Server: netip.MustParseAddrPort("[fd00::1]:80")},
	}
}

func TestWatchRequests(t *testing.T) {
	s, _, ring := newServer()
	stream, err := serve(t, s).WatchRequests(t.Context(), &l7proxyv1.WatchRequestsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.After(5 * time.Second)
	got := make(chan *l7proxyv1.WatchRequestsResponse, 1)
	go func() {
		m, err := stream.Recv()
		if err != nil {
			t.Error(err)
		}
		got <- m
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-deadline:
			t.Fatal("no verdict")
		case <-tick.C:
			ring.Add(verdict("/a\x00")) // until the watcher is there
			continue
		case m := <-got:
			want := &l7proxyv1.RequestVerdict{
				TimeUnixNano: 1_000_000_005, Direction: policyv1.Direction_DIRECTION_EGRESS,
				Source: []byte{10, 0, 0, 1}, Destination: netip.MustParseAddr("fd00::1").AsSlice(), SourcePort: 5, DestinationPort: 80,
				Method: "GET", Path: "/a?", Host: "h?[2J", Status: 403, Denied: true, Reason: "http-denied", RuleSet: 2, Rule: -1,
			}
			if d := cmp.Diff(want, m.GetVerdicts()[0], protocmp.Transform()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			return
		}
	}
}

// A watcher that does not take its verdicts loses the newest, and is told.
func TestRingCountsWhatIsLost(t *testing.T) {
	var r Ring
	slow, fast := r.watch(), r.watch()
	for i := range waiting + 10 {
		r.Add(verdict(strings.Repeat("x", i%10)))
		if v, lost := r.take(fast); len(v) != 1 || lost != 0 {
			t.Fatalf("the fast one gets %d and loses %d", len(v), lost)
		}
	}
	if v, lost := r.take(slow); len(v) != waiting || lost != 10 {
		t.Errorf("the slow one gets %d and loses %d, want %d and 10", len(v), lost, waiting)
	}
	if v, lost := r.take(slow); len(v) != 0 || lost != 0 {
		t.Errorf("and then %d and %d", len(v), lost)
	}
	r.forget(slow)
	r.forget(fast)
	r.Add(verdict("/"))
	if v, _ := r.take(slow); len(v) != 0 {
		t.Error("a forgotten watcher gets verdicts")
	}
}
