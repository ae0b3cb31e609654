package proxy

import (
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"weir.dev/weir/engine/httprule"
	"weir.dev/weir/internal/logkey"
	"weir.dev/weir/services/l7proxy/internal/http1"
	"weir.dev/weir/services/l7proxy/internal/rules"
)

// A session is one proxied connection.
type session struct {
	p      *Proxy
	flow   Flow
	client side
	server side
	in     *http1.Reader // of the client: the front's
	out    *http1.Reader // of the server: the back's

	// Of the front: the rule set in force and the word it was judged under.
	number uint32
	word   uint64
	judged bool

	// exchanges has the exchange whose response the server may send: none, or
	// one from before its first byte goes out.
	exchanges chan *exchange
	backDone  chan struct{}
	outDone   chan struct{} // closed when a WebSocket's client has ended its half
	endOnce   sync.Once
	turn      turn                             // whose the connection is: see handover.go
	backIdle  bool                             // the back has ended between two responses; before backDone
	tunnel    atomic.Pointer[httprule.Request] // of an open WebSocket
}

// An exchange is a request that was passed on, until its response has been.
type exchange struct {
	method    string
	minor     int
	webSocket bool
	close     bool
	waits     bool        // the client sends the body when it gets 100, or gives up waiting
	result    chan result // of capacity 1
}

// A result is how an exchange ended.
type result struct {
	status int
	close  bool // the connection cannot be used again
	tunnel bool // it is a WebSocket now
}

func newSession(p *Proxy, f Flow, client, server *net.TCPConn) *session {
	s := &session{
		p: p, flow: f,
		client:    side{tcp: client, write: p.cfg.Limits.Write},
		server:    side{tcp: server, write: p.cfg.Limits.Write},
		exchanges: make(chan *exchange, 1),
		backDone:  make(chan struct{}),
		outDone:   make(chan struct{}),
	}
	s.in = http1.NewReader(&s.client, &p.buffers)
	s.out = http1.NewReader(&s.server, &p.buffers)
	return s
}

// run serves the connection to its end.
func (s *session) run() {
	go func() {
		defer close(s.backDone)
		s.guard(s.back)
		s.client.wake()
	}()
	s.guard(s.front)
	if s.turn.leaving() {
		s.server.pause()
	} else {
		s.server.wake()
	}
	<-s.backDone
	s.leave()
	s.end()
	s.in.Release()
	s.out.Release()
}

// guard cuts the connection if f panics: what one peer sent must not end the
// connections of all others.
func (s *session) guard(f func()) {
	defer func() {
		if r := recover(); r != nil {
			s.p.cfg.Metrics.panics.Inc()
			s.p.log.Error("connection cut: its handling panicked", logkey.Error, r, "stack", string(debug.Stack()))
			s.cut()
		}
	}()
	f()
}

// end closes both sides. What the client has reset is reset for the server too,
// and what the node cut is cut whole; a server's own reset must not overtake its
// last response.
func (s *session) end() {
	if s.client.wasReset.Load() || s.client.wasCut.Load() || s.server.wasCut.Load() {
		s.cut()
		return
	}
	s.endOnce.Do(func() {
		// Errors say that the peer has ended it already.
		_ = s.client.tcp.Close()
		_ = s.server.tcp.Close()
	})
}

// endIfIdle ends a connection on which no request is under way.
func (s *session) endIfIdle() {
	if s.turn.idle() {
		s.client.wake()
	}
}

// cut ends the connection at once; both peers see a reset.
func (s *session) cut() {
	s.endOnce.Do(func() {
		reset(s.client.tcp)
		reset(s.server.tcp)
	})
}

// current returns the rule set that judges now; nil and Allowed lets all pass.
// It asks the datapath when the word is not the one of the last judgement.
func (s *session) current() (set *rules.Set, number uint32, reason string) {
	if word := s.p.cfg.Connections.Word(); !s.judged || word != s.word {
		number, judgedUnder, ok := s.p.cfg.Connections.RuleSet(s.flow)
		if !ok {
			s.judged = false
			return nil, 0, ReasonNoJudgement
		}
		s.number, s.word, s.judged = number, judgedUnder, true
	}
	if s.number == Allowed {
		return nil, Allowed, ""
	}
	if set = s.p.cfg.Rules.Get(s.number); set == nil {
		return nil, s.number, ReasonNoRuleSet
	}
	return set, s.number, ""
}

// Reasons of denials that no rule is the cause of.
const (
	ReasonNoJudgement = "http-no-judgement" // the datapath does not send this connection here
	ReasonNoRuleSet   = "http-no-rule-set"  // it names a rule set that is not known
)

// judge decides a request.
func (s *session) judge(r httprule.Request) (d rules.Decision, number uint32) {
	set, number, reason := s.current()
	switch {
	case reason != "":
		return rules.Decision{Rule: -1, Reason: reason}, number
	case set == nil:
		return rules.Decision{Allowed: true, Rule: -1}, number
	default:
		return set.Judge(r), number
	}
}

// checkTunnel cuts an open WebSocket that would be refused now.
func (s *session) checkTunnel() {
	r := s.tunnel.Load()
	if r == nil {
		return
	}
	// The front is no longer judging: a WebSocket has one request.
	if d, _ := s.judge(*r); !d.Allowed {
		s.p.cfg.Metrics.tunnelsCut.Inc()
		s.cut()
	}
}
