package tutorial

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weir.dev/weir/cli/internal/parts"
	flowv1 "weir.dev/weir/proto/weir/flow/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// flowLimit is how long a refusal's flow may come after the refusal.
const flowLimit = 3 * time.Second

// flows collects the refusals that every node tells.
type flows struct {
	g sync.WaitGroup

	mu      sync.Mutex
	all     []*flowv1.Flow
	changed chan struct{}
}

// collect begins to collect. It returns when every enforcer listens.
func collect(ctx context.Context, d parts.Demo) (*flows, error) {
	f := &flows{changed: make(chan struct{})}
	enforcers, err := d.Parts("enforcer")
	if err != nil {
		return nil, err
	}
	for _, name := range enforcers {
		conn, err := d.Dial(name)
		if err != nil {
			return nil, err
		}
		stream, err := flowv1.NewFlowServiceClient(conn).Observe(ctx, &flowv1.ObserveRequest{
			Follow: true, Last: 1000, Verdicts: []policyv1.Verdict{policyv1.Verdict_VERDICT_DENY},
		})
		if err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("observe %s: %w", name, err)
		}
		f.g.Go(func() {
			defer func() { _ = conn.Close() }()
			for {
				resp, err := stream.Recv()
				if err != nil {
					return // the demo is going down, or the refusal will be missed
				}
				if flow := resp.GetFlow(); flow != nil {
					f.add(flow)
				}
			}
		})
	}
	return f, nil
}

func (f *flows) wait(stop context.CancelFunc) {
	stop()
	f.g.Wait()
}

func (f *flows) add(flow *flowv1.Flow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, flow)
	close(f.changed)
	f.changed = make(chan struct{})
}

// refusal waits for the flow that tells of this very request's refusal, by the
// client's own address and port, with a reason.
func (f *flows) refusal(ctx context.Context, g response, client pod) (*flowv1.Flow, bool) {
	ctx, cancel := context.WithTimeout(ctx, flowLimit)
	defer cancel()
	for {
		f.mu.Lock()
		i := slices.IndexFunc(f.all, func(flow *flowv1.Flow) bool { return refuses(flow, g, client) })
		var found *flowv1.Flow
		if i >= 0 {
			found = f.all[i]
		}
		changed := f.changed
		f.mu.Unlock()
		if found != nil {
			return found, true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, false
		}
	}
}

func refuses(flow *flowv1.Flow, g response, client pod) bool {
	if flow.GetVerdict() != policyv1.Verdict_VERDICT_DENY || flow.GetReason() == "" ||
		flow.GetSourcePort() != uint32(g.port) || flow.GetDirection() != policyv1.Direction_DIRECTION_INGRESS {
		return false
	}
	own := slices.ContainsFunc(client.addresses, func(a string) bool {
		addr, err := netip.ParseAddr(a)
		got, ok := netip.AddrFromSlice(flow.GetSource().GetAddress())
		return err == nil && ok && bytes.Equal(addr.AsSlice(), got.Unmap().AsSlice())
	})
	if !own {
		return false
	}
	// A request that was answered was refused by the proxy, all else by the
	// kernel: each wants its own kind of flow.
	if g.status != 0 {
		return flow.GetHttp().GetStatus() == uint32(g.status)
	}
	return flow.GetHttp() == nil
}
