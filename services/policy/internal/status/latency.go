package status

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"weir.dev/weir/services/policy/internal/catalog"
)

// keep is how long an event is waited for before it is no longer measured.
const keep = 5 * time.Minute

// Latency measures how long it takes until a revision is in force on every node
// with a live enforcer. It must be made by NewLatency.
type Latency struct {
	mu      sync.Mutex
	waiting []waiting
}

type waiting struct {
	at   catalog.Position
	from time.Time
	to   prometheus.Observer
}

// NewLatency returns a Latency that waits for nothing.
func NewLatency() *Latency { return &Latency{} }

// Begin waits for a position that was caused at from, for to.
func (l *Latency) Begin(at catalog.Position, from time.Time, to prometheus.Observer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, waiting{at, from, to})
}

// Follow measures until ctx ends.
func (l *Latency) Follow(ctx context.Context, nodes *Nodes) {
	for {
		changed := nodes.Changed()
		l.look(nodes.All(), nodes.now())
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func (l *Latency) look(nodes []Node, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := l.waiting[:0]
	for _, w := range l.waiting {
		enforced, live, _ := Enforced(nodes, w.at)
		switch {
		case live > 0 && enforced == live:
			w.to.Observe(now.Sub(w.from).Seconds())
		case now.Sub(w.from) < keep:
			left = append(left, w)
		}
	}
	l.waiting = left
}
