// Package replica is one weir-policy: it wires the source, the log, the catalog
// and the server, and runs them until it is stopped.
package replica

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"weir.dev/weir/internal/bus"
	kitserver "weir.dev/weir/internal/server"
	kit "weir.dev/weir/internal/source"
	"weir.dev/weir/internal/statelog"
	"weir.dev/weir/internal/tlsconf"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/policy/internal/catalog"
	"weir.dev/weir/services/policy/internal/lead"
	"weir.dev/weir/services/policy/internal/server"
	"weir.dev/weir/services/policy/internal/source"
	"weir.dev/weir/services/policy/internal/status"
)

// Config is what the flags say.
type Config struct {
	Name      string // of this replica
	Cluster   string
	NATS      string
	Manifests []string
	Server    kitserver.Config
	// Replay stands in for statelog.Replay in tests that hold a replica back.
	Replay func(ctx context.Context, open bus.Opener, log *slog.Logger, apply func(statelog.Batch))
}

// Run serves until ctx ends.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	reg := prometheus.NewRegistry()
	srv, err := kitserver.New(cfg.Server, log, reg)
	if err != nil {
		return err
	}
	nc, err := bus.Connect(bus.Config{
		URL: cfg.NATS, TLSDir: cfg.Server.TLSDir, Role: tlsconf.Policy, Name: cfg.Name,
	}, log)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	state := bus.Opener(func(ctx context.Context) (jetstream.KeyValue, error) { return bus.State(ctx, js) })
	store, view, cat := kit.NewStore(), statelog.NewView(), catalog.New(log)
	nodes, latency := status.New(time.Now), status.NewLatency()
	var leader atomic.Bool
	m, err := newMetrics(reg, cat, nodes, store, &leader)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	policyv1.RegisterPolicyServiceServer(srv.Registrar(), server.New(server.Config{
		Replica: cfg.Name, Catalog: cat, Nodes: nodes, Source: store, Leader: leader.Load, Sent: m.sent,
		Started: time.Now(), Log: log, Stop: ctx.Done(),
	}))
	srv.ReadyCheck("replayed", cat.Ready)
	leading := lead.Leader{
		Source: store, View: view, Writer: statelog.NewWriter(bus.Cached(state)), Nodes: nodes, Log: log,
	}
	replay := cfg.Replay
	if replay == nil {
		replay = statelog.Replay
	}

	g.Go(func() error { return srv.Run(ctx) })
	g.Go(func() error { return kit.NewManifests(cfg.Manifests, source.Decode, log).Run(ctx, store.Apply) })
	g.Go(func() error {
		replay(ctx, state, log, func(b statelog.Batch) {
			live := cat.Ready() == nil && !b.Reset
			view.Apply(b)
			cat.Apply(b)
			if live && leader.Load() {
				m.begin(b, latency)
			}
		})
		return nil
	})
	g.Go(func() error { return nodes.Exchange(ctx, nc, cfg.Name, log) })
	g.Go(func() error { latency.Follow(ctx, nodes); return nil })
	g.Go(func() error {
		lease := statelog.Lease{Name: "policy", Replica: cfg.Name}
		leases := func(ctx context.Context) (jetstream.KeyValue, error) { return bus.Leases(ctx, js) }
		return lease.Hold(ctx, leases, log, func(ctx context.Context) error {
			leader.Store(true)
			defer leader.Store(false)
			return leading.Lead(ctx)
		})
	})
	return g.Wait()
}
