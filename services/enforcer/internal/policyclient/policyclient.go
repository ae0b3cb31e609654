// Package policyclient keeps one WatchPolicy stream open to some policy replica
// and hands over each complete policy state that it describes.
//
// Parts of a difference are collected and applied together when the last one
// has come and the digest agrees; a state older than the one in force is
// refused, whichever replica sends it. The stream's items are held as received,
// so that another replica needs to send only what differs.
//
// It may import proto, engine and internal. Run is one goroutine; Subscribe,
// Move and Status may be called from any.
package policyclient

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/logkey"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// Capabilities are what this build understands. A rule that needs more is sent
// in a stricter form.
func Capabilities() []string {
	return []string{"deny", "http", "http.headers", "named-ports", "services", "tiers", "within"}
}

// ErrOlder says that a replica sent a state older than the one in force.
var ErrOlder = errors.New("policy state is older than the one in force")

// ErrDigest says that what is held after a difference is not what the replica
// means to have sent.
var ErrDigest = errors.New("digest of the policy items does not agree")

// Position orders policy states: by generation, then by revision. The zero
// Position is before all.
type Position struct {
	Generation uint64
	Revision   rule.Revision
}

// Before reports whether p is older than q.
func (p Position) Before(q Position) bool {
	return p.Generation < q.Generation || p.Generation == q.Generation && p.Revision < q.Revision
}

// State is a complete policy state of this node. Its slices are shared with
// later states and must not be written.
type State struct {
	Position
	Digest   []byte
	Subjects []rule.Subject // sorted by identity
	Policy   merge.Policy
	Services []rule.Service // sorted by address, protocol, port
	Received time.Time      // of its last part
}

// Applier puts a state in force. It returns when the kernel judges by it, or
// an error if the state before it stays in force.
type Applier interface {
	Apply(ctx context.Context, s State) error
}

// Config is what a Client needs. All fields are required.
type Config struct {
	Addresses []string // of policy replicas; tried in turn
	Dial      func(address string) (*grpc.ClientConn, error)
	Version   string
	Floor     Position // in force before the start; older states are refused
	Applier   Applier
	Log       *slog.Logger
}

// Status is what a Client tells of itself.
type Status struct {
	Replica   string // address it is connected to; empty: none
	InForce   Position
	Bytes     uint64 // received since start
	LastBytes uint64 // of the last complete difference
	Complete  bool   // a complete state has been put in force since start
}

// A Client watches policy. It is made by New.
type Client struct {
	cfg Config

	// Survives a broken stream; only Run's goroutine touches it.
	held items

	mu        sync.Mutex
	status    Status
	subscribe []rule.IdentityHash
	changed   chan struct{} // capacity 1: the subscription is to be sent
	move      context.CancelFunc
	next      int // index of the address to use next
}

// New makes a Client that has nothing yet.
func New(cfg Config) *Client {
	return &Client{
		cfg:     cfg,
		held:    newItems(),
		status:  Status{InForce: cfg.Floor},
		changed: make(chan struct{}, 1),
	}
}

// Subscribe replaces the set of identities whose policies the node needs.
func (c *Client) Subscribe(ids []rule.IdentityHash) {
	c.mu.Lock()
	c.subscribe = ids
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// ErrAddress says that an address is none of the configured ones.
var ErrAddress = errors.New("not an address of a policy replica")

// Move leaves the replica that the client is connected to for the one at
// address, or for the next one if it is empty. It returns which it left.
func (c *Client) Move(address string) (left string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if address != "" {
		i := slices.Index(c.cfg.Addresses, address)
		if i < 0 {
			return "", fmt.Errorf("%s: %w", address, ErrAddress)
		}
		c.next = i
	}
	if c.move != nil {
		c.move()
	}
	return c.status.Replica, nil
}

// Status tells what the client is connected to and has received.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 2 * time.Second
)

// Run watches until ctx ends. A broken stream is opened again at the next
// address, after a jittered and growing pause if it brought nothing.
func (c *Client) Run(ctx context.Context) error {
	pause := backoffMin
	for ctx.Err() == nil {
		address := c.nextAddress()
		progress, err := c.session(ctx, address)
		if ctx.Err() != nil {
			break
		}
		c.cfg.Log.Warn("policy stream ended", logkey.Replica, address, logkey.Error, err)
		if progress {
			pause = backoffMin
		}
		if !wait(ctx, pause/2+rand.N(pause)) {
			break
		}
		pause = min(2*pause, backoffMax)
	}
	return nil
}

func (c *Client) nextAddress() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	address := c.cfg.Addresses[c.next]
	c.next = (c.next + 1) % len(c.cfg.Addresses)
	return address
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// session is one stream's life. It reports whether a state was put in force.
func (c *Client) session(ctx context.Context, address string) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := c.cfg.Dial(address)
	if err != nil {
		return false, fmt.Errorf("dial policy replica %s: %w", address, err)
	}
	defer conn.Close()
	raw, err := policyv1.NewPolicyServiceClient(conn).WatchPolicy(ctx)
	if err != nil {
		return false, fmt.Errorf("open policy stream to %s: %w", address, err)
	}
	s := &session{client: c, stream: raw}
	if err := s.send(&policyv1.WatchPolicyRequest{Message: &policyv1.WatchPolicyRequest_Hello{Hello: c.hello()}}); err != nil {
		return false, fmt.Errorf("say hello to %s: %w", address, err)
	}
	c.connected(address, cancel)
	defer c.connected("", nil)

	var sender sync.WaitGroup
	sender.Go(func() { s.sendSubscriptions(ctx) })
	defer sender.Wait()
	defer cancel()
	return s.receive(ctx)
}

func (c *Client) connected(address string, move context.CancelFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Replica, c.move = address, move
}

func (c *Client) hello() *policyv1.Hello {
	// What changes from now on is sent by sendSubscriptions.
	select {
	case <-c.changed:
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &policyv1.Hello{
		Capabilities: Capabilities(),
		Version:      c.cfg.Version,
		Generation:   c.status.InForce.Generation,
		Revision:     uint64(c.status.InForce.Revision),
		Digest:       c.held.digest(),
		Items:        c.held.versions(),
		Subscribe:    subscription(c.subscribe),
	}
	return h
}

func subscription(ids []rule.IdentityHash) *policyv1.Subscribe {
	s := &policyv1.Subscribe{}
	for _, id := range ids {
		s.Identities = append(s.Identities, id[:])
	}
	return s
}
