package status

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"
	grpcstatus "google.golang.org/grpc/status"

	"weir.dev/weir/cli/internal/parts"
	enforcerv1 "weir.dev/weir/proto/weir/enforcer/v1"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	l7proxyv1 "weir.dev/weir/proto/weir/l7proxy/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// Report is what weir status tells; its JSON form is what -o json prints.
type Report struct {
	Demo     string    `json:"demo"`
	Healthy  bool      `json:"healthy"`
	Parts    []Part    `json:"parts"`
	Policies []Policy  `json:"policies"`
	Refused  []Refused `json:"refused"`
	// What is not as it should be, in sentences.
	Problems []string `json:"problems,omitempty"`
}

// Part is one process.
type Part struct {
	Name       string            `json:"name"`
	Up         bool              `json:"up"`
	Error      string            `json:"error,omitempty"`
	Version    string            `json:"version,omitempty"`
	Leader     bool              `json:"leader,omitempty"`
	Generation uint64            `json:"generation,omitempty"`
	Revision   uint64            `json:"revision,omitempty"` // replayed, or in force
	Detail     string            `json:"detail,omitempty"`
	Drops      map[string]uint64 `json:"drops,omitempty"` // of an enforcer, by reason
}

// Policy is one policy object and where it is in force.
type Policy struct {
	Kind      string   `json:"kind"`
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	File      string   `json:"file,omitempty"`
	Line      uint32   `json:"line,omitempty"`
	Enforced  uint32   `json:"enforced"`
	Nodes     uint32   `json:"nodes"`
	Stale     []string `json:"staleNodes,omitempty"`
	Warnings  []string `json:"warnings,omitempty"`
}

// Refused is a document without effect.
type Refused struct {
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	File      string `json:"file,omitempty"`
	Line      uint32 `json:"line,omitempty"`
	Reason    string `json:"reason"`
}

// askTimeout bounds the wait for one part's answer.
const askTimeout = 2 * time.Second

// collect asks every part at once.
func collect(ctx context.Context, d parts.Demo) (*Report, error) {
	r := &Report{Demo: d.Name, Policies: []Policy{}, Refused: []Refused{}}
	services := []struct {
		name string
		ask  asker
	}{
		{"identity", askIdentity}, {"policy", askPolicy}, {"enforcer", askEnforcer}, {"l7proxy", askProxy},
	}
	type question struct {
		part string
		ask  asker
	}
	var questions []question
	for _, s := range services {
		names, err := d.Parts(s.name)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			questions = append(questions, question{name, s.ask})
		}
	}
	r.Parts = make([]Part, len(questions))
	var got answers
	var wg sync.WaitGroup
	for i, q := range questions {
		wg.Go(func() { r.Parts[i] = answer(ctx, d, q.part, q.ask, &got) })
	}
	wg.Wait()
	refused, err := d.Refused()
	if err != nil {
		return nil, err
	}
	for _, o := range refused {
		got.refused = append(got.refused, &identityv1.RefusedObject{
			Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, File: o.File, Line: uint32(o.Line), Reason: o.Reason,
		})
	}
	r.fill(&got)
	return r, nil
}

// answers is what the parts said beyond themselves; mu guards it.
type answers struct {
	mu       sync.Mutex
	policies *policyv1.ListPoliciesResponse // the newest
	refused  []*identityv1.RefusedObject
}

// asker asks one part and fills in what it said.
type asker func(context.Context, *grpc.ClientConn, *Part, *answers) error

func answer(ctx context.Context, d parts.Demo, name string, ask asker, got *answers) Part {
	p := Part{Name: name}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := d.Dial(name)
	if err == nil {
		err = errors.Join(ask(ctx, conn, &p, got), conn.Close())
	}
	p.Up = err == nil
	if err != nil {
		p.Error = grpcstatus.Convert(err).Message()
	}
	return p
}

func askIdentity(ctx context.Context, conn *grpc.ClientConn, p *Part, got *answers) error {
	s, err := identityv1.NewIdentityServiceClient(conn).GetStatus(ctx, &identityv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	p.Version, p.Leader, p.Generation, p.Revision = s.GetVersion(), s.GetLeader(), s.GetGeneration(), s.GetRevision()
	p.Detail = count(s.GetIdentities(), "identity", "identities") + ", " + count(s.GetAddresses(), "address", "addresses")
	got.mu.Lock()
	defer got.mu.Unlock()
	got.refused = append(got.refused, s.GetRefused()...)
	return unsynced(p, s.GetUnsynced())
}

func askPolicy(ctx context.Context, conn *grpc.ClientConn, p *Part, got *answers) error {
	c := policyv1.NewPolicyServiceClient(conn)
	s, err := c.GetStatus(ctx, &policyv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	p.Version, p.Leader, p.Generation, p.Revision = s.GetVersion(), s.GetLeader(), s.GetGeneration(), s.GetRevision()
	p.Detail = count(s.GetPolicies(), "policy", "policies") + ", " + count(s.GetStreams(), "node watches", "nodes watch")
	list, err := c.ListPolicies(ctx, &policyv1.ListPoliciesRequest{})
	if err != nil {
		return err
	}
	got.mu.Lock()
	defer got.mu.Unlock()
	if got.policies == nil || got.policies.GetRevision() < list.GetRevision() {
		got.policies = list
	}
	got.refused = append(got.refused, list.GetRefused()...)
	return unsynced(p, s.GetUnsynced())
}

func askEnforcer(ctx context.Context, conn *grpc.ClientConn, p *Part, _ *answers) error {
	s, err := enforcerv1.NewEnforcerServiceClient(conn).GetStatus(ctx, &enforcerv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	p.Version, p.Generation, p.Revision, p.Drops = s.GetVersion(), s.GetGeneration(), s.GetRevision(), s.GetDrops()
	p.Detail = sprintf("%s, %s, word %d, policy from %s", count(s.GetEndpoints(), "endpoint", "endpoints"),
		count(s.GetCells(), "cell", "cells"), s.GetWord(), orNone(s.GetPolicyReplica()))
	if !s.GetProxyConnected() {
		p.Detail += ", no proxy"
	}
	if n := s.GetLostEvents(); n > 0 {
		p.Detail += sprintf(", %d events lost", n)
	}
	return nil
}

func askProxy(ctx context.Context, conn *grpc.ClientConn, p *Part, _ *answers) error {
	s, err := l7proxyv1.NewProxyServiceClient(conn).GetStatus(ctx, &l7proxyv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	p.Version = s.GetVersion()
	p.Detail = sprintf("%s, %s, %s, %d denied", count(s.GetRuleSets(), "rule set", "rule sets"),
		count(s.GetConnections(), "connection", "connections"), count(s.GetRequests(), "request", "requests"), s.GetDenied())
	return nil
}
