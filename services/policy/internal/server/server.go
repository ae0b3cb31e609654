// Package server answers weir.policy.v1: it checks who calls, translates, asks
// the catalog, and translates back. It decides nothing else.
package server

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	kit "weir.dev/weir/internal/source"
	"weir.dev/weir/internal/statelog"
	"weir.dev/weir/internal/tlsconf"
	"weir.dev/weir/internal/version"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/policy/internal/catalog"
	nodes "weir.dev/weir/services/policy/internal/status"
	"weir.dev/weir/services/policy/internal/stream"
)

// Server implements the service.
type Server struct {
	policyv1.UnimplementedPolicyServiceServer
	c Config
}

// Config is what a Server answers from.
type Config struct {
	Replica string
	Catalog *catalog.Catalog
	Nodes   *nodes.Nodes
	Source  *kit.Store
	Leader  func() bool
	Sent    stream.Sent
	Started time.Time
	Log     *slog.Logger
	// Stop ends streams, so that a stop does not wait for them.
	Stop <-chan struct{}
}

// New returns a server.
func New(c Config) *Server { return &Server{c: c} }

// operators are those who may see everything.
var operators = []tlsconf.Role{tlsconf.Identity, tlsconf.Policy, tlsconf.CLI}

func allow(ctx context.Context) error {
	n, ok := tlsconf.FromContext(ctx)
	if !ok || !slices.Contains(operators, n.Role) {
		return status.Errorf(codes.PermissionDenied, "%s may not do this", n)
	}
	return nil
}

func codeOf(err error) error {
	code := codes.Internal
	switch {
	case err == nil:
		return nil
	case errors.Is(err, statelog.ErrNotReplayed):
		code = codes.Unavailable
	}
	return status.Error(code, err.Error())
}

// WatchPolicy implements the RPC.
func (s *Server) WatchPolicy(str policyv1.PolicyService_WatchPolicyServer) error {
	n, ok := tlsconf.FromContext(str.Context())
	if !ok || n.Role != tlsconf.Node {
		return status.Error(codes.PermissionDenied, "only a node may watch its policy: call with a node's certificate")
	}
	if err := s.c.Catalog.Ready(); err != nil {
		return codeOf(err)
	}
	closed := s.c.Nodes.Opened(n.Name)
	defer closed()
	session := stream.Session{Node: n.Name, Catalog: s.c.Catalog, Nodes: s.c.Nodes, Sent: s.c.Sent, Log: s.c.Log, Stop: s.c.Stop}
	return session.Serve(str)
}

// ListPolicies implements the RPC.
func (s *Server) ListPolicies(ctx context.Context, req *policyv1.ListPoliciesRequest) (*policyv1.ListPoliciesResponse, error) {
	if err := allow(ctx); err != nil {
		return nil, err
	}
	if err := s.c.Catalog.Ready(); err != nil {
		return nil, codeOf(err)
	}
	pos, policies, ofLog := s.c.Catalog.Policies()
	all := s.c.Nodes.All()
	resp := &policyv1.ListPoliciesResponse{Generation: pos.Generation, Revision: pos.Revision}
	in := func(namespace string) bool { return req.GetNamespace() == "" || namespace == req.GetNamespace() }
	for _, p := range policies {
		if !in(p.Origin.Namespace) {
			continue
		}
		enforced, live, stale := nodes.Enforced(all, catalog.Position{Generation: pos.Generation, Revision: p.Revision})
		resp.Policies = append(resp.Policies, &policyv1.PolicyStatus{
			Origin: stream.Origin(p.Origin), Revision: p.Revision,
			Enforced: enforced, Nodes: live, StaleNodes: stale, Warnings: p.Warnings,
		})
	}
	for _, r := range s.refused(ofLog) {
		if r.GetNamespace() == "" || in(r.GetNamespace()) {
			resp.Refused = append(resp.Refused, r)
		}
	}
	return resp, nil
}

// refused is what the source and what the log has that is without effect, of
// whatever kind: nobody else may read these folders.
func (s *Server) refused(ofLog []*identityv1.RefusedObject) []*identityv1.RefusedObject {
	out := slices.Clone(ofLog)
	for _, r := range s.c.Source.Refused() {
		out = append(out, &identityv1.RefusedObject{
			Kind: r.Kind, Namespace: r.Namespace, Name: r.Name, File: r.File, Line: uint32(r.Line), Reason: r.Reason,
		})
	}
	slices.SortStableFunc(out, func(a, b *identityv1.RefusedObject) int {
		return cmp.Or(cmp.Compare(a.GetFile(), b.GetFile()), cmp.Compare(a.GetLine(), b.GetLine()))
	})
	return slices.CompactFunc(out, func(a, b *identityv1.RefusedObject) bool { return proto.Equal(a, b) })
}

// GetStatus implements the RPC.
func (s *Server) GetStatus(ctx context.Context, _ *policyv1.GetStatusRequest) (*policyv1.GetStatusResponse, error) {
	if err := allow(ctx); err != nil {
		return nil, err
	}
	pos, policies, _ := s.c.Catalog.Policies()
	resp := &policyv1.GetStatusResponse{
		Replica: s.c.Replica, Version: version.Version, Leader: s.c.Leader(),
		Generation: pos.Generation, Revision: pos.Revision,
		Policies: uint32(len(policies)), Streams: uint32(s.c.Nodes.Streams()),
		Started: timestamppb.New(s.c.Started), Unsynced: s.c.Source.Unsynced(),
	}
	for _, n := range s.c.Nodes.All() {
		resp.Nodes = append(resp.Nodes, n.Message())
	}
	return resp, nil
}
