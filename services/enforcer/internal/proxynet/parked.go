package proxynet

import (
	"os"
	"time"

	"weir.dev/weir/internal/handover"
	"weir.dev/weir/internal/logkey"
)

// mostParked bounds the connections that wait for a proxy: as many as one
// serves.
const mostParked = 20_000

// A parked connection is between two requests, and belongs to no proxy.
type parked struct {
	message handover.Message
	files   []*os.File
}

// awaitSuccessor makes clients wait for the proxy after the one that retires.
func (p *ProxyNet) awaitSuccessor() {
	p.mu.Lock()
	p.until = time.Now().Add(p.cfg.Successor)
	p.mu.Unlock()
}

// waits returns how long clients are still to wait for a proxy.
func (p *ProxyNet) waits() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(time.Until(p.until), 0)
}

// park passes a connection to the proxy that accepts, or keeps it until one
// does.
func (p *ProxyNet) park(c parked) {
	p.mu.Lock()
	var to *proxyConn
	for o := range p.proxies {
		if o.accepting {
			to = o
		}
	}
	keep := to == nil && len(p.parked) < mostParked && time.Now().Before(p.until)
	if keep {
		p.parked = append(p.parked, c)
	}
	p.mu.Unlock()
	switch {
	case to != nil:
		p.pass(to, c)
	case !keep:
		handover.CloseAll(c.files)
	}
}

// unpark passes what waits to a proxy that accepts now.
func (p *ProxyNet) unpark(to *proxyConn) {
	p.mu.Lock()
	waiting := p.parked
	p.parked = nil
	p.mu.Unlock()
	for _, c := range waiting {
		p.pass(to, c)
	}
	if len(waiting) > 0 {
		p.log.Info("connections handed over", logkey.Count, len(waiting))
	}
}

func (p *ProxyNet) pass(to *proxyConn, c parked) {
	if err := to.Forward(c.message, c.files); err != nil {
		p.log.Warn("hand a connection over", logkey.Error, err)
	}
}

// letGo ends what has waited in vain.
func (p *ProxyNet) letGo() {
	p.mu.Lock()
	waiting := p.parked
	p.parked = nil
	p.mu.Unlock()
	for _, c := range waiting {
		handover.CloseAll(c.files)
	}
}
