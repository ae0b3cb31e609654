// Package proxyclient gives the HTTP proxy beside this enforcer the rule sets
// that port maps name, and takes its verdicts.
//
// A proxy that comes back learns every rule set before anything else. One that
// is away makes nobody wait. A Client may be used by several goroutines. The
// package imports proto, engine/rule, logkey, desired and gRPC.
package proxyclient

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/logkey"
	l7proxyv1 "weir.dev/weir/proto/weir/l7proxy/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/enforcer/internal/desired"
)

// ErrAway says that no proxy is connected.
var ErrAway = errors.New("the HTTP proxy is away")

// Config is what a Client needs. All fields are required.
type Config struct {
	Dial func() (*grpc.ClientConn, error)
	// Instance tells which proxy Dial leads to now: another number is another
	// one. Zero: none.
	Instance func() uint64
	Verdict  func(*l7proxyv1.RequestVerdict)
	Lost     func(uint64) // verdicts that a proxy could not send
	Log      *slog.Logger
}

// Client is made by New.
type Client struct {
	cfg  Config
	kept chan struct{} // capacity 1: the proxies may forget

	// looked is closed when a proxy is taught, or the first look found none.
	looked   chan struct{}
	lookOnce sync.Once

	// calls lets one SetRuleSets at a time reach the proxies, so that an old list
	// never overtakes a newer one.
	calls sync.Mutex

	mu    sync.Mutex
	known map[rule.Verdict]desired.RuleSet
	// whole is set by the first Keep: before it the kernel may name rule sets of
	// the last run, which only a proxy knows.
	whole bool
	// taught are the proxies that judge by what is known: one, or while it is
	// replaced its successor too.
	taught map[*session]bool
}

// New makes a Client that is not connected.
func New(cfg Config) *Client {
	return &Client{
		cfg: cfg, kept: make(chan struct{}, 1), looked: make(chan struct{}),
		known: map[rule.Verdict]desired.RuleSet{}, taught: map[*session]bool{},
	}
}

// Connected says whether a proxy is there that judges by all known rule sets.
func (c *Client) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.taught) > 0
}

// firstLook bounds the wait for a proxy that was there before this enforcer: its
// connections must not be judged by numbers that it has not learned.
const firstLook = 2 * time.Second

// Learn returns when the proxy judges by sets too. If it is away, that is
// ErrAway, and it learns them when it comes back.
func (c *Client) Learn(ctx context.Context, sets []desired.RuleSet) error {
	limit := time.NewTimer(firstLook)
	defer limit.Stop()
	select {
	case <-c.looked:
	case <-limit.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	c.calls.Lock()
	defer c.calls.Unlock()
	c.mu.Lock()
	req := &l7proxyv1.SetRuleSetsRequest{}
	for _, s := range sets {
		if _, ok := c.known[s.Number]; !ok {
			c.known[s.Number] = s
			req.RuleSets = append(req.RuleSets, numbered(s))
		}
	}
	taught, needed := slices.Collect(maps.Keys(c.taught)), len(c.known) > 0
	c.mu.Unlock()
	switch {
	case len(taught) == 0 && needed:
		return ErrAway
	case len(req.RuleSets) == 0:
		return nil
	}
	var errs []error
	for _, s := range taught {
		if _, err := s.proxy.SetRuleSets(ctx, req); err != nil {
			// What it has is not certain any more: it must learn all anew.
			c.forget(s)
			s.end()
			errs = append(errs, fmt.Errorf("send rule sets to the proxy: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Keep forgets all rule sets but these. It does not wait for the proxy.
func (c *Client) Keep(sets []desired.RuleSet) {
	c.mu.Lock()
	keep := make(map[rule.Verdict]desired.RuleSet, len(sets))
	for _, s := range sets {
		keep[s.Number] = s
	}
	fewer := len(keep) < len(c.known) || !c.whole
	c.known, c.whole = keep, true
	c.mu.Unlock()
	if !fewer {
		return
	}
	select {
	case c.kept <- struct{}{}:
	default:
	}
}

func (c *Client) forget(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.taught, s)
}

// teachWithin bounds how long a proxy may take to know the whole list. A proxy
// that hangs must not keep changes from coming into force: Learn waits for it.
const teachWithin = 5 * time.Second

// look is how often Run looks whether another proxy is there.
const look = 100 * time.Millisecond

// Run keeps the proxy connected until ctx ends, and its successor beside it.
func (c *Client) Run(ctx context.Context) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	ended := make(chan uint64)
	live := map[uint64]bool{}
	defer func() {
		for len(live) > 0 {
			delete(live, <-ended)
		}
	}()
	if c.cfg.Instance() == 0 {
		c.hasLooked()
	}
	for {
		if instance := c.cfg.Instance(); instance != 0 && !live[instance] {
			live[instance] = true
			go func() {
				c.serve(ctx, instance)
				ended <- instance
			}()
		}
		select {
		case <-ctx.Done():
			return nil
		case instance := <-ended:
			delete(live, instance)
			// A socket without a process is looked at again with the next tick.
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		case <-c.kept:
			c.teachAll(ctx)
		case <-tick.C:
		}
	}
}

// teachAll sends the list to all again: it got shorter. A connection on which
// that fails ends.
func (c *Client) teachAll(ctx context.Context) {
	c.mu.Lock()
	taught := slices.Collect(maps.Keys(c.taught))
	c.mu.Unlock()
	for _, s := range taught {
		if err := c.teach(ctx, s); err != nil {
			c.forget(s)
			s.end()
		}
	}
}

// session is one connection to one proxy.
type session struct {
	proxy l7proxyv1.ProxyServiceClient
	end   context.CancelFunc
}

func (c *Client) hasLooked() { c.lookOnce.Do(func() { close(c.looked) }) }

// serve is one connection's life.
func (c *Client) serve(ctx context.Context, instance uint64) {
	defer c.hasLooked()
	conn, err := c.cfg.Dial()
	if err != nil {
		c.cfg.Log.Error("proxy not connected", logkey.Error, err)
		return
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &session{l7proxyv1.NewProxyServiceClient(conn), cancel}
	if _, err := s.proxy.GetStatus(ctx, &l7proxyv1.GetStatusRequest{}); err != nil || c.cfg.Instance() != instance {
		return // not there yet, or replaced just now
	}
	if err := c.teach(ctx, s); err != nil {
		return
	}
	defer c.forget(s)
	c.hasLooked()
	c.cfg.Log.Info("proxy connected")
	err = c.watch(ctx, s.proxy)
	if ctx.Err() == nil {
		c.cfg.Log.Warn("proxy disconnected", logkey.Error, err)
	}
}

// teach makes a proxy judge by what is known, and by nothing else once that is
// whole; then it takes the proxy for connected.
func (c *Client) teach(ctx context.Context, s *session) error {
	c.calls.Lock()
	defer c.calls.Unlock()
	c.mu.Lock()
	req := &l7proxyv1.SetRuleSetsRequest{Complete: c.whole}
	for _, n := range slices.Sorted(maps.Keys(c.known)) {
		req.RuleSets = append(req.RuleSets, numbered(c.known[n]))
	}
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, teachWithin)
	defer cancel()
	if _, err := s.proxy.SetRuleSets(ctx, req); err != nil {
		return fmt.Errorf("send all rule sets to the proxy: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taught[s] = true
	return nil
}

func (c *Client) watch(ctx context.Context, proxy l7proxyv1.ProxyServiceClient) error {
	stream, err := proxy.WatchRequests(ctx, &l7proxyv1.WatchRequestsRequest{})
	if err != nil {
		return fmt.Errorf("watch the proxy's requests: %w", err)
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("watch the proxy's requests: %w", err)
		}
		if r.GetLost() > 0 {
			c.cfg.Lost(r.GetLost())
		}
		for _, v := range r.GetVerdicts() {
			c.cfg.Verdict(v)
		}
	}
}

func numbered(s desired.RuleSet) *l7proxyv1.NumberedRuleSet {
	n := &l7proxyv1.NumberedRuleSet{Number: uint32(s.Number)}
	for _, set := range s.AllOf {
		p := &policyv1.RuleSet{Id: set.ID[:]}
		for _, r := range set.Rules {
			p.Rules = append(p.Rules, httpRule(r))
		}
		n.AllOf = append(n.AllOf, p)
	}
	return n
}

func httpRule(r rule.HTTPRule) *policyv1.HTTPRule {
	p := &policyv1.HTTPRule{Method: r.Method, Path: r.Path, Host: r.Host}
	for _, h := range r.Headers {
		p.Headers = append(p.Headers, &policyv1.HeaderRule{Name: h.Name, Value: h.Value})
	}
	return p
}
