package server

import (
	"sync"

	l7proxyv1 "weir.dev/weir/proto/weir/l7proxy/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/l7proxy/internal/proxy"
)

// waiting bounds the verdicts that a watcher has not taken yet.
const waiting = 4096

// Ring hands verdicts to watchers. One that does not keep up loses verdicts,
// and is told how many; the proxy never waits. The zero Ring is ready, and may
// be used by any number of goroutines.
type Ring struct {
	mu       sync.Mutex
	watchers map[*watcher]struct{}
}

// A watcher holds verdicts until they are taken. Its fields are under Ring.mu.
type watcher struct {
	verdicts []*l7proxyv1.RequestVerdict
	lost     uint64
	wake     chan struct{} // of capacity 1
}

// Add hands a verdict to all watchers.
func (r *Ring) Add(v proxy.Verdict) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.watchers) == 0 {
		return
	}
	m := convert(v)
	for w := range r.watchers {
		if len(w.verdicts) == waiting {
			w.lost++
			continue
		}
		w.verdicts = append(w.verdicts, m)
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (r *Ring) watch() *watcher {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watchers == nil {
		r.watchers = map[*watcher]struct{}{}
	}
	w := &watcher{wake: make(chan struct{}, 1)}
	r.watchers[w] = struct{}{}
	return w
}

func (r *Ring) forget(w *watcher) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.watchers, w)
}

// take returns what waits for the watcher, and what it has lost before it.
func (r *Ring) take(w *watcher) ([]*l7proxyv1.RequestVerdict, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, lost := w.verdicts, w.lost
	w.verdicts, w.lost = nil, 0
	return v, lost
}

func convert(v proxy.Verdict) *l7proxyv1.RequestVerdict {
	d := policyv1.Direction_DIRECTION_INGRESS
	if v.Flow.Direction == proxy.Egress {
		d = policyv1.Direction_DIRECTION_EGRESS
	}
	return &l7proxyv1.RequestVerdict{
		TimeUnixNano:    uint64(v.Time.UnixNano()),
		Direction:       d,
		Source:          v.Flow.Client.Addr().AsSlice(),
		Destination:     v.Flow.Server.Addr().AsSlice(),
		SourcePort:      uint32(v.Flow.Client.Port()),
		DestinationPort: uint32(v.Flow.Server.Port()),
		Method:          printable(v.Method),
		Path:            printable(v.Path),
		Host:            printable(v.Host),
		Status:          uint32(v.Status),
		Denied:          v.Denied,
		Reason:          v.Reason,
		RuleSet:         v.RuleSet,
		Rule:            int32(v.Rule),
	}
}

// printable replaces what is no text: a proto string is UTF-8, and a terminal
// may show it.
func printable(s string) string {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			b := []byte(s)
			for j := range b {
				if b[j] < ' ' || b[j] > '~' {
					b[j] = '?'
				}
			}
			return string(b)
		}
	}
	return s
}
