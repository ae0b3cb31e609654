package upstream

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"weir.dev/weir/internal/handover"
)

const (
	ready = 256       // sockets kept for each namespace and family
	low   = ready / 2 // more are asked for when fewer are left
)

// A Pool keeps transparent sockets ready, for each namespace and family. It may
// be used by any number of goroutines.
type Pool struct {
	ask   func(ns handover.Namespace, family, n int) error
	kinds map[kindKey]*kind
}

type kindKey struct {
	ns     handover.Namespace
	family int
}

type kind struct {
	ready chan *os.File
	asked atomic.Bool
}

// NewPool makes an empty Pool. ask must not wait for the sockets that it asks
// for: they come by Add.
func NewPool(ask func(ns handover.Namespace, family, n int) error) *Pool {
	p := &Pool{ask: ask, kinds: map[kindKey]*kind{}}
	for _, ns := range []handover.Namespace{handover.In, handover.Out} {
		for _, family := range []int{4, 6} {
			p.kinds[kindKey{ns, family}] = &kind{ready: make(chan *os.File, ready+handover.MaxFiles)}
		}
	}
	return p
}

// Fill asks for sockets of every kind that is low.
func (p *Pool) Fill() error {
	var errs []error
	for key, k := range p.kinds {
		errs = append(errs, p.refill(key, k))
	}
	return errors.Join(errs...)
}

func (p *Pool) refill(key kindKey, k *kind) error {
	if len(k.ready) >= low || !k.asked.CompareAndSwap(false, true) {
		return nil
	}
	if err := p.ask(key.ns, key.family, ready-len(k.ready)-4); err != nil {
		k.asked.Store(false)
		return fmt.Errorf("ask for sockets: %w", err)
	}
	return nil
}

// Add takes sockets that were asked for. Those for which there is no room are
// closed.
func (p *Pool) Add(ns handover.Namespace, family int, files []*os.File) {
	k := p.kinds[kindKey{ns, family}]
	if k == nil {
		handover.CloseAll(files)
		return
	}
	for i, f := range files {
		select {
		case k.ready <- f:
			continue
		default:
		}
		handover.CloseAll(files[i:])
		break
	}
	k.asked.Store(false)
}

// Renew closes all that is ready and asks again: the namespaces are others now.
func (p *Pool) Renew() error {
	p.Close()
	return p.Fill()
}

// Get returns a socket, which it waits for if there is none.
func (p *Pool) Get(ctx context.Context, ns handover.Namespace, family int) (*os.File, error) {
	key := kindKey{ns, family}
	k := p.kinds[key]
	if k == nil {
		return nil, fmt.Errorf("a socket of namespace %q and family %d: no such pool", ns, family)
	}
	if err := p.refill(key, k); err != nil {
		return nil, err
	}
	select {
	case f := <-k.ready:
		return f, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a socket: %w", ctx.Err())
	}
}

// Ready returns how many sockets are ready in the pool that has fewest.
func (p *Pool) Ready() int {
	least := ready
	for _, k := range p.kinds {
		least = min(least, len(k.ready))
	}
	return least
}

// Close closes what is ready.
func (p *Pool) Close() {
	for _, k := range p.kinds {
		for len(k.ready) > 0 {
			select {
			case f := <-k.ready:
				handover.CloseAll([]*os.File{f})
			default:
			}
		}
	}
}
