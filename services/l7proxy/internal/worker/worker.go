// Package worker is the part of weir-l7proxy that talks to strangers: the core
// with its real connections, sockets and conntrack, and its gRPC server. It
// runs without privileges and has what its parent passes it.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"weir.dev/weir/internal/handover"
	"weir.dev/weir/internal/logkey"
	bootstrap "weir.dev/weir/internal/server"
	"weir.dev/weir/internal/version"
	l7proxyv1 "weir.dev/weir/proto/weir/l7proxy/v1"
	"weir.dev/weir/services/l7proxy/internal/judgement"
	"weir.dev/weir/services/l7proxy/internal/proxy"
	"weir.dev/weir/services/l7proxy/internal/rules"
	"weir.dev/weir/services/l7proxy/internal/server"
	"weir.dev/weir/services/l7proxy/internal/upstream"
)

// Files that the parent passes.
type Files struct {
	Parent *os.File
	GRPC   *os.File
	HTTP   *os.File // nil: no metrics are served
}

// worker is a running worker.
type worker struct {
	log    *slog.Logger
	parent *handover.Conn
	pool   *upstream.Pool
	view   *judgement.View
	core   *proxy.Proxy
	server *server.Server

	mu        sync.Mutex
	accepting []*generation // of listeners; the last is the live one
}

// A generation is the listeners of one enforcer.
type generation struct {
	listeners []directed
	stop      context.CancelFunc
	done      chan struct{}
}

type directed struct {
	net.Listener
	direction proxy.Direction
}

// Run serves until the parent says so, or is gone.
func Run(ctx context.Context, files Files, log *slog.Logger) error {
	parent, err := handover.FromFile(files.Parent)
	if err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	metrics := proxy.NewMetrics(reg)
	bounds, err := limits()
	if err != nil {
		return errors.Join(err, parent.Close())
	}
	w := &worker{log: log, parent: parent, view: &judgement.View{}}
	w.pool = upstream.NewPool(func(ns handover.Namespace, family, n int) error {
		return parent.Send(handover.Message{Kind: handover.Want, Namespace: ns, Family: family, Count: n})
	})
	var table rules.Table
	var ring server.Ring
	w.core = proxy.New(proxy.Config{
		Rules: &table, Connections: w.view, Dialer: upstream.Dialer{Pool: w.pool},
		Limits: bounds, Metrics: metrics, Verdict: ring.Add,
	}, log)
	w.server = server.New(server.Config{
		Version: version.Version, Rules: &table, Ring: &ring, Log: log,
		Counts: counts{w.core, metrics},
	})
	registerGauges(reg, w, &table)
	srv, err := w.bootstrap(files, reg)
	if err != nil {
		return errors.Join(err, parent.Close())
	}
	return w.run(ctx, srv)
}

// limits are those of a node, or what this process' open files allow: a
// connection takes two, three while it is made, and some are in use beside them.
func limits() (proxy.Limits, error) {
	const each, beside = 3, 2500
	l := proxy.DefaultLimits()
	var files unix.Rlimit
	// Not Getrlimit: on some machines that is a system call of its own, which a
	// worker may not make.
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &files); err != nil {
		return l, fmt.Errorf("ask how many files may be open: %w", err)
	}
	if files.Cur < uint64(each*l.Connections+beside) {
		l.Connections = max(16, (int(files.Cur)-beside)/each)
		l.PerClient = max(4, l.Connections/4)
	}
	return l, nil
}

func (w *worker) bootstrap(files Files, reg *prometheus.Registry) (*bootstrap.Server, error) {
	cfg := bootstrap.Config{Version: version.Version}
	var err error
	if cfg.SocketListener, err = listener(files.GRPC); err != nil {
		return nil, err
	}
	if files.HTTP != nil {
		if cfg.HTTPListener, err = listener(files.HTTP); err != nil {
			return nil, err
		}
	}
	srv, err := bootstrap.New(cfg, w.log, reg)
	if err != nil {
		return nil, err
	}
	l7proxyv1.RegisterProxyServiceServer(srv.Registrar(), w.server)
	srv.ReadyCheck("handover", func() error {
		if !w.isAccepting() {
			return errors.New("no connections are accepted: no enforcer has handed its listeners over and set rule sets")
		}
		return nil
	})
	return srv, nil
}

func listener(f *os.File) (net.Listener, error) {
	ln, err := net.FileListener(f) // has a descriptor of its own
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("take over listener: %w", err)
	}
	return ln, nil
}

// counts joins what the core and its metrics count.
type counts struct {
	*proxy.Proxy
	m *proxy.Metrics
}

func (c counts) Requests() (all, denied uint64) { return c.m.Requests() }

func registerGauges(reg *prometheus.Registry, w *worker, table *rules.Table) {
	gauge := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "weir", Subsystem: "l7proxy", Name: name, Help: help,
		}, f))
	}
	gauge("open_connections", "Connections that are open.", func() float64 { return float64(w.core.Open()) })
	gauge("rule_sets", "Rule sets that are known.", func() float64 { return float64(len(table.Numbers())) })
	gauge("ready_sockets", "Transparent sockets ready, of the kind that has fewest.", func() float64 { return float64(w.pool.Ready()) })
}

// run serves gRPC and connections until the parent lets the worker go, and
// drains the connections then.
func (w *worker) run(ctx context.Context, srv *bootstrap.Server) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return srv.Run(ctx) })
	g.Go(func() error { w.core.WatchTunnels(ctx); return nil })
	retired := make(chan error, 1)
	go func() { retired <- w.followParent(ctx) }()
	var err error
	select {
	case err = <-retired:
		if err == nil {
			w.stopAccepting()
			w.core.HandOver(w.give)
			w.core.Drain(ctx)
		}
	case <-ctx.Done():
	}
	w.server.End()
	cancel()
	w.stopAccepting()
	closed := w.parent.Close()
	w.pool.Close()
	return errors.Join(err, g.Wait(), closed, w.view.Close())
}

// errOrphaned: the parent is gone, and with it the right to serve.
var errOrphaned = errors.New("the parent is gone")

// followParent takes what the parent passes. It returns nil when the worker is
// to end.
func (w *worker) followParent(ctx context.Context) error {
	for {
		m, files, err := w.parent.Receive()
		if m.Kind == handover.Connection && errors.Is(err, handover.ErrFiles) {
			w.log.Warn("connection not taken over", logkey.Error, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errOrphaned, err)
		}
		switch m.Kind {
		case handover.Offer:
			if err := w.offered(ctx, m, files); err != nil {
				return err
			}
		case handover.Sockets:
			w.pool.Add(m.Namespace, m.Family, files)
		case handover.Connection:
			if err := w.adopt(m, files); err != nil {
				w.log.Warn("connection not taken over", logkey.Error, err)
			}
		case handover.Retire:
			handover.CloseAll(files)
			return nil
		default:
			handover.CloseAll(files)
			return fmt.Errorf("message of kind %q from the parent", m.Kind)
		}
	}
}

// offered takes an enforcer's sockets and maps, and accepts on them as soon as
// sockets and rule sets are there.
func (w *worker) offered(ctx context.Context, m handover.Message, files []*os.File) error {
	byName := map[handover.File]*os.File{}
	for i, name := range m.Files {
		byName[name] = files[i]
	}
	gen := &generation{done: make(chan struct{})}
	for _, l := range []struct {
		name      handover.File
		direction proxy.Direction
	}{
		{handover.ListenerIn4, proxy.Ingress}, {handover.ListenerIn6, proxy.Ingress},
		{handover.ListenerOut4, proxy.Egress}, {handover.ListenerOut6, proxy.Egress},
	} {
		f := byName[l.name]
		if f == nil {
			return fmt.Errorf("%w: %s", handover.ErrFiles, l.name)
		}
		ln, err := listener(f)
		if err != nil {
			return err
		}
		gen.listeners = append(gen.listeners, directed{ln, l.direction})
	}
	if byName[handover.CtTCP] == nil || byName[handover.Word] == nil {
		return fmt.Errorf("%w: conntrack or the live word", handover.ErrFiles)
	}
	if err := w.view.Set(byName[handover.CtTCP], byName[handover.Word]); err != nil {
		return err
	}
	if err := w.pool.Renew(); err != nil {
		return err
	}
	return w.accept(ctx, gen)
}

// accept starts to serve a generation, once rule sets are known: until then
// the enforcer answers.
func (w *worker) accept(ctx context.Context, gen *generation) error {
	ctx, gen.stop = context.WithCancel(ctx)
	w.mu.Lock()
	w.accepting = append(w.accepting, gen)
	w.mu.Unlock()
	go func() {
		defer close(gen.done)
		select {
		case <-ctx.Done():
			for _, ln := range gen.listeners {
				if err := ln.Close(); err != nil {
					w.log.Warn("close listener", logkey.Error, err)
				}
			}
			return
		case <-w.server.Taught():
		}
		if err := w.parent.Send(handover.Message{Kind: handover.Accepting}); err != nil {
			w.log.Error("tell the parent", logkey.Error, err)
		}
		w.log.Info("accepting connections")
		var serving sync.WaitGroup
		for _, ln := range gen.listeners {
			serving.Go(func() {
				if err := w.core.Serve(ctx, ln.Listener, ln.direction); err != nil {
					w.log.Error("accept connections", logkey.Error, err)
				}
			})
		}
		w.retireOlder(ctx, gen)
		serving.Wait()
	}()
	return nil
}

// oldListener is how long the listeners of an enforcer before this one are
// served: connections may have begun on them.
const oldListener = 10 * time.Second

// retireOlder ends the generations before live, which serves by now. One that a
// later generation has retired retires nobody.
func (w *worker) retireOlder(ctx context.Context, live *generation) {
	w.mu.Lock()
	i := slices.Index(w.accepting, live)
	var old []*generation
	if i > 0 {
		old, w.accepting = w.accepting[:i:i], w.accepting[i:]
	}
	w.mu.Unlock()
	if len(old) == 0 {
		return
	}
	t := time.NewTimer(oldListener)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
	for _, g := range old {
		g.stop()
		<-g.done
	}
}

func (w *worker) isAccepting() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.accepting) == 0 {
		return false
	}
	select {
	case <-w.server.Taught():
		return true
	default:
		return false
	}
}

func (w *worker) stopAccepting() {
	w.mu.Lock()
	gens := w.accepting
	w.accepting = nil
	w.mu.Unlock()
	for _, g := range gens {
		g.stop()
	}
	for _, g := range gens {
		<-g.done
	}
}
