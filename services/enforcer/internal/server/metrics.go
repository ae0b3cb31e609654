package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	bpf "weir.dev/weir/bpf/datapath"
	flowv1 "weir.dev/weir/proto/weir/flow/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/enforcer/internal/plan"
	"weir.dev/weir/services/enforcer/internal/reconcile"
)

// Metrics are what the enforcer measures as it goes; what the kernel and the
// clients count is read when it is asked for.
type Metrics struct {
	// PolicyInForce is from a policy's arrival on this node until the kernel
	// judges by it; PodInForce from the call of weir-cni until the same.
	PolicyInForce prometheus.Histogram
	PodInForce    prometheus.Histogram
	// AddressInForce is from a record's write to the address stream, anywhere,
	// until this node's kernel knows it.
	AddressInForce prometheus.Histogram
	Moves          prometheus.Counter
	Writes         prometheus.Counter
	Requests       *prometheus.CounterVec // by verdict and reason
	LostVerdicts   prometheus.Counter
}

// seconds are the buckets of times that people wait for.
var seconds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// NewMetrics makes and registers the enforcer's metrics.
func NewMetrics(reg prometheus.Registerer, s Sources, limits plan.Limits) (*Metrics, error) {
	m := &Metrics{
		PolicyInForce: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "weir_enforcer_policy_in_force_seconds", Buckets: seconds,
			Help: "Time from the arrival of a policy state on this node until the kernel judges by it.",
		}),
		PodInForce: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "weir_enforcer_pod_in_force_seconds", Buckets: seconds,
			Help: "Time from the call of weir-cni until the pod is judged by a policy that knows it.",
		}),
		AddressInForce: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "weir_enforcer_address_in_force_seconds", Buckets: seconds,
			Help: "Time from the write of an address record, on any node, until this node's kernel judges by it: pod to everywhere.",
		}),
		Moves: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weir_enforcer_word_moves_total", Help: "Changes of verdict state that moved the live word.",
		}),
		Writes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weir_enforcer_map_writes_total", Help: "Map entries written to put changes in force.",
		}),
		Requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weir_enforcer_http_verdicts_total", Help: "HTTP verdicts that the proxy told, by verdict and reason.",
		}, []string{"verdict", "reason"}),
		LostVerdicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weir_enforcer_lost_http_verdicts_total", Help: "HTTP verdicts that the proxy could not tell.",
		}),
	}
	for _, c := range []prometheus.Collector{m.PolicyInForce, m.PodInForce, m.AddressInForce, m.Moves, m.Writes, m.Requests, m.LostVerdicts, newCollector(s, limits)} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// collector reads what others count.
type collector struct {
	Sources
	limits plan.Limits

	drops, passed, lost, watched, entries, capacity, revision, endpoints, started, connected *prometheus.Desc
}

func newCollector(s Sources, limits plan.Limits) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("weir_enforcer_"+name, help, labels, nil)
	}
	return &collector{
		Sources: s, limits: limits,
		drops:     desc("drops_total", "Packets dropped, by reason and direction.", "reason", "direction"),
		passed:    desc("passed_packets_total", "Packets that passed or were steered to the proxy, by direction.", "direction"),
		lost:      desc("lost_events_total", "Events that found their ring full, by ring.", "ring"),
		watched:   desc("watch_received_bytes_total", "Bytes received by WatchPolicy."),
		entries:   desc("map_entries", "Entries in force, by map.", "map"),
		capacity:  desc("map_capacity_entries", "Entries that a map has room for, by map.", "map"),
		revision:  desc("policy_revision", "Revision of the policy in force."),
		endpoints: desc("endpoints", "Endpoints on this node, by state.", "state"),
		started:   desc("start_time_seconds", "When the enforcer started, in seconds since 1970."),
		connected: desc("connected", "Whether a part is connected to, by part.", "part"),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.drops, c.passed, c.lost, c.watched, c.entries, c.capacity, c.revision, c.endpoints, c.started, c.connected} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	c.collectKernel(ch, counter)
	p := c.Policy()
	counter(c.watched, p.Bytes)
	gauge(c.revision, float64(p.InForce.Revision))
	gauge(c.started, float64(c.Started.UnixMilli())/float64(time.Second/time.Millisecond))
	for part, up := range map[string]bool{
		"policy": p.Replica != "", "identity": c.IdentityReplica() != "", "nats": c.NATSConnected(), "proxy": c.ProxyConnected(),
	} {
		gauge(c.connected, boolean(up), part)
	}
	states := map[bool]int{}
	for _, e := range c.Endpoints.List() {
		states[c.Endpoints.Ready(e.ID)]++
	}
	gauge(c.endpoints, float64(states[true]), "ready")
	gauge(c.endpoints, float64(states[false]), "waiting")
	c.collectFill(gauge)
}

func (c *collector) collectKernel(ch chan<- prometheus.Metric, counter func(*prometheus.Desc, uint64, ...string)) {
	counts, err := c.Counters()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.drops, err)
	}
	for _, n := range counts {
		direction := "egress"
		if n.Ingress {
			direction = "ingress"
		}
		if n.Reason == bpf.ReasonNone {
			counter(c.passed, n.Packets, direction)
			continue
		}
		counter(c.drops, n.Packets, n.Reason.String(), direction)
	}
	drops, flows, err := c.Lost()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.lost, err)
		return
	}
	counter(c.lost, drops, "drops")
	counter(c.lost, flows, "flows")
}

func (c *collector) collectFill(gauge func(*prometheus.Desc, float64, ...string)) {
	var s plan.State
	var r plan.Result
	if now := c.Current(); now != nil {
		s, r = now.State, now.Result
	}
	for _, m := range c.Conntrack() {
		gauge(c.entries, float64(m.Entries), m.Map)
		gauge(c.capacity, float64(m.Capacity), m.Map)
	}
	for _, m := range []struct {
		name           string
		used, capacity int
	}{
		{"endpoints", len(s.Endpoints), c.limits.Endpoints},
		{"addresses", len(s.Addresses), c.limits.Addresses},
		{"prefixes", len(s.Prefixes), c.limits.Prefixes},
		{"classes", len(s.Classes), c.limits.Peers},
		{"cells", 2 * len(s.Cells), c.limits.Cells},
		{"ranges", 2 * r.Ranges, 2 * c.limits.Ranges},
		{"backends", 2 * r.Backends, 2 * c.limits.Backends},
		{"services", 2 * len(s.Services), c.limits.Services},
		{"backend_sets", len(s.Pairs), c.limits.Pairs},
	} {
		gauge(c.entries, float64(m.used), m.name)
		gauge(c.capacity, float64(m.capacity), m.name)
	}
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// InForce counts a change that was put in force.
func (m *Metrics) InForce(c reconcile.Change) {
	if c.Policy {
		m.PolicyInForce.Observe(time.Since(c.Received).Seconds())
	}
	if c.Result.Moved {
		m.Moves.Inc()
	}
	m.Writes.Add(float64(c.Result.Writes))
}

// Addresses counts address records that are in force now, by when they were written.
func (m *Metrics) Addresses(written []time.Time) {
	for _, t := range written {
		m.AddressInForce.Observe(max(0, time.Since(t).Seconds()))
	}
}

// Request counts an HTTP verdict.
func (m *Metrics) Request(f *flowv1.Flow) {
	verdict := "allow"
	if f.GetVerdict() == policyv1.Verdict_VERDICT_DENY {
		verdict = "deny"
	}
	m.Requests.WithLabelValues(verdict, f.GetReason()).Inc()
}
