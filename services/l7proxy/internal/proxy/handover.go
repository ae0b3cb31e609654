package proxy

import (
	"errors"
	"net"
	"sync"

	"weir.dev/weir/internal/logkey"
)

// A Pair is a connection between two requests: everything that was read of one
// socket has been written to the other.
type Pair struct {
	Direction      Direction
	Client, Server *net.TCPConn
}

// HandOver gives every connection away, at once if it is idle, else when the
// exchange under way has ended. give passes it to another process; both sockets
// are closed here afterwards, and a connection that could not be given is ended.
// Tunnels stay.
func (p *Proxy) HandOver(give func(Pair) error) {
	p.give.Store(&give)
	p.each(func(s *session) { s.turn.take(s.client.pause) })
}

// Adopt serves a connection that another proxy has given away.
func (p *Proxy) Adopt(pair Pair) {
	flow := Flow{Direction: pair.Direction, Client: addrPort(pair.Client.RemoteAddr()), Server: addrPort(pair.Client.LocalAddr())}
	s := newSession(p, flow, pair.Client, pair.Server)
	if !p.admit(flow.Client.Addr()) {
		p.cfg.Metrics.refused.Inc()
		s.cut()
		return
	}
	p.cfg.Metrics.adopted.Inc()
	p.sessions.Go(func() {
		defer p.dismiss(flow.Client.Addr())
		p.serve(s)
	})
}

// A turn says whose a connection is: its front's while a request is under way,
// nobody's between two, the next proxy's once it was taken. Between two requests
// a request may begin while it is taken: the front has it for one more then.
type turn struct {
	mu    sync.Mutex
	state state
}

type state uint8

const (
	busy state = iota
	resting
	taken
)

func (t *turn) idle() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state == resting
}

func (t *turn) leaving() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state == taken
}

// take takes an idle connection; pause ends the wait for its next request.
func (t *turn) take(pause func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state == resting {
		t.state = taken
		pause()
	}
}

// between says that no request is under way; false if the connection is given
// away now. What the client has sent early is served first.
func (s *session) between() bool {
	s.turn.mu.Lock()
	defer s.turn.mu.Unlock()
	s.turn.state = resting
	if s.p.give.Load() != nil && len(s.in.Buffered()) == 0 {
		s.turn.state = taken
		return false
	}
	return true
}

// begin says that a request has begun, if the read for it went well; false if
// there is none.
func (s *session) begin(err error) bool {
	s.turn.mu.Lock()
	defer s.turn.mu.Unlock()
	if err != nil {
		if !errors.Is(err, errPaused) {
			s.turn.state = busy // it has ended: nobody wants it
		}
		return false
	}
	s.client.resume()
	s.turn.state = busy
	return true
}

// leave gives the connection away, if both its ends are quiet.
func (s *session) leave() {
	give := s.p.give.Load()
	if give == nil || !s.turn.leaving() || !s.backIdle {
		return
	}
	if err := (*give)(Pair{Direction: s.flow.Direction, Client: s.client.tcp, Server: s.server.tcp}); err != nil {
		s.p.log.Warn("connection not handed over", logkey.Error, err)
		return
	}
	s.p.cfg.Metrics.given.Inc()
}
