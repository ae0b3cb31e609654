// Package proxyclient gives the HTTP proxy beside this enforcer the rule sets
// that port maps name, and takes its verdicts.
//
// A proxy that comes back learns every rule set before anything else. One that
// is away makes nobody wait. A Client may be used by several goroutines. The
// package imports proto, engine/rule and desired.
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
	Dial    func() (*grpc.ClientConn, error)
	Verdict func(*l7proxyv1.RequestVerdict)
	Lost    func(uint64) // verdicts that the proxy could not send
	Log     *slog.Logger
}

// Client is made by New.
type Client struct {
	cfg  Config
	kept chan struct{} // capacity 1: the proxy may forget

	// calls lets one SetRuleSets at a time reach the proxy, so that an old list
	// never overtakes a newer one.
	calls sync.Mutex

	mu    sync.Mutex
	known map[rule.Verdict]desired.RuleSet
	// whole is set by the first Keep: before it the kernel may name rule sets of
	// the last run, which only the proxy knows.
	whole bool
	proxy l7proxyv1.ProxyServiceClient // nil: away, or it has not learned all yet
}

// New makes a Client that is not connected.
func New(cfg Config) *Client {
	return &Client{cfg: cfg, kept: make(chan struct{}, 1), known: map[rule.Verdict]desired.RuleSet{}}
}

// Connected says whether a proxy is there that judges by all known rule sets.
func (c *Client) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.proxy != nil
}

// Learn returns when the proxy judges by sets too. If it is away, that is
// ErrAway, and it learns them when it comes back.
func (c *Client) Learn(ctx context.Context, sets []desired.RuleSet) error {
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
	proxy, needed := c.proxy, len(c.known) > 0
	c.mu.Unlock()
	switch {
	case proxy == nil && needed:
		return ErrAway
	case proxy == nil || len(req.RuleSets) == 0:
		return nil
	}
	if _, err := proxy.SetRuleSets(ctx, req); err != nil {
		// What it has is not certain any more: it must learn all anew.
		c.mu.Lock()
		c.proxy = nil
		c.mu.Unlock()
		c.wake()
		return fmt.Errorf("send rule sets to the proxy: %w", err)
	}
	return nil
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
	if fewer {
		c.wake()
	}
}

func (c *Client) wake() {
	select {
	case c.kept <- struct{}{}:
	default:
	}
}

// Run keeps the proxy connected until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	const least, most = 50 * time.Millisecond, time.Second
	pause := least
	for {
		was, err := c.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if was {
			c.cfg.Log.Warn("proxy disconnected", logkey.Error, err)
			pause = least
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
		pause = min(2*pause, most)
	}
}

// session is one connection's life. It reports whether the proxy was there.
func (c *Client) session(ctx context.Context) (was bool, err error) {
	conn, err := c.cfg.Dial()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	proxy := l7proxyv1.NewProxyServiceClient(conn)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := c.teach(ctx, proxy); err != nil {
		return false, err
	}
	c.cfg.Log.Info("proxy connected")
	defer func() {
		c.mu.Lock()
		c.proxy = nil
		c.mu.Unlock()
	}()
	var keeper sync.WaitGroup
	keeper.Go(func() { c.teachOn(ctx, cancel, proxy) })
	defer keeper.Wait()
	defer cancel()
	return true, c.watch(ctx, proxy)
}

// teach makes the proxy judge by what is known, and by nothing else once that is
// whole; then it takes the proxy for connected.
func (c *Client) teach(ctx context.Context, proxy l7proxyv1.ProxyServiceClient) error {
	c.calls.Lock()
	defer c.calls.Unlock()
	c.mu.Lock()
	req := &l7proxyv1.SetRuleSetsRequest{Complete: c.whole}
	for _, n := range slices.Sorted(maps.Keys(c.known)) {
		req.RuleSets = append(req.RuleSets, numbered(c.known[n]))
	}
	c.mu.Unlock()
	if _, err := proxy.SetRuleSets(ctx, req); err != nil {
		return fmt.Errorf("send all rule sets to the proxy: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proxy = proxy
	return nil
}

// teachOn sends the list again whenever it got shorter or is in doubt. If that
// fails the connection ends.
func (c *Client) teachOn(ctx context.Context, end context.CancelFunc, proxy l7proxyv1.ProxyServiceClient) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.kept:
		}
		if err := c.teach(ctx, proxy); err != nil {
			end()
			return
		}
	}
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
