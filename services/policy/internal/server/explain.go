package server

import (
	"context"
	"net/netip"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weir.dev/weir/engine/explain"
	"weir.dev/weir/engine/httprule"
	"weir.dev/weir/engine/rule"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/policy/internal/stream"
)

// Explain implements the RPC.
func (s *Server) Explain(ctx context.Context, req *policyv1.ExplainRequest) (*policyv1.ExplainResponse, error) {
	if err := allow(ctx); err != nil {
		return nil, err
	}
	if req.GetProtocol() > 255 || req.GetPort() > 65535 {
		return nil, status.Errorf(codes.InvalidArgument, "protocol %d, port %d: out of range", req.GetProtocol(), req.GetPort())
	}
	f := explain.Flow{Protocol: uint8(req.GetProtocol()), Port: uint16(req.GetPort())}
	var err error
	if f.From, err = party(req.GetFrom(), "from"); err != nil {
		return nil, err
	}
	if f.To, err = party(req.GetTo(), "to"); err != nil {
		return nil, err
	}
	if h := req.GetHttp(); h != nil {
		f.Request = request(h)
	}
	pos, e, err := s.c.Catalog.Explain(f)
	if err != nil {
		return nil, codeOf(err)
	}
	return &policyv1.ExplainResponse{
		Generation: pos.Generation, Revision: pos.Revision,
		Egress: judgement(e.Egress, f.Request != nil), Ingress: judgement(e.Ingress, f.Request != nil),
	}, nil
}

func party(p *policyv1.Party, field string) (explain.Party, error) {
	var out explain.Party
	switch v := p.GetParty().(type) {
	case *policyv1.Party_Identity:
		if len(v.Identity) != len(rule.IdentityHash{}) {
			return out, status.Errorf(codes.InvalidArgument, "%s.identity has %d bytes, want %d", field, len(v.Identity), len(rule.IdentityHash{}))
		}
		out.Identity, out.Entity = rule.IdentityHash(v.Identity), rule.Endpoints
	case *policyv1.Party_Address:
		a, ok := netip.AddrFromSlice(v.Address)
		if !ok {
			return out, status.Errorf(codes.InvalidArgument, "%s.address has %d bytes, want 4 or 16", field, len(v.Address))
		}
		out.Addr, out.Entity = a.Unmap(), rule.World
	case *policyv1.Party_Entity:
		if v.Entity != policyv1.Entity_ENTITY_WORLD && v.Entity != policyv1.Entity_ENTITY_HOST && v.Entity != policyv1.Entity_ENTITY_REMOTE_NODE {
			return out, status.Errorf(codes.InvalidArgument, "%s.entity is %s, want world, host or remote-node", field, v.Entity)
		}
		out.Entity = rule.Entity(v.Entity)
	default:
		return out, status.Errorf(codes.InvalidArgument, "%s is missing: an identity, an address or an entity", field)
	}
	if len(p.GetAddresses()) > 0 {
		a, ok := netip.AddrFromSlice(p.GetAddresses()[0])
		if !ok {
			return out, status.Errorf(codes.InvalidArgument, "%s.addresses[0] has %d bytes, want 4 or 16", field, len(p.GetAddresses()[0]))
		}
		out.Addr = a.Unmap()
	}
	return out, nil
}

func request(h *policyv1.HTTPRequest) *httprule.Request {
	r := &httprule.Request{Method: h.GetMethod(), Path: h.GetPath(), Host: h.GetHost()}
	for _, hd := range h.GetHeaders() {
		r.Headers = append(r.Headers, httprule.Header{Name: strings.ToLower(hd.GetName()), Value: hd.GetValue()})
	}
	return r
}

var verdicts = map[explain.Verdict]policyv1.Verdict{
	explain.Deny:      policyv1.Verdict_VERDICT_DENY,
	explain.Allow:     policyv1.Verdict_VERDICT_ALLOW,
	explain.HTTP:      policyv1.Verdict_VERDICT_HTTP,
	explain.NotJudged: policyv1.Verdict_VERDICT_NOT_JUDGED,
}

func judgement(j explain.Judgement, asked bool) *policyv1.Judgement {
	out := &policyv1.Judgement{Verdict: verdicts[j.Verdict], Reason: j.Reason}
	if asked {
		out.Request = verdicts[j.Request]
	}
	if j.DecidedBy != nil {
		out.DecidedBy = stream.Origin(*j.DecidedBy)
	}
	for _, o := range j.SelectedBy {
		out.SelectedBy = append(out.SelectedBy, stream.Origin(o))
	}
	return out
}
