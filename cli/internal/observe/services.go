package observe

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/status"

	"weir.dev/weir/cli/internal/parts"
	flowv1 "weir.dev/weir/proto/weir/flow/v1"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// servicePrefix begins the entity of a Service.
const servicePrefix = "service "

// Services asks identity for all Services.
func Services(ctx context.Context, d parts.Demo) ([]*identityv1.Service, error) {
	var out []*identityv1.Service
	err := d.Any("identity", func(part string) error {
		conn, err := d.Dial(part)
		if err != nil {
			return err
		}
		defer conn.Close()
		r, err := identityv1.NewIdentityServiceClient(conn).ListServices(ctx, &identityv1.ListServicesRequest{})
		if err != nil {
			return fmt.Errorf("%s: %s", part, status.Convert(err).Message())
		}
		out = r.GetServices()
		return nil
	})
	return out, err
}

// frontend is where a Service is reached.
type frontend struct {
	addr     netip.Addr
	protocol uint32
	port     uint32
}

// names tells which Service a frontend is of. An enforcer knows Services only
// where a rule for egress concerns it; to people they always have a name.
type names struct {
	list func(context.Context) ([]*identityv1.Service, error)
	now  func() time.Time

	mu    sync.Mutex
	asked time.Time
	at    map[frontend]*identityv1.Service
}

// askEvery is how often an address without a name makes names ask again.
const askEvery = time.Second

// service is the one at f; nil if none is known.
func (n *names) service(ctx context.Context, f frontend) *identityv1.Service {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.at[f]; s != nil || !n.asked.IsZero() && n.now().Sub(n.asked) < askEvery {
		return s
	}
	n.asked = n.now()
	all, err := n.list(ctx)
	if err != nil {
		return nil // the address is all there is to tell
	}
	n.at = map[frontend]*identityv1.Service{}
	for _, s := range all {
		for _, b := range s.GetAddresses() {
			a, ok := netip.AddrFromSlice(b)
			for _, p := range s.GetPorts() {
				if ok {
					n.at[frontend{a.Unmap(), p.GetProtocol(), p.GetPort()}] = s
				}
			}
		}
	}
	return n.at[f]
}

// name gives a flow's far end the name of its Service, if it is one's.
func (n *names) name(ctx context.Context, f *flowv1.Flow) {
	p := f.GetDestination()
	if f.GetDirection() != policyv1.Direction_DIRECTION_EGRESS || p.GetPod() != "" || p.GetEntity() != "" && p.GetEntity() != "world" {
		return
	}
	a, ok := netip.AddrFromSlice(p.GetAddress())
	if !ok {
		return
	}
	if s := n.service(ctx, frontend{a.Unmap(), f.GetProtocol(), f.GetDestinationPort()}); s != nil {
		p.Namespace, p.Entity = s.GetNamespace(), servicePrefix+s.GetName()
	}
}

// serviceOf is NAMESPACE/NAME of a peer that is a Service.
func serviceOf(p *flowv1.Peer) (string, bool) {
	name, ok := strings.CutPrefix(p.GetEntity(), servicePrefix)
	return p.GetNamespace() + "/" + name, ok
}
