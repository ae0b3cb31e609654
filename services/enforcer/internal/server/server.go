// Package server answers people about one node's enforcer: EnforcerService and
// the metrics. It translates and decides nothing.
package server

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/engine/rule"
	enforcerv1 "weir.dev/weir/proto/weir/enforcer/v1"
	"weir.dev/weir/services/enforcer/internal/datapath"
	"weir.dev/weir/services/enforcer/internal/endpoint"
	"weir.dev/weir/services/enforcer/internal/plan"
	"weir.dev/weir/services/enforcer/internal/policyclient"
	"weir.dev/weir/services/enforcer/internal/reconcile"
)

// Sources are what a Server asks. All fields are required, and may be called
// from any goroutine.
type Sources struct {
	Node, Version string
	Started       time.Time
	Policy        func() policyclient.Status
	MovePolicy    func(address string) (left string, err error)
	Current       func() *reconcile.Change // nil: nothing is in force yet
	Endpoints     *endpoint.Registry
	Counters      func() ([]datapath.Count, error)
	Lost          func() (drops, flows uint64, err error)
	Conntrack     func() []datapath.Held
	// Replica of weir-identity that is connected to; empty: none.
	IdentityReplica func() string
	NATSConnected   func() bool
	ProxyConnected  func() bool
	AddressSequence func() uint64
	Word            func() uint64
}

// Server is the EnforcerService.
type Server struct {
	enforcerv1.UnimplementedEnforcerServiceServer
	Sources
}

// GetStatus tells what the enforcer is connected to and has in force.
func (s Server) GetStatus(context.Context, *enforcerv1.GetStatusRequest) (*enforcerv1.GetStatusResponse, error) {
	p := s.Policy()
	r := &enforcerv1.GetStatusResponse{
		Node: s.Node, Version: s.Version, Started: timestamppb.New(s.Started),
		Generation: p.InForce.Generation, Revision: uint64(p.InForce.Revision), Word: s.Word(),
		PolicyReplica: p.Replica, IdentityReplica: s.IdentityReplica(),
		NatsConnected: s.NATSConnected(), ProxyConnected: s.ProxyConnected(), AddressSequence: s.AddressSequence(),
		Endpoints: uint32(len(s.Endpoints.List())), WatchBytes: p.Bytes, WatchLastBytes: p.LastBytes,
		Drops: map[string]uint64{},
	}
	if c := s.Current(); c != nil {
		r.Peers, r.Classes, r.Cells, r.PortMaps = sizes(c.State)
	}
	drops, flows, err := s.Lost()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	r.LostEvents = drops + flows
	counts, err := s.Counters()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	for _, c := range counts {
		if c.Reason != bpf.ReasonNone && c.Packets > 0 {
			r.Drops[c.Reason.String()] += c.Packets
		}
	}
	return r, nil
}

// sizes counts peers, classes, cells, and port maps that differ.
func sizes(s plan.State) (peers, classes, cells, portMaps uint32) {
	different := map[plan.Class]struct{}{}
	for _, c := range s.Classes {
		different[c] = struct{}{}
	}
	texts := map[string]struct{}{}
	for _, m := range s.Cells {
		texts[text(m)] = struct{}{}
	}
	return uint32(len(s.Classes)), uint32(len(different)), uint32(len(s.Cells)), uint32(len(texts))
}

// ListEndpoints tells the node's endpoints and whether they are judged yet.
func (s Server) ListEndpoints(context.Context, *enforcerv1.ListEndpointsRequest) (*enforcerv1.ListEndpointsResponse, error) {
	r := &enforcerv1.ListEndpointsResponse{}
	for _, e := range s.Endpoints.List() {
		p := &enforcerv1.Endpoint{
			Namespace: e.Namespace, Pod: e.Pod, PodUid: e.PodUID, HostInterface: e.HostInterface, Ifindex: e.Ifindex,
			Labels: e.Labels, State: enforcerv1.EndpointState_ENDPOINT_STATE_WAITING,
		}
		if e.Identity != (rule.IdentityHash{}) {
			p.Identity = e.Identity[:]
		}
		if s.Endpoints.Ready(e.ID) {
			p.State = enforcerv1.EndpointState_ENDPOINT_STATE_READY
		}
		for _, a := range e.Addrs {
			p.Addresses = append(p.Addresses, a.AsSlice())
		}
		r.Endpoints = append(r.Endpoints, p)
	}
	return r, nil
}

// DumpState tells what is in force, as text: endpoints with their rows, and for
// each row its cells.
func (s Server) DumpState(context.Context, *enforcerv1.DumpStateRequest) (*enforcerv1.DumpStateResponse, error) {
	c := s.Current()
	if c == nil {
		return nil, status.Error(codes.Unavailable, "nothing is in force yet since the enforcer started; the kernel keeps what the last run put there")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "generation %d revision %d word %d\n", c.At.Generation, c.At.Revision, s.Word())
	for _, i := range slices.Sorted(maps.Keys(c.State.Endpoints)) {
		e := c.State.Endpoints[i]
		fmt.Fprintf(&b, "endpoint %d ifindex %d egress row %d ingress row %d addresses %v\n", e.ID, i, e.Egress, e.Ingress, e.Addrs)
	}
	for _, a := range slices.SortedFunc(maps.Keys(c.State.Addresses), netip.Addr.Compare) {
		ref := c.State.Addresses[a]
		fmt.Fprintf(&b, "address %s peer %d class %d flags %d\n", a, ref.Peer, c.State.Classes[ref.Peer], ref.Flags)
	}
	for _, p := range slices.SortedFunc(maps.Keys(c.State.Prefixes), netip.Prefix.Compare) {
		ref := c.State.Prefixes[p]
		fmt.Fprintf(&b, "prefix %s peer %d class %d flags %d\n", p, ref.Peer, c.State.Classes[ref.Peer], ref.Flags)
	}
	for _, k := range slices.SortedFunc(maps.Keys(c.State.Cells), compareCells) {
		name := fmt.Sprint(k.Class)
		if k.Class == plan.DefaultClass {
			name = "default"
		}
		fmt.Fprintf(&b, "cell row %d class %s: %s\n", k.Row, name, text(c.State.Cells[k]))
	}
	for _, k := range slices.SortedFunc(maps.Keys(c.State.Services), compareServices) {
		fmt.Fprintf(&b, "service %s protocol %d port %d: %v\n", k.Addr, k.Protocol, k.Port, c.State.Services[k])
	}
	return &enforcerv1.DumpStateResponse{Text: b.String()}, nil
}

func compareCells(a, b plan.CellKey) int {
	return cmp.Or(cmp.Compare(a.Row, b.Row), cmp.Compare(a.Class, b.Class))
}

func compareServices(a, b plan.ServiceKey) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

// UsePolicyReplica leaves the policy replica for another.
func (s Server) UsePolicyReplica(_ context.Context, r *enforcerv1.UsePolicyReplicaRequest) (*enforcerv1.UsePolicyReplicaResponse, error) {
	left, err := s.MovePolicy(r.GetAddress())
	if err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	return &enforcerv1.UsePolicyReplicaResponse{Left: left}, nil
}

// text is a port map as "tcp/80 rule set 2, tcp/81 deny".
func text(m plan.PortMap) string {
	var parts []string
	for _, r := range m {
		verdict := fmt.Sprintf("rule set %d", r.Verdict)
		switch r.Verdict {
		case rule.Denied:
			verdict = "deny"
		case rule.Allowed:
			verdict = "allow"
		}
		parts = append(parts, fmt.Sprintf("%d/%d %s", r.Start>>16, r.Start&0xffff, verdict))
	}
	return strings.Join(parts, ", ")
}
