package server_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	identityv1 "weir.dev/weir/proto/weir/identity/v1"

	"weir.dev/weir/internal/server"
	"weir.dev/weir/internal/tlsconf"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// whoami answers GetStatus with the caller's name, and panics when asked to.
type whoami struct {
	identityv1.UnimplementedIdentityServiceServer
}

func (whoami) GetStatus(ctx context.Context, _ *identityv1.GetStatusRequest) (*identityv1.GetStatusResponse, error) {
	n, ok := tlsconf.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "nobody")
	}
	return &identityv1.GetStatusResponse{Replica: n.String()}, nil
}

func (whoami) Lookup(context.Context, *identityv1.LookupRequest) (*identityv1.LookupResponse, error) {
	panic("on purpose")
}

type fixture struct {
	dir    string
	listen string
	ca     *tlsconf.CA
	ready  atomic.Bool
	reg    *prometheus.Registry
}

func start(t *testing.T, callers ...tlsconf.Role) *fixture {
	t.Helper()
	ca, err := tlsconf.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{dir: t.TempDir(), ca: ca, reg: prometheus.NewRegistry(), listen: freePort(t)}
	tlsDir := filepath.Join(f.dir, "tls")
	if err := ca.Issue(tlsDir, tlsconf.Name{Role: tlsconf.Identity, Name: "identity-0"}, nil); err != nil {
		t.Fatal(err)
	}
	s, err := server.New(server.Config{
		Listen: f.listen, Socket: f.path("grpc"), HTTP: f.path("http"), TLSDir: tlsDir, Version: "test", Callers: callers,
	}, slog.New(slog.DiscardHandler), f.reg)
	if err != nil {
		t.Fatal(err)
	}
	identityv1.RegisterIdentityServiceServer(s.Registrar(), whoami{})
	s.ReadyCheck("replayed", func() error {
		if !f.ready.Load() {
			return errors.New("at revision 3 of 7")
		}
		return nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	f.await(t)
	return f
}

// await returns when the last of the listeners, the HTTP one, is there.
func (f *fixture) await(t *testing.T) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := net.Dial("unix", f.path("http")); err == nil {
			c.Close()
			return
		}
		select {
		case <-deadline:
			t.Fatal("the server does not listen")
		case <-tick.C:
		}
	}
}

func (f *fixture) path(name string) string { return filepath.Join(f.dir, name+".sock") }

func freePort(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	return lis.Addr().String()
}

func dial(t *testing.T, target string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (f *fixture) get(t *testing.T, path string) (int, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", f.path("http"))
	}}
	r, err := (&http.Client{Transport: tr}).Get("http://part" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

func TestCallersAreNamed(t *testing.T) {
	f := start(t)
	conf, err := func() (credentials.TransportCredentials, error) {
		dir := filepath.Join(f.dir, "n1")
		if err := f.ca.Issue(dir, tlsconf.Name{Role: tlsconf.Node, Name: "n1"}, nil); err != nil {
			return nil, err
		}
		c, err := tlsconf.Client(dir, tlsconf.Identity)
		return credentials.NewTLS(c), err
	}()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		target string
		creds  credentials.TransportCredentials
		want   string
	}{
		{f.listen, conf, "node/n1"},
		{"unix:" + f.path("grpc"), insecure.NewCredentials(), "cli/local"},
	} {
		r, err := identityv1.NewIdentityServiceClient(dial(t, tc.target, tc.creds)).GetStatus(t.Context(), &identityv1.GetStatusRequest{})
		if err != nil || r.GetReplica() != tc.want {
			t.Errorf("%s: got %q, %v; want %q", tc.target, r.GetReplica(), err, tc.want)
		}
	}
}

func TestOnlyNamedRolesMayCall(t *testing.T) {
	f := start(t, tlsconf.CLI)
	for _, tt := range []struct {
		name string
		role tlsconf.Role // empty: on the unix socket
		want codes.Code
	}{
		{"another node", tlsconf.Node, codes.PermissionDenied},
		{"another service", tlsconf.Policy, codes.PermissionDenied},
		{"an operator", tlsconf.CLI, codes.OK},
		{"the operator of this machine", "", codes.OK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target, creds := "unix:"+f.path("grpc"), insecure.NewCredentials()
			if tt.role != "" {
				dir := filepath.Join(t.TempDir(), "tls")
				if err := f.ca.Issue(dir, tlsconf.Name{Role: tt.role, Name: "n2"}, nil); err != nil {
					t.Fatal(err)
				}
				conf, err := tlsconf.Client(dir, tlsconf.Identity)
				if err != nil {
					t.Fatal(err)
				}
				target, creds = "passthrough:///"+f.listen, credentials.NewTLS(conf)
			}
			c := dial(t, target, creds)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := identityv1.NewIdentityServiceClient(c).GetStatus(ctx, &identityv1.GetStatusRequest{})
			if got := status.Code(err); got != tt.want {
				t.Errorf("GetStatus: %v (%v), want %v", got, err, tt.want)
			}
			str, err := identityv1.NewIdentityServiceClient(c).Snapshot(ctx, &identityv1.SnapshotRequest{})
			if err == nil {
				_, err = str.Recv()
			}
			if got := status.Code(err) == codes.PermissionDenied; got != (tt.want == codes.PermissionDenied) {
				t.Errorf("Snapshot: %v, want denied: %v", err, tt.want == codes.PermissionDenied)
			}
			if _, err := healthpb.NewHealthClient(c).Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
				t.Errorf("health is for all: %v", err)
			}
		})
	}
}

func TestPanicFailsOneCall(t *testing.T) {
	f := start(t)
	c := identityv1.NewIdentityServiceClient(dial(t, "unix:"+f.path("grpc"), insecure.NewCredentials()))
	if _, err := c.Lookup(t.Context(), &identityv1.LookupRequest{}); status.Code(err) != codes.Internal {
		t.Errorf("Lookup: %v, want Internal", err)
	}
	if _, err := c.GetStatus(t.Context(), &identityv1.GetStatusRequest{}); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

func TestReadinessIsTheSameEverywhere(t *testing.T) {
	f := start(t)
	h := healthpb.NewHealthClient(dial(t, "unix:"+f.path("grpc"), insecure.NewCredentials()))
	w, err := h.Watch(t.Context(), &healthpb.HealthCheckRequest{Service: "weir.identity.v1.IdentityService"})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := w.Recv(); err != nil || r.Status != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Fatalf("before: %v, %v", r, err)
	}
	if code, body := f.get(t, "/readyz?verbose"); code != 503 || !strings.Contains(body, "[-] replayed: at revision 3 of 7") {
		t.Errorf("before: %d %q", code, body)
	}
	f.ready.Store(true)
	if r, err := w.Recv(); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("after: %v, %v", r, err)
	}
	for path, want := range map[string]string{"/readyz": "ok\n", "/readyz?verbose": "[+] replayed ok\n", "/livez": "ok\n"} {
		if code, body := f.get(t, path); code != 200 || body != want {
			t.Errorf("%s: %d %q, want 200 %q", path, code, body, want)
		}
	}
}

func TestMetricsAreWellNamed(t *testing.T) {
	f := start(t)
	if code, body := f.get(t, "/metrics"); code != 200 || !strings.Contains(body, `weir_build_info{version="test"} 1`) {
		t.Errorf("/metrics: %d, no weir_build_info", code)
	}
	problems, err := testutil.GatherAndLint(f.reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestLoggerNamesTheBadFlag(t *testing.T) {
	if _, err := server.Logger("loud", "text"); err == nil || !strings.Contains(err.Error(), "loud") {
		t.Errorf("level: %v", err)
	}
	if _, err := server.Logger("info", "xml"); err == nil || !strings.Contains(err.Error(), "xml") {
		t.Errorf("format: %v", err)
	}
}
