package node

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/stats"

	"weir.dev/weir/internal/tlsconf"
)

// maxMessage bounds one message, as internal/server does.
const maxMessage = 8 << 20

func options(tlsDir string, to tlsconf.Role) ([]grpc.DialOption, error) {
	conf, err := tlsconf.Client(tlsDir, to)
	if err != nil {
		return nil, err
	}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.3, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	}, nil
}

// dialOne connects to one replica.
func dialOne(tlsDir string, to tlsconf.Role, address string) (*grpc.ClientConn, error) {
	opts, err := options(tlsDir, to)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("passthrough:///"+address, opts...)
}

// dialAny connects to whichever of the replicas answers, in an order that
// differs between nodes. where knows which one it is.
func dialAny(tlsDir string, to tlsconf.Role, addresses []string) (conn *grpc.ClientConn, where *whereabouts, err error) {
	opts, err := options(tlsDir, to)
	if err != nil {
		return nil, nil, err
	}
	shuffled := slices.Clone(addresses)
	rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	var state resolver.State
	for _, a := range shuffled {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: a}}})
	}
	r := manual.NewBuilderWithScheme("weir")
	r.InitialState(state)
	where = &whereabouts{}
	conn, err = grpc.NewClient("weir:///"+string(to), append(opts, grpc.WithResolvers(r), grpc.WithStatsHandler(where))...)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to weir-%s: %w", to, err)
	}
	return conn, where, nil
}

func dialUnix(path string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
}

// instance is the inode of a socket: a process that starts makes its own. Zero:
// it is not there.
func instance(socket string) uint64 {
	st, err := os.Stat(socket)
	if err != nil {
		return 0
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Ino
	}
	return 0
}

// whereabouts follows which replica a connection leads to. It implements
// stats.Handler.
type whereabouts struct {
	mu   sync.Mutex
	open map[net.Addr]int
}

type remoteKey struct{}

// Replica is the address that is connected to; empty: none.
func (w *whereabouts) Replica() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for a := range w.open {
		return a.String()
	}
	return ""
}

// TagConn remembers the remote end of a connection.
func (w *whereabouts) TagConn(ctx context.Context, i *stats.ConnTagInfo) context.Context {
	return context.WithValue(ctx, remoteKey{}, i.RemoteAddr)
}

// HandleConn counts connections.
func (w *whereabouts) HandleConn(ctx context.Context, s stats.ConnStats) {
	a, ok := ctx.Value(remoteKey{}).(net.Addr)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open == nil {
		w.open = map[net.Addr]int{}
	}
	switch s.(type) {
	case *stats.ConnBegin:
		w.open[a]++
	case *stats.ConnEnd:
		if w.open[a]--; w.open[a] <= 0 {
			delete(w.open, a)
		}
	}
}

// TagRPC does nothing.
func (*whereabouts) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC does nothing.
func (*whereabouts) HandleRPC(context.Context, stats.RPCStats) {}
