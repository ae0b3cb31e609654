// Package proxynet owns the place where HTTP connections are judged: the two
// network namespaces weir-in and weir-out of the node, the veths that join them
// to it, the programs on those, and the listening sockets that the datapath
// steers connections to.
//
// The namespaces are mounted at <run-dir>/netns and outlive an enforcer, as do
// the veths and the pinned links; Open adopts what it finds. The listeners
// belong to the enforcer and are handed to the proxy beside it, with a read-only
// conntrack map and a sealed copy of the live word, on <run-dir>/handover.sock.
// As long as no proxy accepts on them the enforcer answers 503 itself. It never
// parses a request: it answers whatever comes. A proxy that retires hands its
// idle connections over; they, and new ones, wait a moment for the next proxy.
//
// It imports bpf/datapath, internal/handover, internal/logkey, cilium/ebpf,
// netlink, netns, x/sync and x/sys. A ProxyNet's methods may be called by any goroutine.
package proxynet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"

	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/internal/handover"
)

// Datapath holds the programs and maps, and keeps the links.
type Datapath interface {
	// AttachTCX attaches to an interface of the calling thread's network
	// namespace, under the name of that place. It may be repeated.
	AttachTCX(program, place string, ifindex uint32) error
	// AttachNetNS attaches to a network namespace in the same way.
	AttachNetNS(program, place string, netns *os.File) error
	Map(name string) *ebpf.Map
}

// Config is what a ProxyNet is made of.
type Config struct {
	RunDir   string // netns/weir-in, netns/weir-out and handover.sock lie in it
	MTU      int    // the smallest of the node's pods; 0: 1500
	Datapath Datapath
	// Successor is how long clients wait for a proxy that retired to be
	// replaced, before they are answered 503. 0: 10 s.
	Successor time.Duration
}

// Handles are what the datapath must know of the namespaces.
type Handles struct {
	InIfindex, OutIfindex uint32 // the node's ends of the veths
	InNsid, OutNsid       int32  // as the node's namespace numbers them
}

// A ProxyNet is the node's pair of proxy namespaces.
type ProxyNet struct {
	cfg     Config
	log     *slog.Logger
	in, out *space
	word    *word
	ct      *os.File // weir_ct_tcp, read-only
	server  *net.UnixListener
	answers *fallback

	mu      sync.Mutex
	proxies map[*proxyConn]struct{}
	steered bool // the SOCKMAPs hold our listeners
	changed chan struct{}
	parked  []parked  // connections that wait for a proxy
	until   time.Time // when they, and new ones, have waited long enough
}

// Open makes or adopts the namespaces and what belongs to them. Connections are
// answered once Run runs.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*ProxyNet, error) {
	if cfg.Successor == 0 {
		cfg.Successor = 10 * time.Second
	}
	p := &ProxyNet{cfg: cfg, log: log, proxies: map[*proxyConn]struct{}{}, changed: make(chan struct{}, 1)}
	p.answers = newFallback(p)
	if err := p.open(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *ProxyNet) open(ctx context.Context) (err error) {
	dir := filepath.Join(p.cfg.RunDir, "netns")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	if p.word, err = newWord(); err != nil {
		return err
	}
	if p.ct, err = readOnly(p.cfg.Datapath.Map(bpf.MapCtTCP)); err != nil {
		return err
	}
	mtu := p.cfg.MTU
	if mtu == 0 {
		mtu = 1500
	}
	if p.in, err = openSpace(dir, inName, mtu); err != nil {
		return err
	}
	if p.out, err = openSpace(dir, outName, mtu); err != nil {
		return err
	}
	if err := p.attach(); err != nil {
		return err
	}
	if err := p.listen(); err != nil {
		return err
	}
	p.server, err = handover.Listen(ctx, filepath.Join(p.cfg.RunDir, "handover.sock"))
	return err
}

// listen opens the listeners. They replace others in the SOCKMAPs at once,
// unless those are held by a living proxy: then when it accepts on ours.
func (p *ProxyNet) listen() error {
	held := true
	for _, s := range []struct {
		space *space
		m     *ebpf.Map
	}{{p.in, p.cfg.Datapath.Map(bpf.MapListenersIn)}, {p.out, p.cfg.Datapath.Map(bpf.MapListenersOut)}} {
		if err := s.space.openListeners(); err != nil {
			return err
		}
		held = held && holdsSockets(s.m)
	}
	if held {
		return nil
	}
	return p.steer()
}

// steer puts our listeners into the SOCKMAPs.
func (p *ProxyNet) steer() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.steered {
		return nil
	}
	for _, s := range []struct {
		space *space
		m     *ebpf.Map
	}{{p.in, p.cfg.Datapath.Map(bpf.MapListenersIn)}, {p.out, p.cfg.Datapath.Map(bpf.MapListenersOut)}} {
		if err := s.space.steer(s.m); err != nil {
			return err
		}
	}
	p.steered = true
	return nil
}

// Handles returns what the datapath must know of the namespaces.
func (p *ProxyNet) Handles() Handles {
	return Handles{
		InIfindex: p.in.ifindex, InNsid: p.in.nsid,
		OutIfindex: p.out.ifindex, OutNsid: p.out.nsid,
	}
}

// SetWord shows the proxy the live word. Call it after the kernel's has moved.
func (p *ProxyNet) SetWord(w uint64) { p.word.set(w) }

// Connected reports whether a proxy accepts connections.
func (p *ProxyNet) Connected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.proxies {
		if c.accepting {
			return true
		}
	}
	return false
}

// Run hands the listeners to proxies and answers while there is none, until
// ctx ends.
func (p *ProxyNet) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.serveProxies(ctx) })
	g.Go(func() error { return p.steerLate(ctx) })
	for _, s := range []*space{p.in, p.out} {
		for _, ln := range s.listeners {
			g.Go(func() error { return p.answers.serve(ctx, ln) })
		}
	}
	g.Go(func() error { return p.answers.control(ctx) })
	return g.Wait()
}

// Close lets go of everything that dies with this process. The namespaces, the
// veths and the pinned links stay.
func (p *ProxyNet) Close() error {
	var errs []error
	p.letGo()
	if p.server != nil {
		errs = append(errs, p.server.Close())
	}
	for _, s := range []*space{p.in, p.out} {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	if p.ct != nil {
		errs = append(errs, p.ct.Close())
	}
	if p.word != nil {
		errs = append(errs, p.word.close())
	}
	return errors.Join(errs...)
}
