package replica

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	kit "weir.dev/weir/internal/source"
	"weir.dev/weir/internal/statelog"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/policy/internal/catalog"
	"weir.dev/weir/services/policy/internal/status"
)

// metrics of one replica.
type metrics struct {
	policyInForce   prometheus.Histogram
	identityInForce prometheus.Histogram
	messages        prometheus.Counter
	bytes           prometheus.Counter
}

func newMetrics(reg *prometheus.Registry, cat *catalog.Catalog, nodes *status.Nodes, store *kit.Store, leader *atomic.Bool) (*metrics, error) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "weir", Subsystem: "policy", Name: name, Help: help}
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts(name, help)), f)
	}
	latency := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "weir", Subsystem: "policy", Name: name, Help: help,
			Buckets: prometheus.ExponentialBucketsRange(0.005, 60, 16),
		})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	m := &metrics{
		policyInForce: latency("policy_in_force_seconds",
			"Time from when a policy was seen in its source until it is in force on every live node. Measured by the lease holder."),
		identityInForce: latency("pod_everywhere_seconds",
			"Time from when a new identity entered the log until every live node judges by it. Measured by the lease holder."),
		messages: counter("stream_messages_total", "Messages sent to nodes."),
		bytes:    counter("stream_sent_bytes_total", "Bytes of messages sent to nodes."),
	}
	for _, c := range []prometheus.Collector{
		m.policyInForce, m.identityInForce, m.messages, m.bytes,
		gauge("revision", "Revision of the state log that this replica serves.",
			func() float64 { p, _ := cat.Position(); return float64(p.Revision) }),
		gauge("streams", "Nodes that watch their policy at this replica.", func() float64 { return float64(nodes.Streams()) }),
		gauge("refused_objects", "Objects of the source that are refused.", func() float64 { return float64(len(store.Refused())) }),
		gauge("leader", "Is 1 while this replica holds the lease.", func() float64 {
			if leader.Load() {
				return 1
			}
			return 0
		}),
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// sent counts what a stream sent.
func (m *metrics) sent(parts []*policyv1.WatchPolicyResponse) {
	for _, p := range parts {
		m.messages.Inc()
		m.bytes.Add(float64(proto.Size(p)))
	}
}

// begin starts to measure what a batch of the log brings.
func (m *metrics) begin(b statelog.Batch, latency *status.Latency) {
	for _, e := range b.Events {
		at := catalog.Position{Generation: b.Generation, Revision: e.Revision}
		switch v := e.Value.(type) {
		case *policyv1.PolicyEntry:
			latency.Begin(at, v.GetObserved().AsTime(), m.policyInForce)
		case *identityv1.Identity:
			latency.Begin(at, time.Now(), m.identityInForce)
		}
	}
}
