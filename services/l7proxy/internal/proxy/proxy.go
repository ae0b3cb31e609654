// Package proxy judges HTTP requests between a client and a server: it accepts
// the connections that the datapath steers to it, opens the server's side of
// each in the client's own name, and passes on what a rule set lets pass.
//
// A connection has two goroutines. The front (front.go) reads requests, judges
// them one after the other and passes them on; the back (back.go) reads the
// responses. One exchange is under way at a time, so a pipelined request is
// judged and sent after the response before it.
//
// The core knows neither eBPF nor who asked for it: connections' rule sets and
// upstream sockets come by two small interfaces. It imports http1, rules,
// engine/httprule, internal/logkey, the Prometheus client, x/sys and the
// standard library.
package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"weir.dev/weir/internal/logkey"
	"weir.dev/weir/services/l7proxy/internal/http1"
	"weir.dev/weir/services/l7proxy/internal/rules"
)

// Direction of the judgement that sent a connection here.
type Direction uint8

// Directions. The zero Direction is none.
const (
	_       Direction = iota
	Ingress           // by the responder's policy: through weir-in
	Egress            // by the initiator's: through weir-out
)

// A Flow names a connection as the datapath sees it.
type Flow struct {
	Direction Direction
	Client    netip.AddrPort
	Server    netip.AddrPort
}

// Allowed is the number of the rule set that lets everything pass.
const Allowed uint32 = 1

// Connections says by which rule set the requests of a connection are judged.
type Connections interface {
	// Word returns the live word of the node's verdict state.
	Word() uint64
	// RuleSet returns the number that judges the flow and the word that the
	// judgement was made under; false if there is no such judgement.
	RuleSet(f Flow) (number uint32, word uint64, ok bool)
}

// Dialer opens a connection to the flow's server in its client's name.
type Dialer interface {
	Dial(ctx context.Context, f Flow) (*net.TCPConn, error)
}

// Limits bound what a peer may cost.
type Limits struct {
	Connections int           // at a time; more are reset
	PerClient   int           // of one address, so that no client takes them all
	Head        time.Duration // from a head's first byte to its last
	Idle        time.Duration // between two requests
	Body        time.Duration // between two reads of a body
	Write       time.Duration // for 64 KiB to be taken by a peer
	Dial        time.Duration // to reach the server
	Drain       time.Duration // for connections to end after the proxy was told to
	Tunnel      time.Duration // between two looks at the policy of an open WebSocket
}

// DefaultLimits are those of a node.
func DefaultLimits() Limits {
	return Limits{
		Connections: 20_000,
		PerClient:   5_000,
		Head:        10 * time.Second,
		Idle:        time.Hour,
		Body:        5 * time.Minute,
		Write:       time.Minute,
		Dial:        10 * time.Second,
		Drain:       20 * time.Second,
		Tunnel:      200 * time.Millisecond,
	}
}

// Verdict is what was decided of one request.
type Verdict struct {
	Time    time.Time
	Flow    Flow
	Method  string
	Path    string
	Host    string
	Status  int // that the client got; 0: none
	Denied  bool
	Reason  string
	RuleSet uint32
	Rule    int // -1: none matched
}

// Config is what a Proxy needs. All fields but Metrics and Verdict must be set.
type Config struct {
	Rules       *rules.Table
	Connections Connections
	Dialer      Dialer
	Limits      Limits
	Metrics     *Metrics
	// Verdict is called for each request. It must not block.
	Verdict func(Verdict)
}

// A Proxy serves any number of listeners.
type Proxy struct {
	cfg      Config
	log      *slog.Logger
	buffers  http1.Buffers
	sessions sync.WaitGroup
	open     atomic.Int64
	draining atomic.Bool

	mu      sync.Mutex
	live    map[*session]struct{}
	clients map[netip.Addr]int               // connections of each
	give    atomic.Pointer[func(Pair) error] // nil: no connection is given away
}

// New returns a Proxy.
func New(cfg Config, log *slog.Logger) *Proxy {
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	if cfg.Verdict == nil {
		cfg.Verdict = func(Verdict) {}
	}
	return &Proxy{cfg: cfg, log: log, live: map[*session]struct{}{}, clients: map[netip.Addr]int{}}
}

// Open returns how many connections are open.
func (p *Proxy) Open() int { return int(p.open.Load()) }

// Serve accepts connections of one direction until ctx ends. The listener is
// closed then; the connections live on until Drain.
func (p *Proxy) Serve(ctx context.Context, ln net.Listener, d Direction) error {
	stop := context.AfterFunc(ctx, func() { p.close(ln) })
	defer stop()
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || isTransient(err) {
				p.log.Warn("accept connection", logkey.Error, err)
				if !pause(ctx) {
					return nil
				}
				continue
			}
			return err
		}
		tcp, ok := c.(*net.TCPConn)
		client := addrPort(c.RemoteAddr()).Addr()
		if !ok || !p.admit(client) {
			p.cfg.Metrics.refused.Inc()
			reset(c)
			continue
		}
		p.cfg.Metrics.connections.Inc()
		p.sessions.Go(func() {
			defer p.dismiss(client)
			p.handle(context.WithoutCancel(ctx), tcp, d)
		})
	}
}

// admit counts a connection of a client, if there may be one more.
func (p *Proxy) admit(client netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if int(p.open.Load()) >= p.cfg.Limits.Connections || p.clients[client] >= p.cfg.Limits.PerClient {
		return false
	}
	p.clients[client]++
	p.open.Add(1)
	return true
}

func (p *Proxy) dismiss(client netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open.Add(-1)
	if p.clients[client]--; p.clients[client] <= 0 {
		delete(p.clients, client)
	}
}

// pause waits before accept is tried again; false if ctx ended.
func pause(ctx context.Context) bool {
	t := time.NewTimer(50 * time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (p *Proxy) close(ln net.Listener) {
	if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		p.log.Warn("close listener", logkey.Error, err)
	}
}

// handle serves one connection to its end. The server's side is opened before
// anything is read, so that a client finds a dead server as it would without
// a proxy.
func (p *Proxy) handle(ctx context.Context, c *net.TCPConn, d Direction) {
	flow := Flow{Direction: d, Client: addrPort(c.RemoteAddr()), Server: addrPort(c.LocalAddr())}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Limits.Dial)
	up, err := p.cfg.Dialer.Dial(ctx, flow)
	cancel()
	if err != nil {
		p.cfg.Metrics.dialErrors.Inc()
		p.log.Debug("server not reached", logkey.Address, flow.Server, logkey.Error, err)
		reset(c)
		return
	}
	p.serve(newSession(p, flow, c, up))
}

// serve serves a session to its end.
func (p *Proxy) serve(s *session) {
	p.mu.Lock()
	p.live[s] = struct{}{}
	p.mu.Unlock()
	s.run()
	p.mu.Lock()
	delete(p.live, s)
	p.mu.Unlock()
}

// Drain lets connections end after the response that is under way, unless
// HandOver gives them away then; after a tenth of the limit it ends those that
// are idle, and cuts those that have not ended within the limit. It returns when
// none is left.
func (p *Proxy) Drain(ctx context.Context) {
	p.draining.Store(p.give.Load() == nil)
	quiet := time.NewTimer(p.cfg.Limits.Drain / 10)
	defer quiet.Stop()
	done := make(chan struct{})
	go func() {
		p.sessions.Wait()
		close(done)
	}()
	t := time.NewTimer(p.cfg.Limits.Drain)
	defer t.Stop()
	for waiting := true; waiting; {
		select {
		case <-done:
			return
		case <-quiet.C:
			p.each(func(s *session) { s.endIfIdle() })
		case <-ctx.Done():
			waiting = false
		case <-t.C:
			waiting = false
		}
	}
	p.each(func(s *session) { s.cut() })
	<-done
}

// each calls f for every live session.
func (p *Proxy) each(f func(*session)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.live {
		f(s)
	}
}

// WatchTunnels looks at the policy of open WebSockets until ctx ends, and cuts
// those whose request would be denied now.
func (p *Proxy) WatchTunnels(ctx context.Context) {
	t := time.NewTicker(p.cfg.Limits.Tunnel)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			p.each(func(s *session) { s.checkTunnel() })
		}
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	return netip.AddrPort{}
}
