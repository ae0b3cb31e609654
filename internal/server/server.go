// Package server is the bootstrap that every service shares: gRPC over TLS and
// on a unix socket, health, reflection, interceptors, and /metrics, /livez,
// /readyz on a unix socket. It decides nothing about what a service does.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"weir.dev/weir/internal/tlsconf"
)

// drain is how long a stop waits for calls under way; streams are cut after it.
const drain = 2 * time.Second

// maxMessage bounds one message; larger state is sent in parts.
const maxMessage = 8 << 20

// Config says where to listen. An empty field is not listened on.
type Config struct {
	Listen  string // HOST:PORT, gRPC over TLS 1.3 with client certificates
	Socket  string // path, gRPC for the operator of this machine
	HTTP    string // path, /metrics /livez /readyz
	TLSDir  string // for Listen
	Version string
	// Callers are the roles that may call the registered services; empty: the
	// services ask themselves who calls. Health and reflection are for all.
	Callers []tlsconf.Role
	// Open listeners for a process that may not make them itself, in place of
	// the paths.
	SocketListener net.Listener
	HTTPListener   net.Listener
}

// Server serves the registered services until its context ends. Register and
// add checks before Run.
type Server struct {
	cfg    Config
	log    *slog.Logger
	reg    *prometheus.Registry
	tcp    *grpc.Server // nil without Listen
	unix   *grpc.Server // nil without Socket
	health *health.Server
	prom   *grpcprom.ServerMetrics
	checks []check
}

type check struct {
	name string
	f    func() error
}

// New makes a server and registers the metrics that all services have in reg.
func New(cfg Config, log *slog.Logger, reg *prometheus.Registry) (*Server, error) {
	s := &Server{
		cfg:    cfg,
		log:    log,
		reg:    reg,
		health: health.NewServer(),
		prom:   grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram()),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "weir_build_info",
		Help:        "Is 1; its labels tell the build.",
		ConstLabels: prometheus.Labels{"version": cfg.Version},
	})
	build.Set(1)
	for _, c := range []prometheus.Collector{s.prom, build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	if cfg.Listen != "" {
		conf, err := tlsconf.Server(cfg.TLSDir)
		if err != nil {
			return nil, err
		}
		s.tcp = s.grpcServer(conf)
	}
	if cfg.Socket != "" || cfg.SocketListener != nil {
		s.unix = s.grpcServer(nil)
	}
	return s, nil
}

func (s *Server) grpcServer(conf *tls.Config) *grpc.Server {
	unary, stream := interceptors(s.log, s.prom, s.cfg.Callers)
	opts := []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(unary...),
		grpc.ChainStreamInterceptor(stream...),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
	if conf != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(conf)))
	}
	g := grpc.NewServer(opts...)
	healthpb.RegisterHealthServer(g, s.health)
	reflection.Register(g)
	return g
}

// Registrar registers a service on every listener.
func (s *Server) Registrar() grpc.ServiceRegistrar { return registrar{s} }

type registrar struct{ s *Server }

func (r registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	for _, g := range []*grpc.Server{r.s.tcp, r.s.unix} {
		if g != nil {
			g.RegisterService(desc, impl)
		}
	}
	r.s.health.SetServingStatus(desc.ServiceName, healthpb.HealthCheckResponse_NOT_SERVING)
}

// ReadyCheck adds a condition of readiness. f must not block, may be called by
// several goroutines, and returns what is missing.
func (s *Server) ReadyCheck(name string, f func() error) {
	s.checks = append(s.checks, check{name, f})
}

// Run serves until ctx ends, then stops: no new calls, a while for those under
// way, then cut. It returns nil after a clean stop.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if err := s.serveGRPC(ctx, g); err != nil {
		return err
	}
	if err := s.serveHTTP(ctx, g); err != nil {
		return err
	}
	g.Go(func() error { return s.watchReady(ctx) })
	return g.Wait()
}

func (s *Server) serveGRPC(ctx context.Context, g *errgroup.Group) error {
	if s.tcp != nil {
		lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.Listen)
		if err != nil {
			return fmt.Errorf("listen for gRPC: %w", err)
		}
		run(ctx, g, s.tcp, lis)
	}
	if s.unix != nil {
		lis, err := orListen(ctx, s.cfg.SocketListener, s.cfg.Socket)
		if err != nil {
			return err
		}
		run(ctx, g, s.unix, lis)
	}
	return nil
}

func run(ctx context.Context, g *errgroup.Group, srv *grpc.Server, lis net.Listener) {
	g.Go(func() error {
		if err := srv.Serve(lis); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve gRPC on %s: %w", lis.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		done := make(chan struct{})
		go func() { srv.GracefulStop(); close(done) }()
		limit := time.NewTimer(drain)
		defer limit.Stop()
		select {
		case <-done:
		case <-limit.C:
			srv.Stop()
			<-done
		}
		return nil
	})
}

func (s *Server) serveHTTP(ctx context.Context, g *errgroup.Group) error {
	if s.cfg.HTTP == "" && s.cfg.HTTPListener == nil {
		return nil
	}
	lis, err := orListen(ctx, s.cfg.HTTPListener, s.cfg.HTTP)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second}
	g.Go(func() error {
		if err := srv.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve HTTP on %s: %w", lis.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			return srv.Close()
		}
		return nil
	})
	return nil
}

// watchReady keeps the health service in step with the checks.
func (s *Server) watchReady(ctx context.Context) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	ready := false
	for {
		if now := s.Ready() == nil; now != ready {
			ready = now
			s.setServing(ready)
			s.log.Info("readiness changed", "ready", ready)
		}
		select {
		case <-ctx.Done():
			s.health.Shutdown()
			return nil
		case <-tick.C:
		}
	}
}

func (s *Server) setServing(ready bool) {
	status := healthpb.HealthCheckResponse_NOT_SERVING
	if ready {
		status = healthpb.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus("", status)
	for _, g := range []*grpc.Server{s.tcp, s.unix} {
		if g == nil {
			continue
		}
		for name := range g.GetServiceInfo() {
			s.health.SetServingStatus(name, status)
		}
	}
}

// Ready returns what is missing, all of it, or nil.
func (s *Server) Ready() error {
	var missing []error
	for _, c := range s.checks {
		if err := c.f(); err != nil {
			missing = append(missing, fmt.Errorf("%s: %w", c.name, err))
		}
	}
	return errors.Join(missing...)
}

// orListen returns the open listener, or else one on path.
func orListen(ctx context.Context, open net.Listener, path string) (net.Listener, error) {
	if open != nil {
		return open, nil
	}
	return ListenUnix(ctx, path)
}

// ListenUnix listens on path, which only this user may open. It takes the place
// of a socket that a dead process has left.
func ListenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	lis, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), lis.Close())
	}
	return lis, nil
}

// Logger makes the logger of a process from its flags: level debug, info, warn
// or error; format text or json.
func Logger(level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: want debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, opts)), nil
	}
	return nil, fmt.Errorf("log format %q: want text or json", format)
}
