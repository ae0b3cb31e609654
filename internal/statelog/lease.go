package statelog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/logkey"
)

// Lease names a lease and who wants it.
type Lease struct {
	Name    string // "identity" or "policy"
	Replica string
}

// renewals is how often a lease is renewed before it would run out.
const renewals = 3

// Hold tries to get the lease until ctx ends, and calls lead while it has it.
// lead's ctx ends before the lease can be another's; lead must return then. If
// lead returns by itself, the lease is given back and tried for again.
func (l Lease) Hold(ctx context.Context, open bus.Opener, log *slog.Logger, lead func(ctx context.Context) error) error {
	for ctx.Err() == nil {
		if err := l.try(ctx, open, log, lead); err != nil && ctx.Err() == nil {
			log.Warn("lease not held", logkey.Name, l.Name, logkey.Error, err)
		}
		bus.Pause(ctx, bus.LeaseTTL/renewals)
	}
	return nil
}

// try takes the lease if it is free and leads until it is lost. That another
// holds it is no error.
func (l Lease) try(ctx context.Context, open bus.Opener, log *slog.Logger, lead func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, bus.LeaseTTL)
	defer cancel()
	kv, err := open(limited)
	if err != nil {
		return err
	}
	taken := time.Now()
	rev, err := kv.Create(limited, l.Name, []byte(l.Replica))
	if errors.Is(err, jetstream.ErrKeyExists) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take lease %s: %w", l.Name, err)
	}
	log.Info("lease taken", logkey.Name, l.Name)
	ctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- lead(ctx) }()
	lost := l.renew(ctx, kv, &rev, taken, done)
	stop()
	if lost.ended {
		err = lost.err
	} else {
		err = errors.Join(lost.err, <-done)
	}
	log.Info("lease ended", logkey.Name, l.Name)
	// Given back at once, if it is still ours; otherwise it runs out.
	back, cancelBack := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancelBack()
	_ = kv.Delete(back, l.Name, jetstream.LastRevision(rev))
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// end is why leading came to its end.
type end struct {
	ended bool // lead returned by itself, with err
	err   error
}

// renew keeps the lease until it is lost, lead returns, or ctx ends.
func (l Lease) renew(ctx context.Context, kv jetstream.KeyValue, rev *uint64, taken time.Time, done <-chan error) end {
	tick := time.NewTicker(bus.LeaseTTL / renewals)
	defer tick.Stop()
	// It is counted from before the write, and ends before it can run out.
	left := func() time.Duration { return time.Until(taken.Add(bus.LeaseTTL - bus.LeaseTTL/10)) }
	for {
		select {
		case <-ctx.Done():
			return end{err: ctx.Err()}
		case err := <-done:
			return end{ended: true, err: err}
		case <-tick.C:
		}
		sent := time.Now()
		limited, cancel := context.WithTimeout(ctx, max(left(), 0))
		next, err := kv.Update(limited, l.Name, []byte(l.Replica), *rev)
		cancel()
		switch {
		case err == nil:
			*rev, taken = next, sent
		case errors.Is(err, jetstream.ErrKeyRevisionMismatch) || left() <= bus.LeaseTTL/renewals:
			return end{err: fmt.Errorf("renew lease %s: %w", l.Name, err)}
		}
	}
}
