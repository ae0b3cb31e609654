// Package flow turns the datapath's events and the proxy's verdicts into flows
// that people can read, and keeps the last of them for whoever observes.
//
// A Ring never makes its writer wait: a reader that is too slow loses flows and
// is told how many. The package imports proto, engine/rule, the datapath's
// types, plan, desired, endpoint and gRPC.
package flow

import (
	"context"
	"sync"

	flowv1 "weir.dev/weir/proto/weir/flow/v1"
)

// Size is how many flows a node keeps.
const Size = 8192

// Ring keeps the last flows. The zero Ring is empty and ready. Flows in it are
// shared with its readers and must not be written.
type Ring struct {
	mu    sync.Mutex
	flows [Size]*flowv1.Flow
	next  uint64        // flows that were ever added
	added chan struct{} // closed by the next Add; nil if nobody waits
}

// Add puts a flow into the ring, over the oldest one if it is full.
func (r *Ring) Add(f *flowv1.Flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flows[r.next%Size] = f
	r.next++
	if r.added != nil {
		close(r.added)
		r.added = nil
	}
}

// Reader reads a ring from some flow on. It is for one goroutine.
type Reader struct {
	ring *Ring
	next uint64
}

// Reader begins with the oldest flow of the ring.
func (r *Ring) Reader() *Reader { return &Reader{ring: r} }

// Next returns up to n flows and how many were lost before them; none if there
// are no more yet.
func (r *Reader) Next(n int) (flows []*flowv1.Flow, lost uint64) {
	r.ring.mu.Lock()
	defer r.ring.mu.Unlock()
	if oldest := r.ring.oldest(); r.next < oldest {
		if r.next > 0 { // what was there before the reader is not lost
			lost = oldest - r.next
		}
		r.next = oldest
	}
	for ; r.next < r.ring.next && len(flows) < n; r.next++ {
		flows = append(flows, r.ring.flows[r.next%Size])
	}
	return flows, lost
}

// Wait returns when there is a flow that was not read yet.
func (r *Reader) Wait(ctx context.Context) error {
	r.ring.mu.Lock()
	if r.next < r.ring.next {
		r.ring.mu.Unlock()
		return nil
	}
	if r.ring.added == nil {
		r.ring.added = make(chan struct{})
	}
	added := r.ring.added
	r.ring.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-added:
		return nil
	}
}

func (r *Ring) oldest() uint64 {
	if r.next < Size {
		return 0
	}
	return r.next - Size
}
