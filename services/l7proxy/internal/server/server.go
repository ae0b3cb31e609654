// Package server serves weir.l7proxy.v1: it translates rule sets for the core
// and verdicts for the enforcer. It decides nothing.
package server

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/logkey"
	l7proxyv1 "weir.dev/weir/proto/weir/l7proxy/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/l7proxy/internal/rules"
)

// Counts is what GetStatus tells of the proxy at work.
type Counts interface {
	Open() int
	Requests() (all, denied uint64)
}

// Config is what a Server needs. All fields must be set.
type Config struct {
	Version string
	Rules   *rules.Table
	Ring    *Ring
	Counts  Counts
	Log     *slog.Logger
}

// Server implements weir.l7proxy.v1.ProxyService.
type Server struct {
	l7proxyv1.UnimplementedProxyServiceServer
	cfg    Config
	once   sync.Once
	taught chan struct{}
	ending chan struct{}
}

// New returns a Server.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, taught: make(chan struct{}), ending: make(chan struct{})}
}

// Taught is closed when rule sets have been set for the first time.
func (s *Server) Taught() <-chan struct{} { return s.taught }

// SetRuleSets implements ProxyService. A rule set that cannot be compiled lets
// nothing pass; that is the fault of who made it and no reason to stop the rest.
func (s *Server) SetRuleSets(_ context.Context, req *l7proxyv1.SetRuleSetsRequest) (*l7proxyv1.SetRuleSetsResponse, error) {
	sets := map[uint32]*rules.Set{}
	for _, n := range req.GetRuleSets() {
		if n.GetNumber() < uint32(rule.FirstRuleSet) {
			return nil, status.Errorf(codes.InvalidArgument, "rule set number %d: the least is %d", n.GetNumber(), rule.FirstRuleSet)
		}
		set, err := rules.Compile(partsOf(n))
		if err != nil {
			s.cfg.Log.Error("rule set denies everything: it does not compile", "number", n.GetNumber(), logkey.Error, err)
			set = &rules.Set{}
		}
		sets[n.GetNumber()] = set
	}
	s.cfg.Rules.Apply(sets, req.GetComplete())
	s.once.Do(func() { close(s.taught) })
	s.cfg.Log.Debug("rule sets known", "set", len(sets), "complete", req.GetComplete(), logkey.Count, len(s.cfg.Rules.Numbers()))
	return &l7proxyv1.SetRuleSetsResponse{}, nil
}

func partsOf(n *l7proxyv1.NumberedRuleSet) [][]rule.HTTPRule {
	var parts [][]rule.HTTPRule
	for _, rs := range n.GetAllOf() {
		part := []rule.HTTPRule{}
		for _, r := range rs.GetRules() {
			part = append(part, ruleOf(r))
		}
		parts = append(parts, part)
	}
	return parts
}

func ruleOf(r *policyv1.HTTPRule) rule.HTTPRule {
	out := rule.HTTPRule{Method: r.Method, Path: r.Path, Host: r.Host}
	for _, h := range r.GetHeaders() {
		out.Headers = append(out.Headers, rule.HeaderRule{Name: h.GetName(), Value: h.Value})
	}
	return out
}

// atOnce bounds the verdicts of one message.
const atOnce = 256

// WatchRequests implements ProxyService.
func (s *Server) WatchRequests(_ *l7proxyv1.WatchRequestsRequest, stream grpc.ServerStreamingServer[l7proxyv1.WatchRequestsResponse]) error {
	w := s.cfg.Ring.watch()
	defer s.cfg.Ring.forget(w)
	for {
		select {
		case <-stream.Context().Done():
			return ignoreEnd(stream.Context().Err())
		case <-s.ending:
			return nil
		case <-w.wake:
		}
		verdicts, lost := s.cfg.Ring.take(w)
		for chunk := range slices.Chunk(verdicts, atOnce) {
			if err := stream.Send(&l7proxyv1.WatchRequestsResponse{Verdicts: chunk, Lost: lost}); err != nil {
				return err
			}
			lost = 0
		}
	}
}

// End ends the streams, so that nobody waits for them. It may be called once.
func (s *Server) End() { close(s.ending) }

func ignoreEnd(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// GetStatus implements ProxyService.
func (s *Server) GetStatus(context.Context, *l7proxyv1.GetStatusRequest) (*l7proxyv1.GetStatusResponse, error) {
	all, denied := s.cfg.Counts.Requests()
	return &l7proxyv1.GetStatusResponse{
		Version:     s.cfg.Version,
		Connections: uint32(s.cfg.Counts.Open()),
		Requests:    all,
		Denied:      denied,
		RuleSets:    uint32(len(s.cfg.Rules.Numbers())),
	}, nil
}
