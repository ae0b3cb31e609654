package flow

import (
	"net/netip"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/engine/rule"
	flowv1 "weir.dev/weir/proto/weir/flow/v1"
	l7proxyv1 "weir.dev/weir/proto/weir/l7proxy/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/enforcer/internal/datapath"
	"weir.dev/weir/services/enforcer/internal/desired"
	"weir.dev/weir/services/enforcer/internal/endpoint"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// httpDenied is the reason of a refused request that the proxy gave none for.
const httpDenied = "http-denied"

// Records finds the record of an address.
type Records interface {
	Find(netip.Addr) (desired.Record, bool)
}

// Endpoints lists the node's own.
type Endpoints interface {
	List() []endpoint.Endpoint
}

// Translator names what events tell by number. It may be used by several
// goroutines.
type Translator struct {
	node      string
	records   Records
	endpoints Endpoints

	mu      sync.RWMutex
	history []state // by word, the newest last
	local   map[netip.Addr]endpoint.Endpoint
	byID    map[uint32]endpoint.Endpoint
}

// state is what explains the events of one word.
type state struct {
	word    uint64
	kernel  plan.State
	explain *desired.Explanation
}

// historySize is how many words back events are explained: they lie in the ring
// for milliseconds.
const historySize = 4

// NewTranslator makes a Translator for a node that has nothing in force yet.
func NewTranslator(node string, r Records, e Endpoints) *Translator {
	return &Translator{node: node, records: r, endpoints: e}
}

// InForce takes note of what explains the events from now on.
func (t *Translator) InForce(word uint64, s plan.State, e *desired.Explanation) {
	local, byID := map[netip.Addr]endpoint.Endpoint{}, map[uint32]endpoint.Endpoint{}
	for _, x := range t.endpoints.List() {
		byID[x.ID] = x
		for _, a := range x.Addrs {
			local[a] = x
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.local, t.byID = local, byID
	now := state{word, s, e}
	if n := len(t.history); n > 0 && t.history[n-1].word == word {
		t.history[n-1] = now
		return
	}
	t.history = append(t.history, now)
	if len(t.history) > historySize {
		t.history = append([]state{}, t.history[1:]...)
	}
}

// at is the state of a word, or the newest.
func (t *Translator) at(word uint64) (state, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for i := len(t.history) - 1; i >= 0; i-- {
		if t.history[i].word == word {
			return t.history[i], true
		}
	}
	if n := len(t.history); n > 0 {
		return t.history[n-1], true
	}
	return state{}, false
}

// Event is the flow that an event tells.
func (t *Translator) Event(e datapath.Event) *flowv1.Flow {
	s, known := t.at(e.Word)
	f := &flowv1.Flow{
		Time: timestamppb.New(e.Time), Node: t.node,
		Direction: policyv1.Direction_DIRECTION_EGRESS, Verdict: policyv1.Verdict_VERDICT_ALLOW,
		Source: t.peer(e.Src.Addr()), Destination: t.peer(e.Dst.Addr()), Protocol: uint32(e.Protocol),
		SourcePort: uint32(e.Src.Port()), DestinationPort: uint32(e.Dst.Port()), Word: e.Word,
	}
	own, other := f.Source, f.Destination
	if e.Ingress {
		f.Direction, own, other = policyv1.Direction_DIRECTION_INGRESS, f.Destination, f.Source
	}
	f.Endpoint = t.judgedAt(e.Endpoint, own)
	switch {
	case e.Drop:
		f.Verdict, f.Reason = policyv1.Verdict_VERDICT_DENY, e.Reason.String()
	case e.Verdict >= rule.FirstRuleSet:
		f.Verdict = policyv1.Verdict_VERDICT_HTTP
	}
	if !known {
		return f
	}
	f.Revision = uint64(s.explain.At.Revision)
	t.nameOther(other, s.explain, e)
	if !judged(e) {
		return f
	}
	d := s.explain.Decide(e.Row, e.Class, e.Protocol, e.Port)
	if d.Rule != nil {
		f.DecidedBy = origin(d.Rule.Origin)
		if d.Rule.Action == rule.Deny && e.Reason == bpf.ReasonNoRule {
			f.Reason = bpf.ReasonDenied.String()
		}
	}
	f.SelectedBy = origins(d.Selecting)
	return f
}

// judged says whether a row's cell had a part in the event.
func judged(e datapath.Event) bool {
	switch e.Reason {
	case bpf.ReasonNone, bpf.ReasonNoRule, bpf.ReasonDenied, bpf.ReasonBackendsDiffer,
		bpf.ReasonNoProxy, bpf.ReasonHTTPStarted, bpf.ReasonNoBackend:
		return e.Row >= plan.FirstRow
	}
	return false
}

// nameOther names the far end where no pod has its address.
func (t *Translator) nameOther(p *flowv1.Peer, x *desired.Explanation, e datapath.Event) {
	if p.Pod != "" {
		return
	}
	if !e.Ingress {
		service, ok := x.Service(plan.ServiceKey{Addr: e.Dst.Addr(), Protocol: e.Protocol, Port: e.Dst.Port()})
		if ok {
			p.Namespace, p.Entity = service.Namespace, "service "+service.Name
			return
		}
	}
	if name := entityName(x.Entity(e.Peer)); name != "" && p.Entity == "" {
		p.Entity = name
	}
}

func entityName(e rule.Entity) string {
	switch e {
	case rule.World:
		return "world"
	case rule.Host:
		return "host"
	case rule.RemoteNode:
		return "remote-node"
	}
	return ""
}

// peer names an address by the node's own endpoints, then by the records.
func (t *Translator) peer(a netip.Addr) *flowv1.Peer {
	p := &flowv1.Peer{Address: a.AsSlice()}
	t.mu.RLock()
	e, ok := t.local[a]
	t.mu.RUnlock()
	if ok {
		namePod(p, e)
		return p
	}
	r, ok := t.records.Find(a)
	switch {
	case !ok:
	case r.NodeAddress && r.Node == t.node:
		p.Entity = "host"
	case r.NodeAddress:
		p.Entity = "remote-node"
	default:
		p.Namespace, p.Pod, p.Identity = r.Namespace, r.Pod, r.Identity[:]
	}
	return p
}

func namePod(p *flowv1.Peer, e endpoint.Endpoint) {
	p.Namespace, p.Pod, p.Identity, p.Labels = e.Namespace, e.Pod, e.Identity[:], e.Labels
}

// judgedAt is the pod of an endpoint if its end of the flow has not its address.
func (t *Translator) judgedAt(id uint32, own *flowv1.Peer) *flowv1.Peer {
	t.mu.RLock()
	e, ok := t.byID[id]
	t.mu.RUnlock()
	if !ok || own.Namespace == e.Namespace && own.Pod == e.Pod {
		return nil
	}
	p := &flowv1.Peer{}
	if len(e.Addrs) > 0 {
		p.Address = e.Addrs[0].AsSlice()
	}
	namePod(p, e)
	return p
}

// Request is the flow that a verdict of the proxy tells.
func (t *Translator) Request(v *l7proxyv1.RequestVerdict) *flowv1.Flow {
	src, _ := netip.AddrFromSlice(v.GetSource())
	dst, _ := netip.AddrFromSlice(v.GetDestination())
	src, dst = src.Unmap(), dst.Unmap()
	f := &flowv1.Flow{
		Time: timestamppb.New(time.Unix(0, int64(v.GetTimeUnixNano()))), Node: t.node,
		Direction: v.GetDirection(), Verdict: policyv1.Verdict_VERDICT_ALLOW,
		Source: t.peer(src), Destination: t.peer(dst), Protocol: uint32(rule.TCP),
		SourcePort: v.GetSourcePort(), DestinationPort: v.GetDestinationPort(),
		Http: &flowv1.HTTPFlow{Method: v.GetMethod(), Path: v.GetPath(), Host: v.GetHost(), Status: v.GetStatus(), Requests: 1},
	}
	if v.GetDenied() {
		f.Verdict, f.Reason = policyv1.Verdict_VERDICT_DENY, v.GetReason()
		if f.Reason == "" {
			f.Reason = httpDenied
		}
	}
	s, known := t.at(^uint64(0))
	if !known {
		return f
	}
	f.Revision, f.Word = uint64(s.explain.At.Revision), s.word
	if v.GetDirection() == policyv1.Direction_DIRECTION_EGRESS {
		if service, ok := s.explain.Service(plan.ServiceKey{Addr: dst, Protocol: rule.TCP, Port: uint16(v.GetDestinationPort())}); ok {
			f.Destination.Namespace, f.Destination.Entity = service.Namespace, "service "+service.Name
		}
	}
	if h, ok := s.explain.HTTPRule(rule.Verdict(v.GetRuleSet()), int(v.GetRule())); ok && !v.GetDenied() {
		f.DecidedBy = origin(h.Origin)
		return f
	}
	if v.GetDenied() {
		f.SelectedBy = origins(s.explain.Refusing(t.row(s, src, dst, v.GetDirection()), rule.Verdict(v.GetRuleSet())))
	}
	return f
}

// row is that of the pod whose traffic was judged; closed if it is gone.
func (t *Translator) row(s state, src, dst netip.Addr, d policyv1.Direction) plan.Row {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if d == policyv1.Direction_DIRECTION_EGRESS {
		return s.kernel.Endpoints[t.local[src].Ifindex].Egress
	}
	return s.kernel.Endpoints[t.local[dst].Ifindex].Ingress
}

func origins(os []rule.Origin) []*policyv1.Origin {
	var out []*policyv1.Origin
	for _, o := range os {
		out = append(out, origin(o))
	}
	return out
}

func origin(o rule.Origin) *policyv1.Origin {
	return &policyv1.Origin{
		Kind: o.Kind, ApiVersion: o.APIVersion, Namespace: o.Namespace, Name: o.Name,
		Path: o.Path, File: o.File, Line: uint32(o.Line),
	}
}
