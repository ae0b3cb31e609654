// Package reconcile brings what should be in force into the kernel: it waits
// for changes of policy, addresses and endpoints, takes all that have come
// together, and does for them in this order:
//
//	desired state → rule sets to the proxy → resting side, flip → cut what is now forbidden → tell
//
// One goroutine does it, so a change that comes while another is under way
// waits and is taken together with those after it. The package imports engine,
// logkey, plan, desired, endpoint and policyclient; it has no I/O but by its
// interfaces and the endpoints' registry.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/logkey"
	"weir.dev/weir/services/enforcer/internal/desired"
	"weir.dev/weir/services/enforcer/internal/endpoint"
	"weir.dev/weir/services/enforcer/internal/plan"
	"weir.dev/weir/services/enforcer/internal/policyclient"
)

// Addresses is what is known of addresses.
type Addresses interface {
	// Records is a copy of all records; false: not complete yet.
	Records() (map[netip.Addr]desired.Record, bool)
}

// Proxy is the HTTP proxy beside this enforcer.
type Proxy interface {
	// Learn returns when the proxy judges by the rule sets in addition to those
	// it has, or at once with an error if it is away: it learns all of them when
	// it comes back.
	Learn(ctx context.Context, sets []desired.RuleSet) error
	// Keep forgets all rule sets but these.
	Keep(sets []desired.RuleSet)
}

// Subscriber is told which identities the node's endpoints have.
type Subscriber interface {
	Subscribe(ids []rule.IdentityHash)
}

// Change is a state that was put in force.
type Change struct {
	At       desired.Position
	Digest   []byte // of the policy
	Result   plan.Result
	State    plan.State
	Explain  *desired.Explanation
	Policy   bool          // the policy is another than before
	Received time.Time     // of the policy
	Took     time.Duration // from the beginning of this change
}

// Config is what a Loop needs. All fields are required.
type Config struct {
	Node         string
	Before       desired.Position // in force before the start
	ClusterCIDRs []netip.Prefix
	Builder      *desired.Builder
	Planner      *plan.Planner
	Registry     *endpoint.Registry
	Addresses    Addresses
	Proxy        Proxy
	// Cut ends connections that the state in force forbids, after the word has
	// moved.
	Cut func(ctx context.Context) error
	// Remember writes down, before anything is changed, how new the policy will
	// be and the next rule set number: after a crash an older policy is refused
	// and no number means something else.
	Remember func(at desired.Position, next rule.Verdict) error
	// InForce is called by the loop's goroutine after each change.
	InForce func(Change)
	Now     func() time.Time
	Log     *slog.Logger
}

// restFor bounds what address changes may take: a fifth of one processor.
const restFor = 4

// proxyWait is how long a change of verdicts waits for a proxy that is there.
const proxyWait = 2 * time.Second

// Loop is the one writer of the kernel's state. It is made by New; Apply,
// Changed, SetNodeAddrs, SetSubscriber and Current may be called from any goroutine.
type Loop struct {
	cfg        Config
	wake       chan struct{} // capacity 1
	addresses  chan struct{} // capacity 1
	policies   chan request
	subscriber Subscriber
	current    atomic.Pointer[Change]

	mu        sync.Mutex
	nodeAddrs []netip.Addr

	newest atomic.Uint64 // generation that any policy state had

	// Of the goroutine that runs.
	newestSince time.Time
	policy      *policyclient.State
	index       *merge.Index
	subjects    map[rule.IdentityHash]rule.Subject
	subscribed  []rule.IdentityHash
}

// request is a policy state that waits to be put in force.
type request struct {
	state policyclient.State
	done  chan error // capacity 1
}

// New makes a Loop.
func New(cfg Config) *Loop {
	return &Loop{cfg: cfg, wake: make(chan struct{}, 1), addresses: make(chan struct{}, 1), policies: make(chan request)}
}

// SetSubscriber is called once, before Run.
func (l *Loop) SetSubscriber(s Subscriber) { l.subscriber = s }

// Changed says that endpoints or the node are not what they were.
func (l *Loop) Changed() { poke(l.wake) }

// AddressesChanged says that address records are not what they were. After a
// change for their sake the loop rests for a multiple of the time it took,
// unless something else changes: in a large cluster they change all the time.
func (l *Loop) AddressesChanged() { poke(l.addresses) }

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// SetNodeAddrs replaces the addresses that this node's interfaces have.
func (l *Loop) SetNodeAddrs(addrs []netip.Addr) {
	l.mu.Lock()
	same := slices.Equal(l.nodeAddrs, addrs)
	l.nodeAddrs = addrs
	l.mu.Unlock()
	if !same {
		l.Changed()
	}
}

// Current is the last change that was put in force since the start, or nil.
func (l *Loop) Current() *Change { return l.current.Load() }

// Apply puts a policy state in force. It implements policyclient.Applier.
func (l *Loop) Apply(ctx context.Context, s policyclient.State) error {
	r := request{s, make(chan error, 1)}
	select {
	case l.policies <- r:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run puts changes in force until ctx ends. A change that cannot be put in
// force is tried again; what was in force before stays.
func (l *Loop) Run(ctx context.Context) error {
	retry := time.NewTicker(time.Second)
	defer retry.Stop()
	rest := time.NewTimer(0)
	defer rest.Stop()
	var addresses <-chan struct{} // nil while the loop rests from them
	failed := false
	for {
		var r *request
		forAddresses := false
		select {
		case <-ctx.Done():
			return nil
		case x := <-l.policies:
			r = &x
		case <-l.wake:
		case <-addresses:
			forAddresses = true
		case <-rest.C:
			addresses = l.addresses
			continue
		case <-retry.C:
			if !failed {
				continue
			}
		}
		began := time.Now()
		err := l.round(ctx, r)
		if forAddresses {
			addresses = nil
			rest.Reset(restFor * time.Since(began))
		}
		if errors.Is(err, errWaiting) && r != nil {
			err = l.await(ctx, r)
		}
		if r != nil {
			r.done <- err
		}
		failed = err != nil && !errors.Is(err, errWaiting) && !errors.Is(err, errTooSoon)
		if failed && ctx.Err() == nil {
			l.cfg.Log.Error("change not in force", logkey.Error, err)
		}
	}
}

// errWaiting says that something is missing without which nothing may change.
var errWaiting = errors.New("address records are not complete yet")

// await tries again to put the first policy in force until there are addresses:
// judged without them, every peer would be dropped as pending.
func (l *Loop) await(ctx context.Context, r *request) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.wake:
		case <-l.addresses:
		}
		if err := l.round(ctx, r); !errors.Is(err, errWaiting) {
			return err
		}
	}
}

// round puts everything that is known now in force. r may be nil.
func (l *Loop) round(ctx context.Context, r *request) error {
	l.subscribe()
	policy, index, subjects := l.policy, l.index, l.subjects
	if r != nil {
		// The client may have given up on one that was put in force after all.
		if policy != nil && r.state.Before(policy.Position) {
			return fmt.Errorf("%w: revision %d, have %d", policyclient.ErrOlder, r.state.Revision, policy.Revision)
		}
		var err error
		if index, err = merge.New(r.state.Policy); err != nil {
			return fmt.Errorf("index policy revision %d: %w", r.state.Revision, err)
		}
		policy, subjects = &r.state, make(map[rule.IdentityHash]rule.Subject, len(r.state.Subjects))
		for _, s := range r.state.Subjects {
			subjects[s.Identity] = s
		}
	}
	if policy == nil {
		return l.Settle(ctx)
	}
	records, ok := l.cfg.Addresses.Records()
	if !ok {
		return errWaiting
	}
	if err := l.tooSoon(policy, subjects, records); err != nil {
		return err
	}
	began := time.Now()
	out, err := l.cfg.Builder.Build(l.input(policy, index, subjects, records))
	if err != nil {
		return err
	}
	if err := l.realize(ctx, out, Change{
		At: desired.Position(policy.Position), Digest: policy.Digest, Explain: out.Explain,
		Policy: r != nil, Received: policy.Received,
	}, began); err != nil {
		return err
	}
	l.policy, l.index, l.subjects = policy, index, subjects
	return nil
}

// A log that begins anew is empty at first. It is not put in force before settle
// has passed, in which the policies of the source come into it, nor, up to
// renewal, before the pods have.
const (
	settle  = 5 * time.Second
	renewal = 30 * time.Second
)

// errTooSoon says that a log which began anew may not know yet what is in force.
var errTooSoon = errors.New("the log began anew, and is not complete yet")

// Newest is the greatest generation that any policy state had.
func (l *Loop) Newest() uint64 { return l.newest.Load() }

// tooSoon refuses the first states of a log that begins anew: every node must
// register its pods in it first, or their traffic would be cut meanwhile. What
// is not there after a while is not waited for.
func (l *Loop) tooSoon(p *policyclient.State, subjects map[rule.IdentityHash]rule.Subject, records map[netip.Addr]desired.Record) error {
	before := l.cfg.Before.Generation
	if l.policy != nil {
		before = l.policy.Generation
	}
	if l.newest.Load() < p.Generation {
		l.newest.Store(p.Generation)
		l.newestSince = l.cfg.Now()
	}
	age := l.cfg.Now().Sub(l.newestSince)
	switch {
	case before == 0 || p.Generation <= before || age > renewal:
		return nil
	case age < settle:
		return fmt.Errorf("%w: %s old", errTooSoon, age)
	}
	for _, e := range l.cfg.Registry.List() {
		_, now := subjects[e.Identity]
		_, next := subjects[e.Next]
		if e.Identity != (rule.IdentityHash{}) && !now && !next {
			return fmt.Errorf("%w: %s/%s of this node", errTooSoon, e.Namespace, e.Pod)
		}
	}
	for a, r := range records {
		if !r.NodeAddress && r.Entered.Generation < p.Generation {
			return fmt.Errorf("%w: %s (%s/%s on %s)", errTooSoon, a, r.Namespace, r.Pod, r.Node)
		}
	}
	return nil
}

func (l *Loop) input(p *policyclient.State, index *merge.Index, subjects map[rule.IdentityHash]rule.Subject, records map[netip.Addr]desired.Record) desired.Input {
	l.mu.Lock()
	nodeAddrs := l.nodeAddrs
	l.mu.Unlock()
	in := desired.Input{
		Node: l.cfg.Node, At: desired.Position(p.Position), Index: index, Rules: p.Policy.Rules,
		Subjects: subjects, Services: p.Services, Records: records, NodeAddrs: nodeAddrs, ClusterCIDRs: l.cfg.ClusterCIDRs,
	}
	for _, e := range l.cfg.Registry.List() {
		in.Endpoints = append(in.Endpoints, e.Desired())
	}
	return in
}

// realize takes the kernel to what was built.
func (l *Loop) realize(ctx context.Context, out desired.Output, c Change, began time.Time) error {
	if err := l.cfg.Remember(c.At, l.cfg.Builder.NextRuleSet()); err != nil {
		return err
	}
	learn, cancel := context.WithTimeout(ctx, proxyWait)
	err := l.cfg.Proxy.Learn(learn, out.RuleSets)
	cancel()
	if err != nil {
		// L3 and L4 do not wait: connections with HTTP rules are refused until
		// the proxy is back and has learned all.
		l.cfg.Log.Warn("proxy has not all rule sets", logkey.Error, err)
	}
	if c.Result, err = l.cfg.Planner.Apply(ctx, out.State); err != nil {
		return fmt.Errorf("put revision %d in force: %w", c.At.Revision, err)
	}
	l.cfg.Builder.InForce()
	if c.Result.Moved {
		if err := l.cfg.Cut(ctx); err != nil {
			l.cfg.Log.Warn("connections that are now forbidden may linger", logkey.Error, err)
		}
	}
	l.cfg.Proxy.Keep(out.RuleSets)
	if err := l.cfg.Registry.InForce(out.Ready); err != nil {
		return err
	}
	c.State, c.Took = out.State, time.Since(began)
	before := l.current.Swap(&c)
	l.cfg.InForce(c)
	if before == nil || before.At != c.At || c.Result.Moved {
		l.cfg.Log.Info("policy in force", logkey.Generation, c.At.Generation, logkey.Revision, c.At.Revision,
			logkey.Word, c.Result.Word, "writes", c.Result.Writes, "cells", len(out.State.Cells), logkey.Took, c.Took)
	}
	return nil
}

// Settle leaves in the kernel what the last run put there, but for endpoints
// that are gone: all that may change before there is a policy. It is Run's own,
// and may be called before Run.
func (l *Loop) Settle(ctx context.Context) error {
	there := map[uint32]uint32{}
	for _, e := range l.cfg.Registry.List() {
		there[e.Ifindex] = e.ID
	}
	s := l.cfg.Planner.Realized()
	kept := maps.Clone(s.Endpoints)
	maps.DeleteFunc(kept, func(ifindex uint32, e plan.Endpoint) bool { return there[ifindex] != e.ID })
	if len(kept) == len(s.Endpoints) {
		return nil
	}
	s.Endpoints = kept
	if _, err := l.cfg.Planner.Apply(ctx, s); err != nil {
		return fmt.Errorf("close endpoints that are gone: %w", err)
	}
	return nil
}

// subscribe tells the policy client when the endpoints' identities change.
func (l *Loop) subscribe() {
	ids := l.cfg.Registry.Identities()
	if l.subscribed != nil && slices.Equal(ids, l.subscribed) {
		return
	}
	l.subscribed = slices.Clip(append([]rule.IdentityHash{}, ids...))
	l.subscriber.Subscribe(ids)
}
