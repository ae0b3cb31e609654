// Package server answers weir.identity.v1: it checks who calls, translates,
// calls the registry, and translates back. It decides nothing else.
package server

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	kit "weir.dev/weir/internal/source"
	"weir.dev/weir/internal/statelog"
	"weir.dev/weir/internal/tlsconf"
	"weir.dev/weir/internal/version"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	"weir.dev/weir/services/identity/internal/address"
	"weir.dev/weir/services/identity/internal/registry"
	"weir.dev/weir/services/identity/internal/source"
)

// snapshotPart is how many records one message of a snapshot has at most.
const snapshotPart = 2000

// Server implements the service.
type Server struct {
	identityv1.UnimplementedIdentityServiceServer
	c Config
}

// Config is what a Server answers from.
type Config struct {
	Replica  string
	Registry *registry.Registry
	Book     *address.Book
	Writer   *address.Writer
	View     *statelog.View
	Source   *kit.Store
	Leader   func() bool
	Started  time.Time
}

// New returns a server.
func New(c Config) *Server { return &Server{c: c} }

// caller returns the name of the calling node.
func caller(ctx context.Context) (string, error) {
	n, ok := tlsconf.FromContext(ctx)
	if !ok || n.Role != tlsconf.Node {
		return "", status.Error(codes.PermissionDenied, "only a node may do this, and only for itself: call with a node's certificate")
	}
	return n.Name, nil
}

// allow checks that the caller has one of the roles.
func allow(ctx context.Context, roles ...tlsconf.Role) error {
	n, ok := tlsconf.FromContext(ctx)
	if !ok || !slices.Contains(roles, n.Role) {
		return status.Errorf(codes.PermissionDenied, "%s may not do this", n)
	}
	return nil
}

// Those who may read addresses, and those who may see everything.
var (
	readers   = []tlsconf.Role{tlsconf.Node, tlsconf.Identity, tlsconf.Policy, tlsconf.CLI}
	operators = []tlsconf.Role{tlsconf.Identity, tlsconf.Policy, tlsconf.CLI}
)

// codeOf maps errors to codes.
func codeOf(err error) error {
	code := codes.Internal
	var ofServer jetstream.JetStreamError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, registry.ErrMalformed):
		code = codes.InvalidArgument
	case errors.Is(err, registry.ErrPod), errors.Is(err, registry.ErrNamespace):
		code = codes.FailedPrecondition
	case errors.Is(err, address.ErrOwned):
		code = codes.AlreadyExists
	case errors.Is(err, address.ErrContended):
		code = codes.Aborted
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	case errors.Is(err, statelog.ErrNotReplayed), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, nats.ErrTimeout), errors.Is(err, nats.ErrNoResponders), errors.Is(err, nats.ErrConnectionClosed),
		errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrDisconnected),
		errors.Is(err, jetstream.ErrNoStreamResponse), errors.As(err, &ofServer):
		code = codes.Unavailable // the caller tries again
	}
	return status.Error(code, err.Error())
}

// Register implements the RPC.
func (s *Server) Register(ctx context.Context, req *identityv1.RegisterRequest) (*identityv1.RegisterResponse, error) {
	node, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := s.c.Registry.Register(ctx, node, req)
	return resp, codeOf(err)
}

// Release implements the RPC.
func (s *Server) Release(ctx context.Context, req *identityv1.ReleaseRequest) (*identityv1.ReleaseResponse, error) {
	node, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	n, err := s.c.Registry.Release(ctx, node, req)
	if err != nil {
		return nil, codeOf(err)
	}
	return &identityv1.ReleaseResponse{Released: n}, nil
}

// RegisterNode implements the RPC.
func (s *Server) RegisterNode(ctx context.Context, req *identityv1.RegisterNodeRequest) (*identityv1.RegisterNodeResponse, error) {
	node, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	refused, err := s.c.Registry.RegisterNode(ctx, node, req)
	if err != nil {
		return nil, codeOf(err)
	}
	resp := &identityv1.RegisterNodeResponse{}
	for _, a := range refused {
		resp.Refused = append(resp.Refused, a.AsSlice())
	}
	return resp, nil
}

// Lookup implements the RPC.
func (s *Server) Lookup(ctx context.Context, req *identityv1.LookupRequest) (*identityv1.LookupResponse, error) {
	if err := allow(ctx, readers...); err != nil {
		return nil, err
	}
	a, ok := netip.AddrFromSlice(req.GetAddress())
	if !ok {
		return nil, status.Errorf(codes.InvalidArgument, "address has %d bytes, want 4 or 16", len(req.GetAddress()))
	}
	if err := s.c.Registry.Ready(); err != nil {
		return nil, codeOf(err)
	}
	if err := s.c.Writer.CatchUp(ctx); err != nil {
		return nil, codeOf(err)
	}
	head, _ := s.c.Book.Head() // before the record: never newer than it
	resp := &identityv1.LookupResponse{Sequence: head.Sequence}
	if r, ok := s.c.Book.Get(a); ok {
		resp.Record = r.AddressRecord
	}
	return resp, nil
}

// Snapshot implements the RPC.
func (s *Server) Snapshot(_ *identityv1.SnapshotRequest, stream grpc.ServerStreamingServer[identityv1.SnapshotResponse]) error {
	ctx := stream.Context()
	if err := allow(ctx, readers...); err != nil {
		return err
	}
	if err := s.c.Registry.Ready(); err != nil {
		return codeOf(err)
	}
	if err := s.c.Writer.CatchUp(ctx); err != nil {
		return codeOf(err)
	}
	if err := s.c.Registry.Ready(); err != nil { // the stream was replaced meanwhile
		return codeOf(err)
	}
	records, head := s.c.Book.All()
	for part := range slices.Chunk(records, snapshotPart) {
		msg := &identityv1.SnapshotResponse{}
		for _, r := range part {
			msg.Records = append(msg.Records, r.AddressRecord)
		}
		if err := stream.Send(msg); err != nil {
			return err
		}
	}
	return stream.Send(&identityv1.SnapshotResponse{
		End: true, Sequence: head.Sequence, CreatedUnixNano: head.Created.UnixNano(),
	})
}

// ListIdentities implements the RPC.
func (s *Server) ListIdentities(ctx context.Context, _ *identityv1.ListIdentitiesRequest) (*identityv1.ListIdentitiesResponse, error) {
	if err := allow(ctx, operators...); err != nil {
		return nil, err
	}
	resp := &identityv1.ListIdentitiesResponse{}
	s.c.View.Each(statelog.Identity, func(k statelog.Key, e statelog.Entry) bool {
		hash, err := k.Hash()
		content, ok := e.Value.(*identityv1.Identity)
		if err == nil && ok {
			resp.Identities = append(resp.Identities, &identityv1.IdentityEntry{Hash: hash, Revision: e.Revision, Content: content})
		}
		return true
	})
	slices.SortFunc(resp.Identities, func(a, b *identityv1.IdentityEntry) int {
		return cmp.Compare(a.GetRevision(), b.GetRevision())
	})
	return resp, nil
}

// ListAddresses implements the RPC.
func (s *Server) ListAddresses(ctx context.Context, req *identityv1.ListAddressesRequest) (*identityv1.ListAddressesResponse, error) {
	if err := allow(ctx, operators...); err != nil {
		return nil, err
	}
	records, head := s.c.Book.All()
	resp := &identityv1.ListAddressesResponse{Sequence: head.Sequence}
	for _, r := range records {
		if (req.GetNamespace() == "" || r.GetPodNamespace() == req.GetNamespace()) &&
			(req.GetPod() == "" || r.GetPodName() == req.GetPod()) {
			resp.Records = append(resp.Records, r.AddressRecord)
		}
	}
	return resp, nil
}

// ListServices implements the RPC.
func (s *Server) ListServices(ctx context.Context, req *identityv1.ListServicesRequest) (*identityv1.ListServicesResponse, error) {
	if err := allow(ctx, operators...); err != nil {
		return nil, err
	}
	resp := &identityv1.ListServicesResponse{Revision: s.c.View.Position().Revision}
	s.c.View.Each(statelog.Service, func(_ statelog.Key, e statelog.Entry) bool {
		v, ok := e.Value.(*identityv1.Service)
		if ok && (req.GetNamespace() == "" || v.GetNamespace() == req.GetNamespace()) {
			resp.Services = append(resp.Services, v)
		}
		return true
	})
	slices.SortFunc(resp.Services, func(a, b *identityv1.Service) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return resp, nil
}

// GetStatus implements the RPC.
func (s *Server) GetStatus(ctx context.Context, _ *identityv1.GetStatusRequest) (*identityv1.GetStatusResponse, error) {
	if err := allow(ctx, operators...); err != nil {
		return nil, err
	}
	pos := s.c.View.Position()
	head, _ := s.c.Book.Head()
	identities := 0
	s.c.View.Each(statelog.Identity, func(statelog.Key, statelog.Entry) bool { identities++; return true })
	resp := &identityv1.GetStatusResponse{
		Replica: s.c.Replica, Version: version.Version, Leader: s.c.Leader(),
		Generation: pos.Generation, Revision: pos.Revision, AddressSequence: head.Sequence,
		Identities: uint32(identities), Addresses: uint32(s.c.Book.Len()),
		Started: timestamppb.New(s.c.Started), Unsynced: s.c.Source.Unsynced(),
	}
	for _, r := range s.c.Source.Refused() {
		if !source.Concerns(r.Kind) {
			continue // what policy tells of where it reads the same folder
		}
		resp.Refused = append(resp.Refused, &identityv1.RefusedObject{
			Kind: r.Kind, Namespace: r.Namespace, Name: r.Name, File: r.File, Line: uint32(r.Line), Reason: r.Reason,
		})
	}
	return resp, nil
}
