package proxyclient_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"weir.dev/weir/engine/rule"
	l7proxyv1 "weir.dev/weir/proto/weir/l7proxy/v1"
	"weir.dev/weir/services/enforcer/internal/desired"
	"weir.dev/weir/services/enforcer/internal/proxyclient"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// proxy knows rule sets as the real one does.
type proxy struct {
	l7proxyv1.UnimplementedProxyServiceServer
	mu    sync.Mutex
	knows map[uint32]bool
	hangs atomic.Bool   // it never answers again
	set   chan []uint32 // what it knows after each call
	send  chan *l7proxyv1.WatchRequestsResponse
}

func (p *proxy) SetRuleSets(ctx context.Context, r *l7proxyv1.SetRuleSetsRequest) (*l7proxyv1.SetRuleSetsResponse, error) {
	if p.hangs.Load() {
		p.set <- nil
		<-ctx.Done()
		return nil, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.GetComplete() {
		p.knows = map[uint32]bool{}
	}
	for _, s := range r.GetRuleSets() {
		p.knows[s.GetNumber()] = true
	}
	p.set <- slices.Sorted(maps.Keys(p.knows))
	return &l7proxyv1.SetRuleSetsResponse{}, nil
}

func (p *proxy) GetStatus(context.Context, *l7proxyv1.GetStatusRequest) (*l7proxyv1.GetStatusResponse, error) {
	return &l7proxyv1.GetStatusResponse{}, nil
}

func (p *proxy) WatchRequests(_ *l7proxyv1.WatchRequestsRequest, s grpc.ServerStreamingServer[l7proxyv1.WatchRequestsResponse]) error {
	for {
		select {
		case r := <-p.send:
			if err := s.Send(r); err != nil {
				return err
			}
		case <-s.Context().Done():
			return nil
		}
	}
}

func start(t *testing.T, p *proxy) (dial func() (*grpc.ClientConn, error), stop func()) {
	t.Helper()
	lis := bufconn.Listen(1 << 16)
	s := grpc.NewServer()
	l7proxyv1.RegisterProxyServiceServer(s, p)
	done := make(chan error)
	go func() { done <- s.Serve(lis) }()
	return func() (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:proxy", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
		}, func() {
			s.Stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
}

func sets(numbers ...rule.Verdict) []desired.RuleSet {
	var out []desired.RuleSet
	for _, n := range numbers {
		out = append(out, desired.RuleSet{Number: n, AllOf: []rule.RuleSet{{ID: rule.NewID([]byte{byte(n)})}}})
	}
	return out
}

func TestProxyLearnsAllBeforeItIsUsed(t *testing.T) {
	// It still has one of the last run, which stays until there is a whole state.
	p := &proxy{knows: map[uint32]bool{1: true}, set: make(chan []uint32, 10), send: make(chan *l7proxyv1.WatchRequestsResponse)}
	dial, stop := start(t, p)
	defer stop()
	var verdicts = make(chan *l7proxyv1.RequestVerdict)
	c := proxyclient.New(proxyclient.Config{
		Dial: dial, Instance: func() uint64 { return 1 }, Verdict: func(v *l7proxyv1.RequestVerdict) { verdicts <- v },
		Lost: func(uint64) {}, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.Learn(ctx, sets(2, 3)); !errors.Is(err, proxyclient.ErrAway) {
		t.Fatalf("learn without a proxy: %v, want that it is away", err)
	}
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	want := func(step string, numbers ...uint32) {
		t.Helper()
		if got := <-p.set; !slices.Equal(got, numbers) {
			t.Errorf("%s: the proxy knows %v, want %v", step, got, numbers)
		}
	}
	want("connected", 1, 2, 3)
	p.send <- &l7proxyv1.WatchRequestsResponse{Verdicts: []*l7proxyv1.RequestVerdict{{Path: "/private"}}}
	if v := <-verdicts; v.GetPath() != "/private" {
		t.Errorf("verdict of path %q", v.GetPath())
	}
	if err := c.Learn(ctx, sets(2, 3, 4)); err != nil {
		t.Fatal(err)
	}
	want("learned one more", 1, 2, 3, 4)
	c.Keep(sets(4))
	want("forgot the rest", 4)
	if err := c.Learn(ctx, sets(4)); err != nil || len(p.set) > 0 {
		t.Errorf("nothing new to learn: %v, and %d calls", err, len(p.set))
	}
}

// A successor is taught beside the proxy that it replaces: it accepts only then,
// and the old one serves its connections to their end.
// An enforcer that has just started does not change what is in force before the
// proxy that is there has learned of it.
func TestLearnWaitsForAProxyThatIsThere(t *testing.T) {
	p := &proxy{knows: map[uint32]bool{1: true}, set: make(chan []uint32, 10), send: make(chan *l7proxyv1.WatchRequestsResponse)}
	dial, stop := start(t, p)
	defer stop()
	c := proxyclient.New(proxyclient.Config{
		Dial: dial, Instance: func() uint64 { return 1 }, Verdict: func(*l7proxyv1.RequestVerdict) {},
		Lost: func(uint64) {}, Log: slog.New(slog.DiscardHandler),
	})
	learned := make(chan error, 1)
	go func() { learned <- c.Learn(t.Context(), sets(2)) }()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	if err := <-learned; err != nil {
		t.Errorf("learn: %v", err)
	}
	p.mu.Lock()
	knows := p.knows[2]
	p.mu.Unlock()
	if !knows {
		t.Error("the proxy does not know what it should have learned")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSuccessorIsTaughtBesideTheOld(t *testing.T) {
	proxies := []*proxy{
		{set: make(chan []uint32, 10), send: make(chan *l7proxyv1.WatchRequestsResponse)},
		{set: make(chan []uint32, 10), send: make(chan *l7proxyv1.WatchRequestsResponse)},
	}
	var dials []func() (*grpc.ClientConn, error)
	var stops []func()
	for _, p := range proxies {
		dial, stop := start(t, p)
		dials, stops = append(dials, dial), append(stops, stop)
	}
	defer stops[1]()
	var now atomic.Uint64
	now.Store(1)
	verdicts := make(chan *l7proxyv1.RequestVerdict)
	c := proxyclient.New(proxyclient.Config{
		Dial:     func() (*grpc.ClientConn, error) { return dials[now.Load()-1]() },
		Instance: now.Load, Verdict: func(v *l7proxyv1.RequestVerdict) { verdicts <- v },
		Lost: func(uint64) {}, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	<-proxies[0].set
	proxies[0].send <- &l7proxyv1.WatchRequestsResponse{Verdicts: []*l7proxyv1.RequestVerdict{{}}}
	<-verdicts // so it is connected
	c.Keep(sets())
	<-proxies[0].set
	now.Store(2)
	<-proxies[1].set
	proxies[1].send <- &l7proxyv1.WatchRequestsResponse{Verdicts: []*l7proxyv1.RequestVerdict{{}}}
	<-verdicts
	if err := c.Learn(ctx, sets(5)); err != nil {
		t.Fatal(err)
	}
	for i, p := range proxies {
		if got := <-p.set; !slices.Equal(got, []uint32{5}) {
			t.Errorf("proxy %d knows %v, want 5", i, got)
		}
	}
	stops[0]()
	for c.Learn(ctx, sets(5, 6)) != nil {
		// until the old one's end has been noticed
	}
	if got := <-proxies[1].set; !slices.Contains(got, 6) || !c.Connected() {
		t.Errorf("with the old one gone the new one knows %v", got)
	}
}

// A proxy that hangs while it forgets must not hold up the changes that come
// after: the enforcer's one loop waits in Learn.
func TestProxyThatHangsHoldsNothingUp(t *testing.T) {
	p := &proxy{knows: map[uint32]bool{}, set: make(chan []uint32, 10), send: make(chan *l7proxyv1.WatchRequestsResponse)}
	dial, stop := start(t, p)
	defer stop()
	verdicts := make(chan *l7proxyv1.RequestVerdict)
	c := proxyclient.New(proxyclient.Config{
		Dial: dial, Instance: func() uint64 { return 1 }, Verdict: func(v *l7proxyv1.RequestVerdict) { verdicts <- v },
		Lost: func(uint64) {}, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	<-p.set
	p.send <- &l7proxyv1.WatchRequestsResponse{Verdicts: []*l7proxyv1.RequestVerdict{{}}}
	<-verdicts // so it is connected
	p.hangs.Store(true)
	c.Keep(nil)
	<-p.set // it was told to forget, and does not answer
	limited, end := context.WithTimeout(ctx, time.Second)
	defer end()
	learned := make(chan error, 1)
	go func() { learned <- c.Learn(limited, sets(7)) }()
	select {
	case err := <-learned:
		if err == nil {
			t.Error("a proxy that hangs is said to have learned")
		}
	case <-time.After(20 * time.Second):
		t.Error("a proxy that hangs holds the enforcer up")
	}
}
