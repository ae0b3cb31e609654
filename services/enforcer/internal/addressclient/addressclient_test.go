package addressclient

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"weir.dev/weir/internal/bus"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	"weir.dev/weir/services/enforcer/internal/desired"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// replica is an identity replica that answers what the test says.
type replica struct {
	parts   []*identityv1.SnapshotResponse
	err     error // after the parts
	calls   chan struct{}
	lookups chan string
	answer  *identityv1.LookupResponse
}

type snapshotStream struct {
	grpc.ClientStream
	parts []*identityv1.SnapshotResponse
	err   error
}

func (s *snapshotStream) Recv() (*identityv1.SnapshotResponse, error) {
	if len(s.parts) == 0 {
		return nil, s.err
	}
	p := s.parts[0]
	s.parts = s.parts[1:]
	return p, nil
}

func (r *replica) Snapshot(context.Context, *identityv1.SnapshotRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[identityv1.SnapshotResponse], error) {
	if r.calls != nil {
		r.calls <- struct{}{}
	}
	return &snapshotStream{parts: r.parts, err: r.err}, nil
}

func (r *replica) Lookup(_ context.Context, q *identityv1.LookupRequest, _ ...grpc.CallOption) (*identityv1.LookupResponse, error) {
	addr, _ := netip.AddrFromSlice(q.GetAddress())
	r.lookups <- addr.String()
	return r.answer, nil
}

func client(r *replica) *Client {
	return New(Config{Identities: r, Changed: func() {}, Record: func(desired.Record) {}, Log: slog.New(slog.DiscardHandler)})
}

func record(addr, uid string) *identityv1.AddressRecord {
	a := netip.MustParseAddr(addr).As16()
	return &identityv1.AddressRecord{Address: a[:], PodUid: uid, PodName: uid, Identity: make([]byte, 32), IdentityRevision: 1, Generation: 1}
}

// message is a republished write, as the node receives it.
func message(t *testing.T, sequence, addr string, r *identityv1.AddressRecord) *nats.Msg {
	t.Helper()
	a := netip.MustParseAddr(addr).As16()
	m := nats.NewMsg(bus.Addresses + hexOf(a))
	m.Header.Set(bus.SequenceHeader, sequence)
	if r == nil {
		m.Header.Set(bus.OperationHeader, "DEL")
		return m
	}
	b, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	m.Data = b
	return m
}

func hexOf(a [16]byte) string {
	const digits = "0123456789abcdef"
	var out []byte
	for _, b := range a {
		out = append(out, digits[b>>4], digits[b&15])
	}
	return string(out)
}

func end(sequence uint64, created int64, records ...*identityv1.AddressRecord) *identityv1.SnapshotResponse {
	return &identityv1.SnapshotResponse{Records: records, End: true, Sequence: sequence, CreatedUnixNano: created}
}

func pods(c *Client) map[string]string {
	out := map[string]string{}
	records, _ := c.Records()
	for a, r := range records {
		out[a.String()] = r.PodUID
	}
	return out
}

// S11: the snapshot of a replica that has just started is empty, or ends early.
// Nothing is deleted before its end mark.
func TestS11NothingIsDeletedBeforeTheEndMark(t *testing.T) {
	ctx := t.Context()
	r := &replica{parts: []*identityv1.SnapshotResponse{end(5, 1, record("10.0.0.1", "a"), record("10.0.0.2", "b"))}}
	c := client(r)
	if _, err := c.takeSnapshot(ctx); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"10.0.0.1": "a", "10.0.0.2": "b"}
	for name, parts := range map[string][]*identityv1.SnapshotResponse{
		"no part":                    nil,
		"an empty part, no end":      {{}},
		"half of it, no end":         {{Records: []*identityv1.AddressRecord{record("10.0.0.1", "a")}}},
		"an older stream's, ended":   {end(9, 0)},
		"an older sequence's, whole": {end(3, 1)},
	} {
		r.parts, r.err = parts, errors.New("replica restarted")
		_, err := c.takeSnapshot(ctx)
		if name != "an older sequence's, whole" && err == nil {
			t.Errorf("%s: taken for a snapshot", name)
		}
		if diff := cmp.Diff(want, pods(c)); diff != "" {
			t.Errorf("%s: records (-want +got):\n%s", name, diff)
		}
	}
	r.parts, r.err = []*identityv1.SnapshotResponse{end(7, 1, record("10.0.0.1", "a"))}, nil
	if _, err := c.takeSnapshot(ctx); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"10.0.0.1": "a"}, pods(c)); diff != "" {
		t.Errorf("after a complete snapshot (-want +got):\n%s", diff)
	}
}

func TestLateSnapshotDoesNotUndoNewerMessages(t *testing.T) {
	c := client(&replica{parts: []*identityv1.SnapshotResponse{end(4, 1, record("10.0.0.1", "old"), record("10.0.0.2", "gone"))}})
	c.message(message(t, "5", "10.0.0.1", record("10.0.0.1", "new")))
	c.message(message(t, "6", "10.0.0.2", nil))
	gap, err := c.takeSnapshot(t.Context())
	if err != nil || gap {
		t.Fatalf("snapshot: gap %v, %v; want none", gap, err)
	}
	if diff := cmp.Diff(map[string]string{"10.0.0.1": "new"}, pods(c)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	c.message(message(t, "2", "10.0.0.2", record("10.0.0.2", "gone"))) // delivered late
	if diff := cmp.Diff(map[string]string{"10.0.0.1": "new"}, pods(c)); diff != "" {
		t.Errorf("after a late message (-want +got):\n%s", diff)
	}
}

func TestLostMessagesAreNoticed(t *testing.T) {
	headOf := func(sequence uint64, created int64) *nats.Msg {
		b, err := proto.Marshal(&identityv1.AddressHead{Sequence: sequence, CreatedUnixNano: created})
		if err != nil {
			t.Fatal(err)
		}
		return &nats.Msg{Data: b}
	}
	for _, tc := range []struct {
		name string
		do   func(c *Client)
		want bool
	}{
		{"everything came", func(c *Client) {
			c.message(message(t, "5", "10.0.0.1", nil))
			c.head(headOf(5, 1))
			c.head(headOf(5, 1))
		}, false},
		{"one in the middle is missing", func(c *Client) { c.message(message(t, "6", "10.0.0.1", nil)) }, true},
		{"the head runs ahead of its message", func(c *Client) {
			c.head(headOf(5, 1))
			c.message(message(t, "5", "10.0.0.1", nil))
			c.head(headOf(5, 1))
		}, false},
		{"the last one is missing", func(c *Client) { c.head(headOf(5, 1)); c.head(headOf(5, 1)) }, true},
		{"another stream took its place", func(c *Client) { c.head(headOf(1, 2)) }, true},
		{"an older stream's head", func(c *Client) { c.head(headOf(9, 0)) }, false},
	} {
		c := client(&replica{parts: []*identityv1.SnapshotResponse{end(4, 1)}})
		if _, err := c.takeSnapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
		tc.do(c)
		if got := c.gap(); got != tc.want {
			t.Errorf("%s: a snapshot is needed: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestWantedAddressIsLookedUpOnce(t *testing.T) {
	r := &replica{
		parts: []*identityv1.SnapshotResponse{end(4, 1)}, calls: make(chan struct{}, 10), lookups: make(chan string),
		answer: &identityv1.LookupResponse{Record: record("10.0.0.9", "late"), Sequence: 5},
	}
	changed := make(chan struct{}, 10)
	c := New(Config{Identities: r, Changed: func() { changed <- struct{}{} }, Record: func(desired.Record) {}, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	<-changed // the snapshot
	addr := netip.MustParseAddr("10.0.0.9")
	for range 100 {
		c.Want(1, addr)
	}
	if got := <-r.lookups; got != "10.0.0.9" {
		t.Errorf("looked up %s", got)
	}
	<-changed
	if diff := cmp.Diff(map[string]string{"10.0.0.9": "late"}, pods(c)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(c.wanted) != 0 {
		t.Errorf("%d more look-ups of one address wait", len(c.wanted))
	}
}

// S14: a pod that scans makes few look-ups, and leaves others theirs.
func TestS14ScanIsLimitedByEndpoint(t *testing.T) {
	c := client(&replica{})
	addr := netip.MustParseAddr("10.0.0.0")
	for range 10_000 {
		addr = addr.Next()
		c.Want(1, addr)
	}
	scanned := len(c.wanted)
	if scanned > lookupBurst+lookupsPerSecond {
		t.Errorf("a scan wants %d look-ups", scanned)
	}
	c.Want(2, netip.MustParseAddr("10.9.0.1"))
	if len(c.wanted) != scanned+1 {
		t.Error("another endpoint's look-up was not made")
	}
}

// S7: a stream that began anew is empty at first. What the old one said holds
// while every node registers its pods again, and no longer.
func TestS7RecordsOfALostStreamAreKeptForAWhile(t *testing.T) {
	s := newStore()
	pod := func(a string) desired.Record { return desired.Record{Addr: netip.MustParseAddr(a), PodUID: a} }
	now := time.Unix(1000, 0)
	s.snapshot([]desired.Record{pod("10.0.0.1"), pod("10.0.0.2")}, head{90, 1}, now)
	s.snapshot(nil, head{0, 2}, now)
	if got := len(s.records()); got != 2 {
		t.Errorf("an empty stream began: %d records, want 2", got)
	}
	again := pod("10.0.0.1")
	s.take(event{1, again.Addr, &again})
	if got := s.entries[again.Addr].sequence; got != 1 {
		t.Errorf("registered again at sequence %d, want 1", got)
	}
	s.snapshot([]desired.Record{again}, head{1, 2}, now.Add(renewal))
	if _, there := s.records()[netip.MustParseAddr("10.0.0.2")]; there || len(s.records()) != 1 {
		t.Errorf("after a while: %v", s.records())
	}
}
