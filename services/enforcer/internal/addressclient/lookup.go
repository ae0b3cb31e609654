package addressclient

import (
	"context"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"weir.dev/weir/internal/logkey"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
)

// Want looks an address up that an endpoint's traffic waits for. It never
// blocks: a look-up that is under way, was just answered with nothing, or is
// over the endpoint's limit is not made, and the next packet asks again.
func (c *Client) Want(endpoint uint32, addr netip.Addr) {
	now := time.Now()
	c.mu.Lock()
	until, known := c.lookups[addr]
	busy := known && (until.IsZero() || now.Before(until))
	if busy || !c.limiter(endpoint).AllowN(now, 1) {
		c.mu.Unlock()
		return
	}
	c.lookups[addr] = time.Time{}
	c.mu.Unlock()
	select {
	case c.wanted <- addr:
	default:
		c.done(addr, time.Time{}) // too many wait already
	}
}

// limiter is an endpoint's; c.mu is held. IDs are not reused, so old ones are
// forgotten together now and then.
func (c *Client) limiter(endpoint uint32) *rate.Limiter {
	const most = 1024
	l := c.limits[endpoint]
	if l == nil {
		if len(c.limits) >= most {
			c.limits = map[uint32]*rate.Limiter{}
		}
		l = rate.NewLimiter(lookupsPerSecond, lookupBurst)
		c.limits[endpoint] = l
	}
	return l
}

// done ends a look-up; it is not made again before until.
func (c *Client) done(addr netip.Addr, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if until.IsZero() {
		delete(c.lookups, addr)
		return
	}
	c.lookups[addr] = until
	for a, t := range c.lookups { // a handful, by the limit
		if !t.IsZero() && until.Sub(t) > absentFor {
			delete(c.lookups, a)
		}
	}
}

func (c *Client) runLookups(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case addr := <-c.wanted:
			c.lookup(ctx, addr)
		}
	}
}

func (c *Client) lookup(ctx context.Context, addr netip.Addr) {
	call, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	answer, err := c.cfg.Identities.Lookup(call, &identityv1.LookupRequest{Address: addr.AsSlice()})
	until := time.Now().Add(absentFor)
	defer func() { c.done(addr, until) }()
	if err != nil {
		c.cfg.Log.Debug("address not looked up", logkey.Address, addr, logkey.Error, err)
		return
	}
	if answer.GetRecord() == nil {
		return
	}
	r, err := recordOf(answer.GetRecord())
	if err != nil || r.Addr != addr {
		c.cfg.Log.Warn("look-up answered with another address", logkey.Address, addr, logkey.Error, err)
		return
	}
	c.mu.Lock()
	changed := c.store.put(event{answer.GetSequence(), addr, &r})
	c.mu.Unlock()
	if changed {
		c.tell(&r)
	}
}
