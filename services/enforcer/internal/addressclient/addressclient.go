// Package addressclient keeps this node's copy of all address records: one
// plain NATS subscription for changes, a snapshot from any identity replica for
// what was missed, and single look-ups for addresses that traffic waits for.
//
// Nothing is deleted before a snapshot's end mark has come, and nothing while
// NATS or weir-identity are away. A Client may be used by several goroutines.
// The package imports proto, engine/rule, internal, desired, gRPC and nats.go.
package addressclient

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/logkey"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	"weir.dev/weir/services/enforcer/internal/desired"
)

// Identities answers for what was missed. identityv1.IdentityServiceClient is one.
type Identities interface {
	Lookup(ctx context.Context, r *identityv1.LookupRequest, opts ...grpc.CallOption) (*identityv1.LookupResponse, error)
	Snapshot(ctx context.Context, r *identityv1.SnapshotRequest, opts ...grpc.CallOption) (grpc.ServerStreamingClient[identityv1.SnapshotResponse], error)
}

// Config is what a Client needs. All fields are required.
type Config struct {
	Identities Identities
	// Changed is called after records have changed, and Record with each record
	// of a pod that came or changed. Neither is called with a lock held.
	Changed func()
	Record  func(desired.Record)
	Log     *slog.Logger
}

// Limits of look-ups, of each endpoint: a pod that scans the cluster's ranges
// must not make one for each address, nor use up what others need.
const (
	lookupsPerSecond = 20
	lookupBurst      = 40
	lookupTime       = 2 * time.Second
	// maxWanted is how many may wait.
	maxWanted = 256
	// absentFor is how long the answer "no record" keeps from asking again.
	absentFor = time.Second
)

// Client keeps the records. It is made by New.
type Client struct {
	cfg    Config
	repair chan struct{} // capacity 1: a snapshot is needed

	mu      sync.Mutex
	store   *store
	limits  map[uint32]*rate.Limiter // of look-ups, by endpoint
	lookups map[netip.Addr]time.Time // under way (zero), or not again before
	wanted  chan netip.Addr
	written []time.Time // of records that came by messages since the last Records
	taken   []time.Time // of those in the last Records that is not in force yet
}

// maxWritten bounds how many times are kept for InForce.
const maxWritten = 10000

// New makes a Client that knows nothing yet.
func New(cfg Config) *Client {
	return &Client{
		cfg: cfg, store: newStore(), repair: make(chan struct{}, 1),
		limits: map[uint32]*rate.Limiter{}, lookups: map[netip.Addr]time.Time{},
		wanted: make(chan netip.Addr, maxWanted),
	}
}

// Records is a copy of all records; false until the first snapshot is complete.
func (c *Client) Records() (map[netip.Addr]desired.Record, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.store.complete {
		return nil, false
	}
	if len(c.taken) < maxWritten {
		c.taken = append(c.taken, c.written...)
	}
	c.written = nil
	return c.store.records(), true
}

// InForce says that the last Records is in force. It returns when those of its
// changes that came by messages were written.
func (c *Client) InForce() []time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.taken
	c.taken = nil
	return taken
}

// Complete says whether Records has a first snapshot.
func (c *Client) Complete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.store.complete
}

// Find is the record of one address.
func (c *Client) Find(addr netip.Addr) (desired.Record, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.store.entries[addr]; e.record != nil {
		return *e.record, true
	}
	return desired.Record{}, false
}

// Registered says whether the stream has a record of the address that names this
// pod; of a node's own address, none. It is not for one to tell who has not seen
// a first snapshot: everything counts as registered then.
func (c *Client) Registered(addr netip.Addr, podUID string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.store.entries[addr]
	return !c.store.complete || e.record != nil && e.sequence > 0 && e.record.PodUID == podUID
}

// Sequence is the write up to which everything has been taken in.
func (c *Client) Sequence() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.store.seen
}

// Subscribe follows the stream over nc until the returned function is called.
// nc may be disconnected: it subscribes when it is back.
func (c *Client) Subscribe(nc *nats.Conn) (stop func() error, err error) {
	records, err := nc.Subscribe(bus.AllAddresses, c.message)
	if err != nil {
		return nil, fmt.Errorf("subscribe to addresses: %w", err)
	}
	heads, err := nc.Subscribe(bus.AddressHead, c.head)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("subscribe to the head of addresses: %w", err), records.Unsubscribe())
	}
	return func() error { return errors.Join(records.Unsubscribe(), heads.Unsubscribe()) }, nil
}

func (c *Client) message(m *nats.Msg) {
	e, err := eventOf(m)
	// Absent or garbled, it is zero and not counted.
	written, _ := time.Parse(time.RFC3339Nano, m.Header.Get(bus.TimeHeader))
	if err != nil {
		// Its sequence is missing then, which the next message or head shows.
		c.cfg.Log.Warn("address message not understood", logkey.Name, m.Subject, logkey.Error, err)
		return
	}
	c.mu.Lock()
	changed := c.store.take(e)
	if changed && !written.IsZero() && len(c.written) < maxWritten {
		c.written = append(c.written, written)
	}
	gap := c.store.gap()
	c.mu.Unlock()
	if gap {
		c.needSnapshot()
	}
	if changed {
		c.tell(e.record)
	}
}

func (c *Client) tell(r *desired.Record) {
	if r != nil && !r.NodeAddress {
		c.cfg.Record(*r)
	}
	c.cfg.Changed()
}

// stale says whether there are records of a stream that is gone.
func (c *Client) stale() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.store.until.IsZero() && c.store.complete
}

func (c *Client) gap() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.store.gap()
}

func (c *Client) needSnapshot() {
	select {
	case c.repair <- struct{}{}:
	default:
	}
}

func (c *Client) head(m *nats.Msg) {
	var h identityv1.AddressHead
	if err := proto.Unmarshal(m.Data, &h); err != nil {
		c.cfg.Log.Warn("address head not understood", logkey.Error, err)
		return
	}
	c.mu.Lock()
	c.store.announce(head{h.GetSequence(), h.GetCreatedUnixNano()})
	gap := c.store.gap()
	c.mu.Unlock()
	if gap {
		c.needSnapshot()
	}
}

func eventOf(m *nats.Msg) (event, error) {
	sequence, err := strconv.ParseUint(m.Header.Get(bus.SequenceHeader), 10, 64)
	if err != nil {
		return event{}, fmt.Errorf("sequence: %w", err)
	}
	raw, err := hex.DecodeString(strings.TrimPrefix(m.Subject, bus.Addresses))
	if err != nil {
		return event{}, fmt.Errorf("address: %w", err)
	}
	addr, ok := netip.AddrFromSlice(raw)
	if !ok {
		return event{}, fmt.Errorf("an address of %d bytes", len(raw))
	}
	e := event{sequence: sequence, addr: addr.Unmap()}
	if m.Header.Get(bus.OperationHeader) != "" || len(m.Data) == 0 {
		return e, nil
	}
	var p identityv1.AddressRecord
	if err := proto.Unmarshal(m.Data, &p); err != nil {
		return event{}, fmt.Errorf("record: %w", err)
	}
	r, err := recordOf(&p)
	if err != nil {
		return event{}, err
	}
	e.record = &r
	return e, nil
}

func recordOf(p *identityv1.AddressRecord) (desired.Record, error) {
	addr, ok := netip.AddrFromSlice(p.GetAddress())
	if !ok {
		return desired.Record{}, fmt.Errorf("record with an address of %d bytes", len(p.GetAddress()))
	}
	r := desired.Record{
		Addr: addr.Unmap(), PodUID: p.GetPodUid(), Namespace: p.GetPodNamespace(), Pod: p.GetPodName(), Node: p.GetNode(),
		Entered:     desired.Position{Generation: p.GetGeneration(), Revision: rule.Revision(p.GetIdentityRevision())},
		NodeAddress: p.GetNodeAddress(),
	}
	if !r.NodeAddress {
		if len(p.GetIdentity()) != len(r.Identity) {
			return desired.Record{}, fmt.Errorf("record of %s with an identity of %d bytes, want 32", addr, len(p.GetIdentity()))
		}
		r.Identity = rule.IdentityHash(p.GetIdentity())
	}
	return r, nil
}

// Run takes snapshots when they are needed, the first at once, and makes
// look-ups, until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	var lookups sync.WaitGroup
	lookups.Go(func() { c.runLookups(ctx) })
	defer lookups.Wait()
	c.needSnapshot()
	const least, most = 100 * time.Millisecond, 5 * time.Second
	pause := least
	renewed := time.NewTimer(0)
	defer renewed.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.repair:
			if !c.gap() {
				continue // filled meanwhile
			}
		case <-renewed.C:
			if !c.stale() {
				continue
			}
		}
		gap, err := c.takeSnapshot(ctx)
		if ctx.Err() != nil {
			return nil
		}
		renewed.Reset(renewal + time.Second)
		if err == nil && !gap {
			pause = least
			continue
		}
		if err != nil {
			c.cfg.Log.Warn("address snapshot not complete", logkey.Error, err)
		}
		// A replica that is behind gets time to catch up.
		if !wait(ctx, pause/2+rand.N(pause)) {
			return nil
		}
		pause = min(2*pause, most)
		c.needSnapshot()
	}
}

func (c *Client) takeSnapshot(ctx context.Context) (gap bool, err error) {
	records, h, err := c.fetch(ctx)
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	changed, used := c.store.snapshot(records, h, time.Now())
	gap = c.store.gap()
	c.mu.Unlock()
	if !used {
		return false, errors.New("the replica's address stream is older than the one known here")
	}
	if changed {
		for _, r := range records {
			if !r.NodeAddress {
				c.cfg.Record(r)
			}
		}
	}
	c.cfg.Changed()
	return gap, nil
}

// fetch is a whole snapshot, or an error: one that ends without its end mark is
// none.
func (c *Client) fetch(ctx context.Context) ([]desired.Record, head, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	stream, err := c.cfg.Identities.Snapshot(ctx, &identityv1.SnapshotRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return nil, head{}, fmt.Errorf("ask for a snapshot: %w", err)
	}
	var records []desired.Record
	for {
		part, err := stream.Recv()
		if err != nil {
			return nil, head{}, fmt.Errorf("receive a snapshot: %w", err)
		}
		for _, p := range part.GetRecords() {
			r, err := recordOf(p)
			if err != nil {
				return nil, head{}, err
			}
			records = append(records, r)
		}
		if part.GetEnd() {
			return records, head{part.GetSequence(), part.GetCreatedUnixNano()}, nil
		}
	}
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
