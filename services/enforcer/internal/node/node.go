// Package node wires an enforcer: one function, read from top to bottom. It
// decides nothing, and may import every package of the enforcer.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/logkey"
	kitserver "weir.dev/weir/internal/server"
	"weir.dev/weir/internal/tlsconf"
	enforcerv1 "weir.dev/weir/proto/weir/enforcer/v1"
	flowv1 "weir.dev/weir/proto/weir/flow/v1"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	l7proxyv1 "weir.dev/weir/proto/weir/l7proxy/v1"
	"weir.dev/weir/services/enforcer/internal/addressclient"
	"weir.dev/weir/services/enforcer/internal/datapath"
	"weir.dev/weir/services/enforcer/internal/desired"
	"weir.dev/weir/services/enforcer/internal/endpoint"
	"weir.dev/weir/services/enforcer/internal/flow"
	"weir.dev/weir/services/enforcer/internal/plan"
	"weir.dev/weir/services/enforcer/internal/policyclient"
	"weir.dev/weir/services/enforcer/internal/proxyclient"
	"weir.dev/weir/services/enforcer/internal/proxynet"
	"weir.dev/weir/services/enforcer/internal/reconcile"
	"weir.dev/weir/services/enforcer/internal/reset"
	"weir.dev/weir/services/enforcer/internal/server"
)

// Config is what the flags say.
type Config struct {
	Node         string
	NATS         string
	Identity     []string // HOST:PORT of replicas
	Policy       []string
	ClusterCIDRs []netip.Prefix
	BPFFS        string
	RunDir       string
	ProxySocket  string
	Server       kitserver.Config
}

// collectEvery is how often flows that are over are forgotten.
const collectEvery = 10 * time.Second

// enforcer is everything that a node has, in the order in which it is made.
type enforcer struct {
	Config
	log     *slog.Logger
	started time.Time
	closers []func() error // called in reverse

	kernel   *datapath.Datapath
	planner  *plan.Planner
	memory   *memory
	builder  *desired.Builder
	proxyNet *proxynet.ProxyNet

	identities identityv1.IdentityServiceClient
	identityAt *whereabouts
	nats       *nats.Conn

	registry   *endpoint.Registry
	addresses  *addressclient.Client
	proxy      *proxyclient.Client
	loop       *reconcile.Loop
	policy     *policyclient.Client
	ring       *flow.Ring
	translator *flow.Translator

	metrics     *server.Metrics
	people, cni *kitserver.Server
	endpoints   *endpoint.Server
}

// Run enforces until ctx ends. The kernel goes on as it is afterwards.
func Run(ctx context.Context, cfg Config, log *slog.Logger) (err error) {
	e := &enforcer{Config: cfg, log: log, started: time.Now(), ring: &flow.Ring{}}
	defer func() { err = errors.Join(err, e.close()) }()
	for _, step := range []func(context.Context) error{
		e.openKernel,   // the lock on the pins; what the last run left is adopted
		e.openProxyNet, // HTTP connections are answered from here on, if only by 503
		e.connect,      // to identity and NATS, which need not be there yet
		e.know,         // endpoints, addresses, policy, and the loop that brings them into force
		e.offer,        // status, flows, metrics, and the CNI plugin's socket
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := e.endpoints.Adopt(); err != nil {
		return err
	}
	_, heard, err := nodeAddrs()
	if err != nil {
		return err
	}
	e.loop.SetNodeAddrs(heard)
	nodes := registrar{identities: e.identities, known: e.addresses.Registered, changed: e.loop.SetNodeAddrs, log: log}
	g, ctx := errgroup.WithContext(ctx)
	for _, run := range []func(context.Context) error{
		e.proxyNet.Run, e.loop.Run, e.policy.Run, e.addresses.Run, e.proxy.Run, nodes.run,
		e.endpoints.Run, e.followEvents, e.collectFlows, e.people.Run, e.cni.Run,
	} {
		g.Go(func() error { return run(ctx) })
	}
	log.Info("enforcing", logkey.Node, cfg.Node, "version", cfg.Server.Version)
	return g.Wait()
}

func (e *enforcer) close() error {
	var errs []error
	for _, c := range slices.Backward(e.closers) {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

func (e *enforcer) openKernel(ctx context.Context) (err error) {
	if err := os.MkdirAll(e.RunDir, 0o700); err != nil {
		return fmt.Errorf("make the run directory: %w", err)
	}
	if e.memory, err = recall(filepath.Join(e.RunDir, "in-force.json")); err != nil {
		return err
	}
	if e.kernel, err = datapath.Open(datapath.Config{BPFFS: e.BPFFS}, e.log); err != nil {
		return err
	}
	e.closers = append(e.closers, e.kernel.Close)
	e.planner = plan.NewPlanner(e.kernel.Limits(), e.kernel)
	if err := e.planner.Adopt(ctx); err != nil {
		return err
	}
	e.builder = desired.NewBuilder(e.kernel.Limits(), e.memory.NextRuleSet)
	e.builder.Reserve(e.planner.Realized())
	return nil
}

func (e *enforcer) openProxyNet(ctx context.Context) (err error) {
	e.proxyNet, err = proxynet.Open(ctx, proxynet.Config{RunDir: e.RunDir, Datapath: e.kernel}, e.log)
	if err != nil {
		return err
	}
	e.closers = append(e.closers, e.proxyNet.Close)
	e.kernel.Mirror(e.proxyNet.SetWord)
	h := e.proxyNet.Handles()
	return e.kernel.SetProxyWays(datapath.ProxyWays{In: h.InIfindex, Out: h.OutIfindex, InNSID: h.InNsid, OutNSID: h.OutNsid})
}

func (e *enforcer) connect(context.Context) error {
	conn, where, err := dialAny(e.Server.TLSDir, tlsconf.Identity, e.Identity)
	if err != nil {
		return err
	}
	e.closers = append(e.closers, conn.Close)
	e.identities, e.identityAt = identityv1.NewIdentityServiceClient(conn), where
	e.nats, err = bus.Connect(bus.Config{URL: e.NATS, TLSDir: e.Server.TLSDir, Role: tlsconf.Node, Name: e.Node}, e.log)
	if err != nil {
		return err
	}
	e.closers = append(e.closers, func() error { e.nats.Close(); return nil })
	return nil
}

// know makes what depends on each other: whatever changes wakes the loop.
func (e *enforcer) know(context.Context) (err error) {
	changed := func() { e.loop.Changed() }
	if e.registry, err = endpoint.Load(filepath.Join(e.RunDir, "endpoints.json"), changed); err != nil {
		return err
	}
	if len(e.registry.List()) > 0 {
		if err := e.kernel.PickUp(); err != nil {
			return err
		}
	}
	e.addresses = addressclient.New(addressclient.Config{
		Identities: e.identities, Changed: func() { e.loop.AddressesChanged() }, Record: e.relabel, Log: e.log,
	})
	e.translator = flow.NewTranslator(e.Node, e.addresses, e.registry)
	e.proxy = proxyclient.New(proxyclient.Config{
		Dial:     func() (*grpc.ClientConn, error) { return dialUnix(e.ProxySocket) },
		Instance: func() uint64 { return instance(e.ProxySocket) }, Log: e.log,
		Verdict: func(v *l7proxyv1.RequestVerdict) {
			f := e.translator.Request(v)
			e.metrics.Request(f)
			e.ring.Add(f)
		},
		Lost: func(n uint64) { e.metrics.LostVerdicts.Add(float64(n)) },
	})
	cutter := reset.New(reset.Config{
		Netns:   e.registry.Netns,
		ProxyIn: filepath.Join(e.RunDir, "netns", "weir-in"), ProxyOut: filepath.Join(e.RunDir, "netns", "weir-out"),
	}, e.kernel, e.planner, e.log)
	e.loop = reconcile.New(reconcile.Config{
		Node: e.Node, Before: e.memory.InForce, ClusterCIDRs: e.ClusterCIDRs, Builder: e.builder, Planner: e.planner,
		Registry: e.registry, Addresses: e.addresses, Proxy: e.proxy, Log: e.log, Remember: e.memory.remember, InForce: e.inForce, Now: time.Now, Cut: cutter.Cut,
	})
	e.policy = policyclient.New(policyclient.Config{
		Addresses: e.Policy, Version: e.Server.Version, Floor: policyclient.Position(e.memory.InForce), Applier: e.loop, Log: e.log,
		Dial: func(address string) (*grpc.ClientConn, error) {
			return dialOne(e.Server.TLSDir, tlsconf.Policy, address)
		},
	})
	e.loop.SetSubscriber(e.policy)
	stop, err := e.addresses.Subscribe(e.nats)
	if err != nil {
		return err
	}
	e.closers = append(e.closers, stop)
	return nil
}

// relabel tells the registry when a record gives an endpoint of this node
// another identity.
func (e *enforcer) relabel(r desired.Record) {
	if r.Node != e.Node {
		return
	}
	if err := e.registry.Relabel(r.PodUID, r.Identity, r.Entered); err != nil {
		e.log.Error("endpoint's new identity not kept", logkey.Pod, r.Pod, logkey.Error, err)
	}
}

// lost says whether an endpoint's registration may be gone with a log or a
// stream that was lost.
func (e *enforcer) lost(x endpoint.Endpoint) bool {
	if newest := e.loop.Newest(); x.Entered.Generation < newest && x.NextEntered.Generation < newest {
		return true
	}
	return slices.ContainsFunc(x.Addrs, func(a netip.Addr) bool { return !e.addresses.Registered(a, x.PodUID) })
}

// inForce runs in the loop's goroutine after each change.
func (e *enforcer) inForce(c reconcile.Change) {
	e.translator.InForce(c.Result.Word, c.State, c.Explain)
	e.metrics.InForce(c)
	e.metrics.Addresses(e.addresses.InForce())
}

func (e *enforcer) offer(context.Context) (err error) {
	sources := server.Sources{
		Node: e.Node, Version: e.Server.Version, Started: e.started, Policy: e.policy.Status, MovePolicy: e.policy.Move,
		Current: e.loop.Current, Endpoints: e.registry, Counters: e.kernel.Counters, Lost: e.kernel.Lost, Conntrack: e.kernel.Conntrack,
		IdentityReplica: e.identityAt.Replica, NATSConnected: e.nats.IsConnected, ProxyConnected: e.proxy.Connected,
		AddressSequence: e.addresses.Sequence, Word: e.kernel.Word,
	}
	reg := prometheus.NewRegistry()
	if e.metrics, err = server.NewMetrics(reg, sources, e.kernel.Limits()); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	people := e.Server
	people.Callers = []tlsconf.Role{tlsconf.CLI} // a node is nobody to another
	if e.people, err = kitserver.New(people, e.log, reg); err != nil {
		return err
	}
	enforcerv1.RegisterEnforcerServiceServer(e.people.Registrar(), server.Server{Sources: sources})
	flowv1.RegisterFlowServiceServer(e.people.Registrar(), flow.Server{Ring: e.ring})

	e.endpoints = endpoint.NewServer(e.registry, e.kernel, e.identities, endpoint.NodeLinks{}, e.log,
		func(took time.Duration) { e.metrics.PodInForce.Observe(took.Seconds()) }, e.lost)
	socket := kitserver.Config{Socket: filepath.Join(e.RunDir, "cni.sock"), Version: e.Server.Version}
	if e.cni, err = kitserver.New(socket, e.log, prometheus.NewRegistry()); err != nil {
		return err
	}
	enforcerv1.RegisterEndpointServiceServer(e.cni.Registrar(), e.endpoints)
	for _, s := range []*kitserver.Server{e.people, e.cni} {
		s.ReadyCheck("programs", e.endpoints.Attached)
		s.ReadyCheck("policy", func() error {
			if !e.policy.Status().Complete {
				return errors.New("no complete policy state since the start")
			}
			return nil
		})
		s.ReadyCheck("addresses", func() error {
			if !e.addresses.Complete() {
				return errors.New("no complete snapshot of addresses yet")
			}
			return nil
		})
	}
	return nil
}

// followEvents turns the datapath's events into flows, and looks up addresses
// that packets wait for.
func (e *enforcer) followEvents(ctx context.Context) error {
	return e.kernel.Events(ctx, func(v datapath.Event) {
		if v.Drop && v.Reason == bpf.ReasonPending {
			for _, a := range waitedFor(v, e.loop.Current()) {
				e.addresses.Want(v.Endpoint, a)
			}
		}
		e.ring.Add(e.translator.Event(v))
	})
}

// waitedFor are the addresses that a pending packet waits for: its peer, or the
// backends of the Service that it goes to.
func waitedFor(v datapath.Event, now *reconcile.Change) []netip.Addr {
	if v.Ingress {
		return []netip.Addr{v.Src.Addr()}
	}
	var service rule.Service
	if now != nil {
		service, _ = now.Explain.Service(plan.ServiceKey{Addr: v.Dst.Addr(), Protocol: v.Protocol, Port: v.Dst.Port()})
	}
	if len(service.Backends) == 0 {
		return []netip.Addr{v.Dst.Addr()}
	}
	var backends []netip.Addr
	for _, b := range service.Backends {
		if now.State.Addresses[b.Addr].Peer == plan.NoPeer {
			backends = append(backends, b.Addr)
		}
	}
	return backends
}

// collectFlows forgets flows that are over.
func (e *enforcer) collectFlows(ctx context.Context) error {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, _, err := e.kernel.Collect(ctx); err != nil && ctx.Err() == nil {
			e.log.Error("flows that are over not forgotten", logkey.Error, err)
		}
	}
}
