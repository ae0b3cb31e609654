package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"weir.dev/weir/internal/handover"
	l7proxyv1 "weir.dev/weir/proto/weir/l7proxy/v1"
)

// A connection's requests are judged by its slot in conntrack, and reach the
// server from the client's own address and port.
func TestProxy(t *testing.T) {
	n := newNode(t)
	n.app(t, "127.0.0.1:15001")
	n.app(t, "[::1]:15001")
	stop := n.start(t)
	enforcer := n.serve(t)
	api := n.client(t)
	ctx := n.ctx
	if _, err := api.SetRuleSets(ctx, &l7proxyv1.SetRuleSetsRequest{
		RuleSets: []*l7proxyv1.NumberedRuleSet{ruleSet(2, "/public"), ruleSet(3, "/other"), ruleSet(4, "(")}, Complete: true,
	}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	n.expect(t, enforcer, handover.Accepting)
	watch, err := api.WatchRequests(ctx, &l7proxyv1.WatchRequestsRequest{})
	if err != nil {
		t.Fatal(err)
	}

	t.Run("requests", func(t *testing.T) {
		const client, server = "127.0.0.9:40001", "127.0.0.1:15001"
		n.judge(t, client, server, 2, 2)
		c := n.dial(t, client, server)
		for _, want := range []struct{ path, answer string }{
			{"/public", "200 /public from " + client},
			{"/private", "403 Access denied"},
			{"/public", "200 /public from " + client},
		} {
			if got := get(t, c, want.path); got != want.answer {
				t.Errorf("GET %s: %q, want %q", want.path, got, want.answer)
			}
		}
	})
	t.Run("another rule set on the same connection", func(t *testing.T) {
		const client, server = "127.0.0.9:40002", "127.0.0.1:15001"
		n.judge(t, client, server, 2, 2)
		c := n.dial(t, client, server)
		if got := get(t, c, "/other"); got != "403 Access denied" {
			t.Errorf("before: %q", got)
		}
		n.judge(t, client, server, 4, 3)
		n.setWord(4)
		if got := get(t, c, "/other"); got != "200 /other from "+client {
			t.Errorf("after: %q", got)
		}
		n.judge(t, client, server, 6, 1)
		n.setWord(6)
		if got := get(t, c, "/any"); got != "200 /any from "+client {
			t.Errorf("when all is allowed: %q", got)
		}
		if err := n.ct.Delete(ctKey(client, server)); err != nil {
			t.Fatal(err)
		}
		n.setWord(8)
		if got := get(t, c, "/any"); got != "403 Access denied" {
			t.Errorf("without a slot: %q", got)
		}
		n.setWord(2)
	})
	t.Run("a connection without a judgement", func(t *testing.T) {
		c := n.dial(t, "127.0.0.9:40003", "127.0.0.1:15001")
		if got := get(t, c, "/public"); got != "403 Access denied" {
			t.Errorf("%q", got)
		}
	})
	t.Run("a rule set that does not compile denies", func(t *testing.T) {
		n.judge(t, "127.0.0.9:40004", "127.0.0.1:15001", 2, 4)
		c := n.dial(t, "127.0.0.9:40004", "127.0.0.1:15001")
		if got := get(t, c, "/public"); got != "403 Access denied" {
			t.Errorf("%q", got)
		}
	})
	// P18, beside the test of the listeners in proxynet.
	t.Run("P18 a client with the listener's port, and one below 1024", func(t *testing.T) {
		for _, client := range []string{"127.0.0.9:15001", "127.0.0.9:80"} {
			n.judge(t, client, "127.0.0.1:15001", 2, 2)
			c := n.dial(t, client, "127.0.0.1:15001")
			if got, want := get(t, c, "/public"), "200 /public from "+client; got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
	})
	t.Run("IPv6", func(t *testing.T) {
		const client, server = "[::1]:40005", "[::1]:15001"
		n.judge(t, client, server, 2, 2)
		c := n.dial(t, client, server)
		if got, want := get(t, c, "/public"), "200 /public from "+client; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
	t.Run("verdicts", func(t *testing.T) {
		m, err := watch.Recv()
		if err != nil || len(m.GetVerdicts()) == 0 {
			t.Fatalf("%v, %v", m, err)
		}
		v := m.GetVerdicts()[0]
		if v.GetPath() != "/public" || v.GetDenied() || v.GetStatus() != 200 || v.GetRuleSet() != 2 || v.GetSourcePort() != 40001 {
			t.Errorf("first verdict %v", v)
		}
		st, err := api.GetStatus(ctx, &l7proxyv1.GetStatusRequest{})
		if err != nil || st.GetRuleSets() != 3 || st.GetRequests() < 10 || st.GetDenied() < 4 {
			t.Errorf("status %v, %v", st, err)
		}
	})
	t.Run("metrics", func(t *testing.T) { checkMetrics(t, filepath.Join(n.dir, "proxy.http.sock")) })
	t.Run("retire", func(t *testing.T) {
		ended := make(chan error, 1)
		go func() { ended <- stop() }()
		n.expect(t, enforcer, handover.Retiring)
		if err := enforcer.Send(handover.Message{Kind: handover.Retire}); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Errorf("the proxy ends with %v", err)
		}
	})
}

func checkMetrics(t *testing.T, socket string) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer c.CloseIdleConnections()
	resp, err := c.Get("http://proxy/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.New(strings.NewReader(string(b))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "weir_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	for _, want := range []string{
		`weir_l7proxy_requests_total{direction="ingress",status="2xx"}`,
		`weir_l7proxy_denied_total{direction="ingress",reason="http-denied"}`,
		`weir_l7proxy_denied_total{direction="ingress",reason="http-no-judgement"}`,
		"weir_l7proxy_open_connections",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no metric %s", want)
		}
	}
}

// A client finds a dead server as it would without a proxy: reset.
func TestDeadServerIsAReset(t *testing.T) {
	n := newNode(t)
	n.start(t)
	enforcer := n.serve(t)
	if _, err := n.client(t).SetRuleSets(n.ctx, &l7proxyv1.SetRuleSetsRequest{Complete: true}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	n.expect(t, enforcer, handover.Accepting)
	n.judge(t, "127.0.0.9:40001", "127.0.0.1:15001", 2, 2)
	// The reset may come before the client has seen that it is connected.
	err := n.fails(t, "127.0.0.9:40001", "127.0.0.1:15001")
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
}

func TestFlags(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "--node is missing"},
		{[]string{"--node", "n1", "extra"}, "want flags only"},
		{[]string{"--node", "n1", "--log-level", "loud"}, "log level"},
		{[]string{"--nod", "n1"}, "flag provided but not defined"},
	} {
		var out strings.Builder
		code := run(tt.args, &out)
		if got := out.String(); code != 1 || !strings.Contains(got, tt.want) || strings.Count(got, "\n") != 1 {
			t.Errorf("run(%q) = %d, %q, want 1 and one line with %q", tt.args, code, got, tt.want)
		}
	}
	var out strings.Builder
	if code := run([]string{"--help"}, &out); code != 0 || !strings.Contains(out.String(), "-run-dir") {
		t.Errorf("--help: %d, %q", code, out.String())
	}
}
