package proxy

import (
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of a Proxy.
type Metrics struct {
	connections  prometheus.Counter
	refused      prometheus.Counter
	given        prometheus.Counter
	adopted      prometheus.Counter
	dialErrors   prometheus.Counter
	badResponses prometheus.Counter
	tunnels      prometheus.Counter
	tunnelsCut   prometheus.Counter
	panics       prometheus.Counter
	requests     *prometheus.CounterVec // direction, status class
	denied       *prometheus.CounterVec // direction, reason

	nRequests, nDenied atomic.Uint64
}

// NewMetrics makes the metrics and registers them, if reg is not nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "weir", Subsystem: "l7proxy", Name: name, Help: help})
		if reg != nil {
			reg.MustRegister(c)
		}
		return c
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "weir", Subsystem: "l7proxy", Name: name, Help: help}, labels)
		if reg != nil {
			reg.MustRegister(c)
		}
		return c
	}
	return &Metrics{
		connections:  counter("connections_total", "Connections that were accepted."),
		refused:      counter("connections_refused_total", "Connections reset because too many were open."),
		given:        counter("connections_given_total", "Connections that were handed over to another proxy."),
		adopted:      counter("connections_adopted_total", "Connections that another proxy has handed over."),
		dialErrors:   counter("dial_errors_total", "Connections reset because their server was not reached."),
		badResponses: counter("bad_responses_total", "Responses of servers that were not passed on: malformed, or a switch nobody asked for."),
		tunnels:      counter("websockets_total", "Connections that became WebSockets."),
		tunnelsCut:   counter("websockets_cut_total", "WebSockets cut because the policy would refuse them now."),
		panics:       counter("panics_total", "Connections cut because their handling panicked: a fault of the proxy's."),
		requests:     vec("requests_total", "Requests by what their client got: a class of status, or none.", "direction", "status"),
		denied:       vec("denied_total", "Requests that were denied, by reason.", "direction", "reason"),
	}
}

func (m *Metrics) request(v Verdict) {
	status := "none"
	if v.Status >= 100 && v.Status < 600 {
		status = strconv.Itoa(v.Status/100) + "xx"
	}
	m.nRequests.Add(1)
	m.requests.WithLabelValues(v.Flow.Direction.String(), status).Inc()
	if v.Denied {
		m.nDenied.Add(1)
		m.denied.WithLabelValues(v.Flow.Direction.String(), v.Reason).Inc()
	}
}

// Requests returns how many requests there were, and how many were denied.
func (m *Metrics) Requests() (all, denied uint64) { return m.nRequests.Load(), m.nDenied.Load() }

// String returns the direction as a metric's label.
func (d Direction) String() string {
	switch d {
	case Ingress:
		return "ingress"
	case Egress:
		return "egress"
	default:
		return "none"
	}
}
