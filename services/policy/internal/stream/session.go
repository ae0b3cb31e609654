package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/logkey"
	"weir.dev/weir/internal/policyitem"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/policy/internal/catalog"
)

const (
	// compareEvery is how often a client that is told nothing is sent the digest
	// of what it holds.
	compareEvery = time.Minute
	// After a difference that a client refused, the whole state is tried; the
	// pause before it grows with each refusal in a row.
	nackPauseMin = time.Second
	nackPauseMax = 5 * time.Second
)

// Stream is the server's end of WatchPolicy.
type Stream interface {
	Send(*policyv1.WatchPolicyResponse) error
	Recv() (*policyv1.WatchPolicyRequest, error)
	Context() context.Context
}

// Nodes is told what nodes have in force.
type Nodes interface {
	InForce(node string, pos catalog.Position)
	Refused(node string, pos catalog.Position, reason string)
}

// Sent counts what streams send.
type Sent func(parts []*policyv1.WatchPolicyResponse)

// Session is one stream of one node.
type Session struct {
	Node    string
	Catalog *catalog.Catalog
	Nodes   Nodes
	Sent    Sent
	Log     *slog.Logger
	Stop    <-chan struct{} // ends the session; its client goes to another replica
}

// state of a session after its Hello.
type state struct {
	Session
	stream  Stream
	watcher *catalog.Watcher
	caps    Capabilities

	held     Held
	at       catalog.Position // in force on the client; never sent anything older
	full     bool             // the client's items are of no use
	told     bool             // the first response was sent
	nonce    uint64
	underWay *underWay
	refused  bool // and nothing is sent until retry fires
	retry    *time.Timer
	pause    time.Duration // after the last refusal; zero: an ack came since
}

// underWay is a difference that is not answered yet.
type underWay struct {
	nonce uint64
	pos   catalog.Position
	after Held
}

// Serve speaks with one client until the stream or the context ends.
func (s Session) Serve(stream Stream) error {
	first, err := stream.Recv()
	if err != nil {
		return ending(err)
	}
	hello := first.GetHello()
	if hello == nil {
		return status.Error(codes.InvalidArgument, "the first message must be hello")
	}
	ids, err := identities(hello.GetSubscribe())
	if err != nil {
		return err
	}
	st := &state{
		Session: s, stream: stream, watcher: s.Catalog.Watch(), caps: ParseCapabilities(hello.GetCapabilities()),
		held: NewHeld(hello.GetItems()), at: catalog.Position{Generation: hello.GetGeneration(), Revision: hello.GetRevision()},
	}
	defer st.watcher.Close()
	// What the client cannot describe it does not hold.
	st.full = !bytes.Equal(hello.GetDigest(), policyitem.Digest(st.held.Versions))
	st.watcher.Subscribe(ids)
	if st.at.Generation != 0 {
		st.Nodes.InForce(s.Node, st.at)
	}
	s.Log.Info("policy stream opened", logkey.Node, s.Node, logkey.Generation, st.at.Generation,
		logkey.Revision, st.at.Revision, "capabilities", hello.GetCapabilities(), "version", hello.GetVersion())
	return st.run()
}

// ending turns the end of a stream into what the handler returns.
func ending(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func identities(sub *policyv1.Subscribe) ([]rule.IdentityHash, error) {
	out := make([]rule.IdentityHash, 0, len(sub.GetIdentities()))
	for _, b := range sub.GetIdentities() {
		if len(b) != len(rule.IdentityHash{}) {
			return nil, status.Errorf(codes.InvalidArgument, "an identity has %d bytes, want %d", len(b), len(rule.IdentityHash{}))
		}
		out = append(out, rule.IdentityHash(b))
	}
	return out, nil
}

// run is the session's loop: it answers what comes in, and sends when it may.
func (s *state) run() error {
	ctx, cancel := context.WithCancel(s.stream.Context())
	defer cancel()
	in := make(chan *policyv1.WatchPolicyRequest)
	ended := make(chan error, 1)
	go func() { ended <- receive(ctx, s.stream, in) }()

	compare := time.NewTicker(compareEvery)
	defer compare.Stop()
	s.retry = time.NewTimer(compareEvery) // of no effect while nothing is refused
	defer s.retry.Stop()
	wake := s.watcher.Wake()
	for {
		if s.underWay == nil && !s.refused {
			if err := s.send(false); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.Stop:
			return status.Error(codes.Unavailable, "this replica stops; go to another one")
		case err := <-ended:
			return ending(err)
		case m := <-in:
			if err := s.receive(m); err != nil {
				return err
			}
		case <-wake:
		case <-s.retry.C:
			s.refused = false
		case <-compare.C:
			if s.underWay == nil && !s.refused {
				if err := s.send(true); err != nil {
					return err
				}
			}
		}
	}
}

func receive(ctx context.Context, stream Stream, in chan<- *policyv1.WatchPolicyRequest) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case in <- m:
		case <-ctx.Done():
			return nil
		}
	}
}

// receive takes one message in.
func (s *state) receive(m *policyv1.WatchPolicyRequest) error {
	switch v := m.GetMessage().(type) {
	case *policyv1.WatchPolicyRequest_Subscribe:
		ids, err := identities(v.Subscribe)
		if err != nil {
			return err
		}
		s.watcher.Subscribe(ids)
	case *policyv1.WatchPolicyRequest_Ack:
		if s.underWay == nil || v.Ack.GetNonce() != s.underWay.nonce {
			return status.Errorf(codes.InvalidArgument, "ack of difference %d, which is not under way", v.Ack.GetNonce())
		}
		s.held, s.at, s.full, s.pause = s.underWay.after, s.underWay.pos, false, 0
		s.underWay = nil
		s.Nodes.InForce(s.Node, catalog.Position{Generation: v.Ack.GetGeneration(), Revision: v.Ack.GetRevision()})
	case *policyv1.WatchPolicyRequest_Nack:
		if s.underWay == nil || v.Nack.GetNonce() != s.underWay.nonce {
			return status.Errorf(codes.InvalidArgument, "nack of difference %d, which is not under way", v.Nack.GetNonce())
		}
		s.Log.Warn("node refused a policy state", logkey.Node, s.Node, logkey.Revision, s.underWay.pos.Revision,
			logkey.Reason, v.Nack.GetReason())
		s.Nodes.Refused(s.Node, s.at, v.Nack.GetReason())
		s.underWay, s.full, s.told = nil, true, false
		s.refused, s.pause = true, min(max(2*s.pause, nackPauseMin), nackPauseMax)
		s.retry.Reset(s.pause)
		s.watcher.Subscribe(s.watcher.Identities()) // computed anew
	default:
		return status.Error(codes.InvalidArgument, "hello was said already; subscribe, ack or nack is expected")
	}
	return nil
}

// send sends the difference, if there is one or always is set. It sends nothing
// while the catalog is older than what the client has.
func (s *state) send(always bool) error {
	if pos, ok := s.Catalog.Position(); !ok || pos.Before(s.at) {
		return nil // woken when it is not
	}
	node, pos, fresh, ok := s.watcher.Take()
	if !ok {
		return nil
	}
	if pos.Before(s.at) { // replaced since; what was taken counts as not taken
		s.watcher.Subscribe(s.watcher.Identities())
		return nil
	}
	if s.told && !fresh && pos == s.at && !always {
		return nil
	}
	d := Difference{After: s.held, Digest: policyitem.Digest(s.held.Versions)}
	if fresh {
		items, err := Items(Strict(node, s.caps))
		if err != nil {
			return status.Error(codes.Internal, fmt.Sprintf("policy of revision %d: %v", pos.Revision, err))
		}
		d = Diff(s.held, items, s.full || pos.Generation != s.at.Generation)
	}
	s.nonce++
	parts := d.Parts(pos, s.nonce)
	for _, p := range parts {
		if err := s.stream.Send(p); err != nil {
			return err
		}
	}
	s.Sent(parts)
	s.told, s.underWay = true, &underWay{s.nonce, pos, d.After}
	return nil
}
