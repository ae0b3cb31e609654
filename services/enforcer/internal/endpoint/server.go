package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/logkey"
	enforcerv1 "weir.dev/weir/proto/weir/enforcer/v1"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	"weir.dev/weir/services/enforcer/internal/desired"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// Kernel attaches the programs to interfaces. An attached interface that the
// kernel's state does not name lets nothing pass.
type Kernel interface {
	// Attach is safe to repeat.
	Attach(ifindex uint32) error
	// Detach takes the programs off and forgets the endpoint's flows. An
	// interface that is gone is no error.
	Detach(ifindex, endpoint uint32) error
	// Attached errs unless both programs are there.
	Attached(ifindex uint32) error
}

// Identities registers pods. identityv1.IdentityServiceClient is one.
type Identities interface {
	Register(ctx context.Context, r *identityv1.RegisterRequest, opts ...grpc.CallOption) (*identityv1.RegisterResponse, error)
	Release(ctx context.Context, r *identityv1.ReleaseRequest, opts ...grpc.CallOption) (*identityv1.ReleaseResponse, error)
}

// Links knows this node's interfaces.
type Links interface {
	// Veth is the index and MAC of a veth. Another kind of interface, or none,
	// is an error.
	Veth(name string) (ifindex uint32, mac [6]byte, err error)
}

// Server is the EndpointService.
type Server struct {
	enforcerv1.UnimplementedEndpointServiceServer
	registry   *Registry
	kernel     Kernel
	identities Identities
	links      Links
	log        *slog.Logger
	release    chan struct{} // capacity 1: there are releases to do
	addDone    func(took time.Duration)
	doubt      func(Endpoint) bool

	mu       sync.Mutex
	busy     map[Key]*turn
	unjudged error // endpoints whose programs are not in place
}

// turn lets one call at a time touch an endpoint.
type turn struct {
	sync.Mutex
	waiting int // calls that hold or want it; under Server.mu
}

// NewServer makes the service. addDone is told how long each successful
// AddEndpoint took; doubt says whether an endpoint's registration may be lost.
func NewServer(r *Registry, k Kernel, i Identities, l Links, log *slog.Logger, addDone func(time.Duration), doubt func(Endpoint) bool) *Server {
	return &Server{
		registry: r, kernel: k, identities: i, links: l, log: log, addDone: addDone, doubt: doubt,
		release: make(chan struct{}, 1), busy: map[Key]*turn{},
	}
}

func (s *Server) lock(k Key) (unlock func()) {
	s.mu.Lock()
	t := s.busy[k]
	if t == nil {
		t = &turn{}
		s.busy[k] = t
	}
	t.waiting++
	s.mu.Unlock()
	t.Lock()
	return func() {
		t.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.waiting--; t.waiting == 0 {
			delete(s.busy, k)
		}
	}
}

// AddEndpoint returns when the pod's interface is judged by a policy that knows
// the pod's identity.
func (s *Server) AddEndpoint(ctx context.Context, r *enforcerv1.AddEndpointRequest) (*enforcerv1.AddEndpointResponse, error) {
	began := time.Now()
	e, err := requested(r)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	defer s.lock(e.Key)()
	if e.Ifindex, e.HostMAC, err = s.links.Veth(e.HostInterface); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	if err := s.displace(e); err != nil {
		return nil, err
	}
	if old, ok := s.registry.Find(e.Key); ok && old.PodUID == e.PodUID && slices.Equal(old.Addrs, e.Addrs) && old.Ifindex == e.Ifindex {
		e = old // a repeated ADD; its registration is repeated too
	}
	// Attached first: from here on nothing passes until a policy says so.
	if err := s.kernel.Attach(e.Ifindex); err != nil {
		return nil, status.Errorf(codes.Internal, "attach programs to %s: %v", e.HostInterface, err)
	}
	if e, err = s.registry.Put(e); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	reg, err := s.register(ctx, e)
	if err != nil {
		return nil, err
	}
	e.Identity = rule.IdentityHash(reg.GetIdentity())
	e.Entered = desired.Position{Generation: reg.GetGeneration(), Revision: rule.Revision(reg.GetIdentityRevision())}
	e.Next, e.NextEntered = rule.IdentityHash{}, desired.Position{}
	e.Labels, e.LabelsOf = labels(reg.GetContent()), e.Identity
	if e, err = s.registry.Put(e); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := s.registry.Wait(ctx, e); err != nil {
		return nil, status.Errorf(codes.Unavailable, "%v; is weir-policy reachable from this node?", err)
	}
	s.addDone(time.Since(began))
	s.log.Info("endpoint in force", logkey.Namespace, e.Namespace, logkey.Pod, e.Pod, logkey.Endpoint, e.ID, logkey.Took, time.Since(began))
	return &enforcerv1.AddEndpointResponse{Identity: e.Identity[:], Revision: uint64(e.Entered.Revision)}, nil
}

func requested(r *enforcerv1.AddEndpointRequest) (Endpoint, error) {
	e := Endpoint{
		Key:       Key{r.GetContainerId(), r.GetInterface()},
		Namespace: r.GetNamespace(), Pod: r.GetPod(), PodUID: r.GetPodUid(),
		Netns: r.GetNetns(), HostInterface: r.GetHostInterface(),
	}
	switch {
	case e.ContainerID == "" || e.Interface == "" || e.Namespace == "" || e.Pod == "" || e.HostInterface == "":
		return Endpoint{}, errors.New("container_id, interface, host_interface, namespace and pod are required")
	case len(r.GetMac()) != len(e.PodMAC):
		return Endpoint{}, fmt.Errorf("a MAC of %d bytes, want 6", len(r.GetMac()))
	case len(r.GetAddresses()) == 0 || len(r.GetAddresses()) > plan.MaxEndpointAddrs:
		return Endpoint{}, fmt.Errorf("%d addresses, want 1 to %d", len(r.GetAddresses()), plan.MaxEndpointAddrs)
	}
	e.PodMAC = [6]byte(r.GetMac())
	for _, b := range r.GetAddresses() {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return Endpoint{}, fmt.Errorf("an address of %d bytes, want 4 or 16", len(b))
		}
		e.Addrs = append(e.Addrs, a.Unmap())
	}
	slices.SortFunc(e.Addrs, netip.Addr.Compare)
	return e, nil
}

// displace removes endpoints whose interface is gone, and refuses an address
// that a living one has.
func (s *Server) displace(e Endpoint) error {
	for _, o := range s.registry.List() {
		if o.Key == e.Key {
			continue
		}
		shared := o.Ifindex == e.Ifindex || slices.ContainsFunc(o.Addrs, func(a netip.Addr) bool { return slices.Contains(e.Addrs, a) })
		if !shared {
			continue
		}
		if ifindex, _, err := s.links.Veth(o.HostInterface); err == nil && ifindex == o.Ifindex && ifindex != e.Ifindex {
			return status.Errorf(codes.AlreadyExists, "pod %s/%s on this node has one of these addresses and its interface %s is there; delete that pod first",
				o.Namespace, o.Pod, o.HostInterface)
		}
		if err := s.remove(o); err != nil {
			return err
		}
	}
	return nil
}

// register asks for the pod's identity. A pod that the identity service does
// not know yet is asked for again for a while: its object may be under way.
func (s *Server) register(ctx context.Context, e Endpoint) (*identityv1.RegisterResponse, error) {
	req := registration(e)
	unknownUntil := time.Now().Add(5 * time.Second)
	for {
		reg, err := s.identities.Register(ctx, req, grpc.WaitForReady(true))
		if err == nil && len(reg.GetIdentity()) != len(rule.IdentityHash{}) {
			return nil, status.Errorf(codes.Internal, "weir-identity answered with an identity of %d bytes, want 32", len(reg.GetIdentity()))
		}
		if err == nil {
			return reg, nil
		}
		code := status.Code(err)
		again := code == codes.Unavailable || code == codes.FailedPrecondition && time.Now().Before(unknownUntil)
		if !again || !pause(ctx, 100*time.Millisecond) {
			if code == codes.DeadlineExceeded || code == codes.Canceled {
				code = codes.Unavailable
			}
			return nil, status.Errorf(code, "register pod %s/%s with weir-identity: %s", e.Namespace, e.Pod, status.Convert(err).Message())
		}
	}
}

func labels(id *identityv1.Identity) []string {
	var out []string
	for _, l := range id.GetLabels() {
		out = append(out, l.GetKey()+"="+l.GetValue())
	}
	return out
}

// DeleteEndpoint detaches and releases. Unknown endpoints are no error.
func (s *Server) DeleteEndpoint(_ context.Context, r *enforcerv1.DeleteEndpointRequest) (*enforcerv1.DeleteEndpointResponse, error) {
	key := Key{r.GetContainerId(), r.GetInterface()}
	defer s.lock(key)()
	if e, ok := s.registry.Find(key); ok {
		if err := s.remove(e); err != nil {
			return nil, err
		}
	}
	return &enforcerv1.DeleteEndpointResponse{}, nil
}

func (s *Server) remove(e Endpoint) error {
	if err := s.registry.Remove(e); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	if err := s.kernel.Detach(e.Ifindex, e.ID); err != nil {
		return status.Errorf(codes.Internal, "detach programs from %s: %v", e.HostInterface, err)
	}
	select {
	case s.release <- struct{}{}:
	default:
	}
	s.log.Info("endpoint removed", logkey.Namespace, e.Namespace, logkey.Pod, e.Pod, logkey.Endpoint, e.ID)
	return nil
}

// CheckEndpoint fails unless the programs are attached and the endpoint is
// judged by a policy that knows its identity.
func (s *Server) CheckEndpoint(_ context.Context, r *enforcerv1.CheckEndpointRequest) (*enforcerv1.CheckEndpointResponse, error) {
	e, ok := s.registry.Find(Key{r.GetContainerId(), r.GetInterface()})
	if !ok {
		return nil, status.Errorf(codes.NotFound, "%v: container %s, interface %s", ErrUnknown, r.GetContainerId(), r.GetInterface())
	}
	if err := s.kernel.Attached(e.Ifindex); err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "check %s: %v", e.HostInterface, err)
	}
	if !s.registry.Ready(e.ID) {
		return nil, status.Errorf(codes.FailedPrecondition, "pod %s/%s is closed: no policy that knows its identity is in force", e.Namespace, e.Pod)
	}
	return &enforcerv1.CheckEndpointResponse{}, nil
}

// CollectEndpoints deletes every endpoint that is not named.
func (s *Server) CollectEndpoints(ctx context.Context, r *enforcerv1.CollectEndpointsRequest) (*enforcerv1.CollectEndpointsResponse, error) {
	var valid []Key
	for _, a := range r.GetValid() {
		valid = append(valid, Key{a.GetContainerId(), a.GetInterface()})
	}
	slices.SortFunc(valid, compareKeys)
	var deleted uint32
	for _, e := range s.registry.List() {
		if _, ok := slices.BinarySearchFunc(valid, e.Key, compareKeys); ok {
			continue
		}
		if _, err := s.DeleteEndpoint(ctx, &enforcerv1.DeleteEndpointRequest{ContainerId: e.ContainerID, Interface: e.Interface}); err != nil {
			return nil, err
		}
		deleted++
	}
	return &enforcerv1.CollectEndpointsResponse{Deleted: deleted}, nil
}

// Adopt takes over the endpoints of the last run: those whose interface is
// still there are attached, the others removed. It is called before serving.
func (s *Server) Adopt() error {
	for _, e := range s.registry.List() {
		ifindex, _, err := s.links.Veth(e.HostInterface)
		if err != nil || ifindex != e.Ifindex {
			if err := s.remove(e); err != nil {
				return fmt.Errorf("adopt endpoint of %s/%s: %w", e.Namespace, e.Pod, err)
			}
			continue
		}
		if err := s.kernel.Attach(e.Ifindex); err != nil {
			return fmt.Errorf("adopt endpoint of %s/%s: attach to %s: %w", e.Namespace, e.Pod, e.HostInterface, err)
		}
	}
	return nil
}

// Attached errs while programs of some endpoint are not in place.
func (s *Server) Attached() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unjudged
}

// reattach puts programs back that somebody took off. What is not in place then
// (another program came before ours, say) is told by Attached.
func (s *Server) reattach() {
	var errs []error
	for _, e := range s.registry.List() {
		if err := s.reattachOne(e.Key); err != nil {
			errs = append(errs, fmt.Errorf("%s of %s/%s: %w", e.HostInterface, e.Namespace, e.Pod, err))
		}
	}
	err := errors.Join(errs...)
	s.mu.Lock()
	news := err != nil && s.unjudged == nil
	s.unjudged = err
	s.mu.Unlock()
	if news {
		s.log.Error("endpoints are not judged", logkey.Error, err)
	}
}

func (s *Server) reattachOne(key Key) error {
	defer s.lock(key)()
	e, ok := s.registry.Find(key)
	if !ok {
		return nil
	}
	if ifindex, _, err := s.links.Veth(e.HostInterface); err != nil || ifindex != e.Ifindex {
		return nil // the pod is gone, and its DEL under way
	}
	missing := s.kernel.Attached(e.Ifindex)
	if missing == nil {
		return nil
	}
	if err := s.kernel.Attach(e.Ifindex); err != nil {
		return err
	}
	if err := s.kernel.Attached(e.Ifindex); err != nil {
		return err
	}
	s.log.Warn("programs attached again", logkey.Namespace, e.Namespace, logkey.Pod, e.Pod, logkey.Error, missing)
	return nil
}

// lookEvery is how often Run looks for what is to be done.
const lookEvery = 2 * time.Second

// Run gives the addresses of removed pods back, registers again whose
// registration was lost, and looks after the programs of all, until ctx ends. What
// cannot be done while weir-identity is away is tried again; the programs wait
// for nobody.
func (s *Server) Run(ctx context.Context) error {
	var programs sync.WaitGroup
	programs.Go(func() { s.keepAttached(ctx) })
	defer programs.Wait()
	retry := time.NewTicker(lookEvery)
	defer retry.Stop()
	for {
		if err := errors.Join(s.releaseAll(ctx), s.registerAgain(ctx)); err != nil {
			s.log.Error("endpoints not written down", logkey.Error, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.release:
		case <-retry.C:
		}
	}
}

// keepAttached looks after the programs of all endpoints until ctx ends.
func (s *Server) keepAttached(ctx context.Context) {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		s.reattach()
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

// callLimit bounds one call of weir-identity that nobody waits for.
const callLimit = 5 * time.Second

func (s *Server) releaseAll(ctx context.Context) error {
	for _, r := range s.registry.Releases() {
		call, cancel := context.WithTimeout(ctx, callLimit)
		_, err := s.identities.Release(call, &identityv1.ReleaseRequest{Namespace: r.Namespace, Name: r.Pod, PodUid: r.PodUID})
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				s.log.Warn("addresses not released yet", logkey.Namespace, r.Namespace, logkey.Pod, r.Pod, logkey.Error, err)
			}
			return nil
		}
		if err := s.registry.Released(r); err != nil {
			return err
		}
	}
	return nil
}

// registerAgain registers pods whose registration may be lost, with the log
// that had it, and relabelled ones, which tells their labels. For others it
// would change nothing.
func (s *Server) registerAgain(ctx context.Context) error {
	for _, e := range s.registry.List() {
		lost := e.Identity != (rule.IdentityHash{}) && s.doubt(e)
		if e.LabelsOf == e.Identity && !lost {
			continue
		}
		call, cancel := context.WithTimeout(ctx, callLimit)
		reg, err := s.identities.Register(call, registration(e))
		cancel()
		if err == nil && len(reg.GetIdentity()) != len(e.Identity) {
			err = errors.New("weir-identity answered without an identity")
		}
		if err != nil {
			s.log.Debug("pod not registered again", logkey.Namespace, e.Namespace, logkey.Pod, e.Pod, logkey.Error, err)
			continue
		}
		if lost {
			s.log.Info("pod registered again", logkey.Namespace, e.Namespace, logkey.Pod, e.Pod, logkey.Revision, reg.GetIdentityRevision())
		}
		id := rule.IdentityHash(reg.GetIdentity())
		entered := desired.Position{Generation: reg.GetGeneration(), Revision: rule.Revision(reg.GetIdentityRevision())}
		if err := errors.Join(s.registry.Relabel(e.PodUID, id, entered), s.registry.SetLabels(e.ID, id, labels(reg.GetContent()))); err != nil {
			return err
		}
	}
	return nil
}

func registration(e Endpoint) *identityv1.RegisterRequest {
	req := &identityv1.RegisterRequest{Namespace: e.Namespace, Name: e.Pod, PodUid: e.PodUID}
	for _, a := range e.Addrs {
		req.Addresses = append(req.Addresses, a.AsSlice())
	}
	return req
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
