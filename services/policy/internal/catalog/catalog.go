// Package catalog is what a replica has made of the state log: the resolved
// policy of the cluster at one revision, and who has to be told that it changed.
//
// A Catalog is safe for concurrent use. While the log is replayed again after it
// was lost, the catalog goes on to answer from the state that it had.
package catalog

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weir.dev/weir/engine/explain"
	"weir.dev/weir/engine/resolve"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/logkey"
	"weir.dev/weir/internal/statelog"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/policy/internal/source"
)

// Position is a state in the total order of all states.
type Position struct {
	Generation uint64
	Revision   uint64
}

// Before tells whether p is older than q.
func (p Position) Before(q Position) bool {
	return cmp.Or(cmp.Compare(p.Generation, q.Generation), cmp.Compare(p.Revision, q.Revision)) < 0
}

// Policy is a policy object of the log.
type Policy struct {
	Key      statelog.Key
	Origin   rule.Origin
	Revision uint64 // at which it entered the log
	Observed time.Time
	Warnings []string
}

// Catalog must be made by New.
type Catalog struct {
	log *slog.Logger

	mu       sync.Mutex
	cur      *content // what is served; nil before the first complete replay
	next     *content // a replay that is not complete yet; nil if there is none
	watchers map[*Watcher]struct{}
	changed  chan struct{} // closed at the next change
}

// content is a state and what is known of its policies.
type content struct {
	state    *resolve.State
	pos      Position
	copied   bool // all policies of the source were written in this generation
	policies map[statelog.Key]Policy
	refused  map[statelog.Key]*identityv1.RefusedObject
}

func newContent() *content {
	return &content{
		state: resolve.New(), policies: map[statelog.Key]Policy{},
		refused: map[statelog.Key]*identityv1.RefusedObject{},
	}
}

// New returns a catalog that has replayed nothing.
func New(log *slog.Logger) *Catalog {
	return &Catalog{log: log, watchers: map[*Watcher]struct{}{}, changed: make(chan struct{})}
}

// Apply takes a batch of the log in. It is called by one goroutine.
func (c *Catalog) Apply(b statelog.Batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	into := c.cur
	if b.Reset {
		c.next = newContent()
	}
	if c.next != nil {
		into = c.next
	}
	before := into.pos
	for _, e := range b.Events {
		c.event(into, e)
	}
	into.pos, into.copied = Position{b.Generation, b.Revision}, b.Copied
	if into == c.next {
		if !b.Complete || !b.Copied {
			return
		}
		c.cur, c.next = c.next, nil
		c.cur.state.Take() // all is new to everybody
		c.tell(func(w *Watcher) { w.mark() })
	} else {
		changes := into.state.Take()
		replaced := before.Generation != into.pos.Generation
		c.tell(func(w *Watcher) { w.touch(changes, replaced) })
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Catalog) tell(f func(*Watcher)) {
	for w := range c.watchers {
		f(w)
	}
}

func (c *Catalog) event(into *content, e statelog.Event) {
	switch e.Key.Kind() {
	case statelog.Identity:
		into.identity(e)
	case statelog.Namespace:
		into.namespace(e)
	case statelog.Service:
		into.service(e)
	case statelog.Policy:
		c.policy(into, e)
	}
}

func (s *content) identity(e statelog.Event) {
	raw, err := e.Key.Hash()
	if err != nil || len(raw) != len(rule.IdentityHash{}) {
		return // not a key that anybody writes
	}
	hash := rule.IdentityHash(raw)
	v, ok := e.Value.(*identityv1.Identity)
	if !ok {
		s.state.DeleteIdentity(hash)
		return
	}
	id := rule.Identity{Cluster: v.GetCluster(), Namespace: v.GetNamespace(), ServiceAccount: v.GetServiceAccount()}
	for _, l := range v.GetLabels() {
		id.Labels = append(id.Labels, rule.Label{Key: l.GetKey(), Value: l.GetValue()})
	}
	for _, p := range v.GetNamedPorts() {
		if p.GetProtocol() > math.MaxUint8 || p.GetPort() > math.MaxUint16 {
			continue // no packet has them
		}
		id.NamedPorts = append(id.NamedPorts, rule.NamedPort{
			Name: p.GetName(), Protocol: uint8(p.GetProtocol()), Port: uint16(p.GetPort()),
		})
	}
	s.state.SetIdentity(rule.Revision(e.Revision), hash, id)
}

func (s *content) namespace(e statelog.Event) {
	v, ok := e.Value.(*identityv1.Namespace)
	if !ok {
		s.state.DeleteNamespace(e.Key.Name())
		return
	}
	labels := make(map[string]string, len(v.GetLabels()))
	for _, l := range v.GetLabels() {
		labels[l.GetKey()] = l.GetValue()
	}
	s.state.SetNamespace(v.GetName(), labels)
}

func (s *content) service(e statelog.Event) {
	v, ok := e.Value.(*identityv1.Service)
	if !ok {
		s.state.DeleteService(string(e.Key))
		return
	}
	s.state.SetService(string(e.Key), frontends(v))
}

// frontends are the addresses of a Service, each with the backends of its own
// address family.
func frontends(v *identityv1.Service) []rule.Service {
	var out []rule.Service
	for _, raw := range v.GetAddresses() {
		a, ok := netip.AddrFromSlice(raw)
		if !ok {
			continue
		}
		a = a.Unmap()
		for _, p := range v.GetPorts() {
			if p.GetProtocol() > math.MaxUint8 || p.GetPort() > math.MaxUint16 {
				continue // no packet has them
			}
			f := rule.Service{
				Addr: a, Protocol: uint8(p.GetProtocol()), Port: uint16(p.GetPort()),
				Namespace: v.GetNamespace(), Name: v.GetName(),
			}
			for _, b := range p.GetBackends() {
				to, ok := netip.AddrFromSlice(b.GetAddress())
				if ok && to.Unmap().Is4() == a.Is4() && b.GetPort() <= math.MaxUint16 {
					f.Backends = append(f.Backends, rule.Backend{Addr: to.Unmap(), Port: uint16(b.GetPort())})
				}
			}
			slices.SortFunc(f.Backends, func(x, y rule.Backend) int {
				return cmp.Or(x.Addr.Compare(y.Addr), cmp.Compare(x.Port, y.Port))
			})
			out = append(out, f)
		}
	}
	return out
}

// policy puts a policy in force. One that this build refuses leaves what was in
// force as it was, and is told.
func (c *Catalog) policy(into *content, e statelog.Event) {
	v, ok := e.Value.(*policyv1.PolicyEntry)
	if !ok {
		into.state.DeletePolicy(string(e.Key))
		delete(into.policies, e.Key)
		delete(into.refused, e.Key)
		return
	}
	p, refusal := source.Policy(v)
	var err error
	if refusal != nil {
		err = refusal
	} else {
		err = into.state.SetPolicy(string(e.Key), p)
	}
	if err != nil {
		c.log.Error("policy of the log refused; what was in force stays", logkey.Policy, e.Key, logkey.Revision, e.Revision, logkey.Error, err)
		kind, namespace, name := e.Key.Policy()
		into.refused[e.Key] = &identityv1.RefusedObject{
			Kind: kind, Namespace: namespace, Name: name, File: v.GetFile(), Line: v.GetLine(), Reason: err.Error(),
		}
		return
	}
	delete(into.refused, e.Key)
	into.policies[e.Key] = Policy{
		Key: e.Key, Origin: p.Origin, Revision: e.Revision, Observed: v.GetObserved().AsTime(), Warnings: p.Warnings,
	}
}

// served is the state to answer from: one without the policies that nobody has
// copied into the log yet would allow what they forbid. Nil: there is none.
// c.mu is held.
func (c *Catalog) served() *content {
	if c.cur == nil || !c.cur.copied {
		return nil
	}
	return c.cur
}

// Position is that of the state which is served; ok is false while there is none.
func (c *Catalog) Position() (pos Position, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.served()
	if s == nil {
		return Position{}, false
	}
	return s.pos, true
}

// ErrNotCopied reports a log in which not all policies of the source have been
// written once.
var ErrNotCopied = errors.New("the source's policies are not all in the state log yet")

// Ready is nil while there is a state to serve.
func (c *Catalog) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.served() != nil:
		return nil
	case c.cur != nil, c.next != nil && c.next.pos.Generation != 0:
		return ErrNotCopied
	}
	return statelog.ErrNotReplayed
}

// Changed is closed at the next change of the state or the position.
func (c *Catalog) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// WaitFor returns when the state that is served is not older than pos.
func (c *Catalog) WaitFor(ctx context.Context, pos Position) error {
	for {
		changed := c.Changed()
		if cur, ok := c.Position(); ok && !cur.Before(pos) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Policies returns the policies of the log, sorted by namespace, name and kind,
// and what of the log is refused.
func (c *Catalog) Policies() (Position, []Policy, []*identityv1.RefusedObject) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.served() == nil {
		return Position{}, nil, nil
	}
	policies := make([]Policy, 0, len(c.cur.policies))
	for _, p := range c.cur.policies {
		policies = append(policies, p)
	}
	slices.SortFunc(policies, func(a, b Policy) int {
		return cmp.Or(cmp.Compare(a.Origin.Namespace, b.Origin.Namespace), cmp.Compare(a.Origin.Name, b.Origin.Name),
			cmp.Compare(a.Origin.Kind, b.Origin.Kind))
	})
	refused := make([]*identityv1.RefusedObject, 0, len(c.cur.refused))
	for _, r := range c.cur.refused {
		refused = append(refused, r)
	}
	slices.SortFunc(refused, func(a, b *identityv1.RefusedObject) int {
		return cmp.Or(cmp.Compare(a.GetFile(), b.GetFile()), cmp.Compare(a.GetLine(), b.GetLine()))
	})
	return c.cur.pos, policies, refused
}

// Explain judges a flow by the state that is served.
func (c *Catalog) Explain(f explain.Flow) (Position, explain.Explanation, error) {
	c.mu.Lock()
	if c.served() == nil {
		c.mu.Unlock()
		return Position{}, explain.Explanation{}, statelog.ErrNotReplayed
	}
	var pods []rule.IdentityHash
	for _, p := range []explain.Party{f.From, f.To} {
		if p.Identity != (rule.IdentityHash{}) {
			pods = append(pods, p.Identity)
		}
	}
	node, pos := c.cur.state.Node(pods), c.cur.pos
	c.mu.Unlock()
	e, err := explain.ByNode(node, f)
	return pos, e, err
}
