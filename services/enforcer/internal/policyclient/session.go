package policyclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/logkey"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// session is one open stream. Nothing of it survives the stream.
type session struct {
	client *Client
	stream policyv1.PolicyService_WatchPolicyClient

	sending sync.Mutex // a stream allows one Send at a time
}

func (s *session) send(r *policyv1.WatchPolicyRequest) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.stream.Send(r)
}

// sendSubscriptions tells the replica each change of the node's identities. A
// broken stream shows in receive.
func (s *session) sendSubscriptions(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.client.changed:
		}
		s.client.mu.Lock()
		sub := subscription(s.client.subscribe)
		s.client.mu.Unlock()
		if err := s.send(&policyv1.WatchPolicyRequest{Message: &policyv1.WatchPolicyRequest_Subscribe{Subscribe: sub}}); err != nil {
			return
		}
	}
}

// receive applies differences until the stream breaks, and answers each.
func (s *session) receive(ctx context.Context) (progress bool, err error) {
	var d difference
	for {
		r, err := s.stream.Recv()
		if err != nil {
			return progress, fmt.Errorf("receive policy: %w", err)
		}
		size := uint64(proto.Size(r))
		s.client.received(size)
		if err := d.add(r, size); err != nil {
			return progress, err
		}
		if !r.GetEnd() {
			continue
		}
		err = s.client.apply(ctx, &d)
		if ctx.Err() != nil {
			return progress, ctx.Err()
		}
		if err != nil {
			s.client.cfg.Log.Warn("policy state refused", logkey.Revision, d.at.Revision, logkey.Error, err)
		}
		if err := s.send(s.client.answer(&d, err)); err != nil {
			return progress, fmt.Errorf("answer policy replica: %w", err)
		}
		switch {
		case errors.Is(err, ErrOlder), errors.Is(err, ErrDigest):
			return progress, err // this replica, or what is held, is of no use
		case err == nil:
			progress = true
		}
		d = difference{}
	}
}

func (c *Client) received(size uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Bytes += size
}

// answer acknowledges what is in force, or says why it is not.
func (c *Client) answer(d *difference, err error) *policyv1.WatchPolicyRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.status.InForce
	if err != nil {
		return &policyv1.WatchPolicyRequest{Message: &policyv1.WatchPolicyRequest_Nack{Nack: &policyv1.Nack{
			Nonce: d.nonce, Revision: uint64(at.Revision), Reason: err.Error(),
		}}}
	}
	return &policyv1.WatchPolicyRequest{Message: &policyv1.WatchPolicyRequest_Ack{Ack: &policyv1.Ack{
		Nonce: d.nonce, Generation: at.Generation, Revision: uint64(at.Revision),
	}}}
}

// apply puts a complete difference in force, or changes nothing. After
// ErrDigest nothing is held, so that the next replica sends all.
func (c *Client) apply(ctx context.Context, d *difference) error {
	inForce := c.Status().InForce
	if d.at.Before(inForce) {
		return fmt.Errorf("%w: got generation %d revision %d, have %d and %d", ErrOlder,
			d.at.Generation, d.at.Revision, inForce.Generation, inForce.Revision)
	}
	if !d.full && c.held.generation != 0 && d.at.Generation != c.held.generation {
		return fmt.Errorf("%w: a difference against generation %d names generation %d",
			ErrDigest, c.held.generation, d.at.Generation)
	}
	next, err := c.held.with(d)
	if err != nil {
		return err
	}
	digest := next.digest()
	if !bytes.Equal(digest, d.digest) {
		c.held = newItems()
		return fmt.Errorf("%w: got %x, want %x", ErrDigest, digest, d.digest)
	}
	state, err := next.state()
	if err != nil {
		return err
	}
	state.Position, state.Digest, state.Received = d.at, digest, time.Now()
	if err := c.cfg.Applier.Apply(ctx, state); err != nil {
		return fmt.Errorf("put revision %d in force: %w", d.at.Revision, err)
	}
	c.held = next
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.InForce, c.status.LastBytes, c.status.Complete = d.at, d.size, true
	return nil
}

// difference collects the parts that share a nonce.
type difference struct {
	at       Position
	nonce    uint64
	full     bool
	size     uint64
	digest   []byte
	upserts  []*policyv1.Item
	removals []*policyv1.ItemKey
	changes  []*policyv1.SelectorChange
	started  bool
}

func (d *difference) add(r *policyv1.WatchPolicyResponse, size uint64) error {
	if d.started && d.nonce != r.GetNonce() {
		return fmt.Errorf("policy replica began difference %d before the end of %d", r.GetNonce(), d.nonce)
	}
	d.started = true
	d.nonce = r.GetNonce()
	d.at = Position{r.GetGeneration(), rule.Revision(r.GetRevision())}
	d.full = d.full || r.GetFull()
	d.size += size
	d.upserts = append(d.upserts, r.GetUpserts()...)
	d.removals = append(d.removals, r.GetRemovals()...)
	d.changes = append(d.changes, r.GetSelectorChanges()...)
	if r.GetEnd() {
		d.digest = r.GetDigest()
	}
	return nil
}
