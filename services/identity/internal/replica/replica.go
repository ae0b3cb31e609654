// Package replica is one weir-identity: it wires the source, the log, the
// address stream and the server, and runs them until it is stopped.
package replica

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/logkey"
	kitserver "weir.dev/weir/internal/server"
	kit "weir.dev/weir/internal/source"
	"weir.dev/weir/internal/statelog"
	"weir.dev/weir/internal/tlsconf"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	"weir.dev/weir/services/identity/internal/address"
	"weir.dev/weir/services/identity/internal/registry"
	"weir.dev/weir/services/identity/internal/server"
	"weir.dev/weir/services/identity/internal/source"
)

// headEvery is how often the head of the address stream is published.
const headEvery = time.Second

// Config is what the flags say.
type Config struct {
	Name      string // of this replica
	Cluster   string
	NATS      string
	Manifests []string
	Server    kitserver.Config
}

// Run serves until ctx ends.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	reg := prometheus.NewRegistry()
	srv, err := kitserver.New(cfg.Server, log, reg)
	if err != nil {
		return err
	}
	nc, err := bus.Connect(bus.Config{
		URL: cfg.NATS, TLSDir: cfg.Server.TLSDir, Role: tlsconf.Identity, Name: cfg.Name,
	}, log)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	store, view, book := kit.NewStore(), statelog.NewView(), address.NewBook()
	state := bus.Opener(func(ctx context.Context) (jetstream.KeyValue, error) { return bus.State(ctx, js) })
	records := bus.Opener(func(ctx context.Context) (jetstream.KeyValue, error) { return bus.AddressRecords(ctx, js) })
	writer := address.NewWriter(bus.Cached(records), book, func(r *identityv1.AddressRecord) bool { return registry.Alive(store, r) })
	rgy := registry.New(registry.Config{
		Cluster: cfg.Cluster, Source: store, Log: statelog.NewWriter(bus.Cached(state)), View: view, Writer: writer, Book: book, Logger: log,
	})
	var leader atomic.Bool
	identityv1.RegisterIdentityServiceServer(srv.Registrar(), server.New(server.Config{
		Replica: cfg.Name, Registry: rgy, Book: book, Writer: writer, View: view, Source: store,
		Leader: leader.Load, Started: time.Now(),
	}))
	if err := register(reg, view, book, store, &leader); err != nil {
		return err
	}
	srv.ReadyCheck("replayed", rgy.Ready)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return srv.Run(ctx) })
	g.Go(func() error { return kit.NewManifests(cfg.Manifests, source.Decode, log).Run(ctx, store.Apply) })
	g.Go(func() error { statelog.Replay(ctx, state, log, view.Apply); return nil })
	g.Go(func() error { book.Follow(ctx, records, log); return nil })
	g.Go(func() error { publishHead(ctx, nc, writer, log); return nil })
	g.Go(func() error {
		lease := statelog.Lease{Name: "identity", Replica: cfg.Name}
		leases := func(ctx context.Context) (jetstream.KeyValue, error) { return bus.Leases(ctx, js) }
		return lease.Hold(ctx, leases, log, func(ctx context.Context) error {
			leader.Store(true)
			defer leader.Store(false)
			return rgy.Lead(ctx)
		})
	})
	return g.Wait()
}

// publishHead tells nodes each second where the address stream ends, so that
// they notice a last message that did not reach them.
func publishHead(ctx context.Context, nc *nats.Conn, w *address.Writer, log *slog.Logger) {
	tick := time.NewTicker(headEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := publishOnce(ctx, nc, w); err != nil && nc.IsConnected() && ctx.Err() == nil {
			log.Warn("head of the address stream not published", logkey.Error, err)
		}
	}
}

func publishOnce(ctx context.Context, nc *nats.Conn, w *address.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, headEvery)
	defer cancel()
	head, err := w.Head(ctx)
	if err != nil {
		return err
	}
	text, err := proto.Marshal(&identityv1.AddressHead{Sequence: head.Sequence, CreatedUnixNano: head.Created.UnixNano()})
	if err != nil {
		return fmt.Errorf("encode the head: %w", err)
	}
	return nc.Publish(bus.AddressHead, text)
}

// register adds the metrics of what the replica holds.
func register(reg *prometheus.Registry, view *statelog.View, book *address.Book, store *kit.Store, leader *atomic.Bool) error {
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "weir", Subsystem: "identity", Name: name, Help: help}, f)
	}
	for _, c := range []prometheus.Collector{
		gauge("revision", "Revision of the state log that this replica has replayed.",
			func() float64 { return float64(view.Position().Revision) }),
		gauge("address_sequence", "Sequence of the address stream that this replica has replayed.",
			func() float64 { h, _ := book.Head(); return float64(h.Sequence) }),
		gauge("addresses", "Address records that are known.", func() float64 { return float64(book.Len()) }),
		gauge("refused_objects", "Objects of the source that are refused.", func() float64 { return float64(len(store.Refused())) }),
		gauge("leader", "Is 1 while this replica holds the lease.", func() float64 {
			if leader.Load() {
				return 1
			}
			return 0
		}),
	} {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}
