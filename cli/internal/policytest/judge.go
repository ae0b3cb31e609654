package policytest

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"strings"

	"weir.dev/weir/engine/httprule"
	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/resolve"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/engine/spec"
)

// answer is one side's verdict and what becomes of each request.
type answer struct {
	kind    spec.Kind
	permits func(request) bool
}

// judge answers what a flow's side may.
type judge interface {
	judge(dir rule.Direction, f spec.Flow) (answer, error)
}

// naive asks the specification.
type naive struct{ cluster spec.Cluster }

func (n naive) judge(dir rule.Direction, f spec.Flow) (answer, error) {
	v := n.cluster.Ingress(f)
	if dir == rule.Egress {
		v = n.cluster.Egress(f)
	}
	return answer{v.Kind, func(r request) bool {
		q := spec.Request{Method: r.Method, Target: r.Path, Host: r.Host}
		for _, name := range sortedKeys(r.Headers) {
			q.Header = append(q.Header, spec.Header{Name: name, Value: r.Headers[name]})
		}
		return v.Permits(q)
	}}, nil
}

// engine asks what runs in the cluster: one state, as every policy replica has
// it, and one node that has all pods.
type engine struct {
	index    *merge.Index
	subjects map[rule.IdentityHash]rule.Subject
	maps     map[cellKey]merge.PortMap
	matchers map[rule.ID]*httprule.Matcher
}

// cellKey names what two ends mean to each other.
type cellKey struct {
	subject   rule.IdentityHash
	direction rule.Direction
	peer      rule.Revision
	entity    rule.Entity
	addr      netip.Addr
}

func newEngine(w world) (*engine, error) {
	state := resolve.New()
	for _, name := range sortedKeys(w.namespaces) {
		state.SetNamespace(name, w.namespaces[name])
	}
	var hashes []rule.IdentityHash
	revision := rule.Revision(0)
	for _, name := range sortedKeys(w.pods) {
		p := w.pods[name]
		if p.ofNode {
			continue
		}
		revision++
		h := hash(p.identity)
		hashes = append(hashes, h)
		state.SetIdentity(revision, h, p.identity)
	}
	for i, p := range w.policies {
		if err := state.SetPolicy(fmt.Sprintf("%06d", i), p); err != nil {
			return nil, err
		}
	}
	node := state.Node(hashes)
	index, err := merge.New(merge.Policy{Selectors: node.Selectors, Rules: node.Rules, RuleSets: node.RuleSets})
	if err != nil {
		return nil, err
	}
	e := &engine{index: index, subjects: map[rule.IdentityHash]rule.Subject{},
		maps: map[cellKey]merge.PortMap{}, matchers: map[rule.ID]*httprule.Matcher{}}
	for _, s := range node.Subjects {
		e.subjects[s.Identity] = s
	}
	return e, nil
}

// hash names an identity within a scenario.
func hash(id rule.Identity) rule.IdentityHash {
	return sha256.Sum256(fmt.Appendf(nil, "%q", fmt.Sprintf("%+v", id)))
}

func (e *engine) judge(dir rule.Direction, f spec.Flow) (answer, error) {
	subject, peer := f.To, f.From
	if dir == rule.Egress {
		subject, peer = f.From, f.To
	}
	if subject.Identity == nil {
		return answer{spec.NotJudged, func(request) bool { return true }}, nil
	}
	m, err := e.portMap(dir, subject, peer)
	if err != nil {
		return answer{}, err
	}
	switch v := m.Verdict(f.Protocol, f.Port); v.Kind {
	case merge.Allow:
		return answer{spec.Allow, func(request) bool { return true }}, nil
	case merge.HTTP:
		matcher, err := e.matcher(v.RuleSet)
		if err != nil {
			return answer{}, err
		}
		return answer{spec.HTTP, func(r request) bool { return permits(matcher, r) }}, nil
	}
	return answer{spec.Deny, func(request) bool { return false }}, nil
}

func (e *engine) portMap(dir rule.Direction, subject, peer spec.Side) (merge.PortMap, error) {
	s, ok := e.subjects[hash(*subject.Identity)]
	if !ok {
		return nil, fmt.Errorf("identity of a pod in %s is not resolved", subject.Identity.Namespace)
	}
	desc := merge.PeerDesc{Entity: peer.Entity}
	if peer.Addr.IsValid() {
		desc.Prefix = netip.PrefixFrom(peer.Addr, peer.Addr.BitLen())
	}
	if peer.Identity != nil {
		desc.Entity, desc.Identity = rule.Endpoints, e.subjects[hash(*peer.Identity)].Revision
	}
	key := cellKey{s.Identity, dir, desc.Identity, desc.Entity, peer.Addr}
	if m, ok := e.maps[key]; ok {
		return m, nil
	}
	row := merge.RowKey{Subjects: s.Selectors, Direction: dir}
	m, _ := e.index.Judge(row, e.index.Matches(desc), desc.Entity)
	e.maps[key] = m
	return m, nil
}

func (e *engine) matcher(id rule.ID) (*httprule.Matcher, error) {
	if m, ok := e.matchers[id]; ok {
		return m, nil
	}
	set, ok := e.index.RuleSet(id)
	if !ok {
		return nil, fmt.Errorf("rule set %x is unknown", id)
	}
	m, err := httprule.Compile(set.Rules)
	if err != nil {
		return nil, err
	}
	e.matchers[id] = m
	return m, nil
}

func permits(m *httprule.Matcher, r request) bool {
	q := httprule.Request{Method: r.Method, Path: r.Path, Host: r.Host}
	for _, name := range sortedKeys(r.Headers) {
		q.Headers = append(q.Headers, httprule.Header{Name: strings.ToLower(name), Value: r.Headers[name]})
	}
	_, ok := m.Match(q)
	return ok
}
