package statelog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/logkey"
)

// An Event is one write to the log.
type Event struct {
	Key      Key
	Revision uint64
	// Value is an *identityv1.Identity, *identityv1.Namespace,
	// *identityv1.Service or *policyv1.PolicyEntry, as Key.Kind says; nil for a
	// removal. Its receiver must not write to it.
	Value proto.Message
}

// A Batch is what happened since the last one, in order.
type Batch struct {
	// Reset is set on the first batch of a replay: all that was known is void.
	Reset  bool
	Events []Event
	// The state after this batch: that of the log at the revision. Between a
	// Reset and the first Complete batch it is none that the log ever had.
	Generation uint64 // 0: the log has none yet
	Revision   uint64
	// Complete tells that the head seen at the start is reached.
	Complete bool
}

// Limits of replaying.
const (
	maxBatch     = 1024
	checkEvery   = 5 * time.Second
	checkTimeout = 2 * time.Second
	maxPause     = 2 * time.Second
)

// ErrReplaced reports a log that is not the one that was replayed: its stream
// was made anew, or came back from an older disk.
var ErrReplaced = errors.New("the log was replaced")

// errEnded reports a watch that the server or the connection ended.
var errEnded = errors.New("watching ended")

// Opener opens the bucket to replay, and makes it if need be.
type Opener func(ctx context.Context) (jetstream.KeyValue, error)

// Replay calls apply with all that the log holds and, from then on, with all
// that is written to it, until ctx ends. If the log is lost or replaced it
// begins again, with a Reset.
func Replay(ctx context.Context, open Opener, log *slog.Logger, apply func(Batch)) error {
	for ctx.Err() == nil {
		r := replayer{log: log, apply: apply}
		err := r.run(ctx, open)
		if ctx.Err() != nil {
			break
		}
		log.Warn("replaying the state log again", logkey.Revision, r.revision, logkey.Error, err)
		pause(ctx, maxPause)
	}
	return nil
}

// pause waits for at most d, jittered.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d/4 + rand.N(d*3/4))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// replayer is one pass from a Reset on.
type replayer struct {
	log        *slog.Logger
	apply      func(Batch)
	generation uint64
	revision   uint64
	started    bool // a batch was applied
	complete   bool
}

func (r *replayer) run(ctx context.Context, open Opener) error {
	kv, err := open(ctx)
	if err != nil {
		return err
	}
	start, err := bus.HeadOf(ctx, kv)
	if err != nil {
		return err
	}
	w, err := kv.WatchAll(ctx)
	if err != nil {
		return fmt.Errorf("watch the state log: %w", err)
	}
	// Its error says no more than that the connection is gone already.
	defer func() { _ = w.Stop() }()

	check := time.NewTicker(checkEvery)
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-w.Updates():
			if !ok {
				return errEnded
			}
			if err := r.take(e, w.Updates()); err != nil {
				return err
			}
		case <-check.C:
			if err := r.check(ctx, kv, start); err != nil {
				return err
			}
		}
	}
}

// take applies an entry and what waits behind it as one batch.
func (r *replayer) take(e jetstream.KeyValueEntry, more <-chan jetstream.KeyValueEntry) error {
	var events []Event
	for {
		if e == nil {
			r.complete = true
		} else if ev, ok := r.read(e); ok {
			events = append(events, ev)
		}
		if len(events) >= maxBatch {
			break
		}
		select {
		case next, ok := <-more:
			if !ok {
				return errEnded
			}
			e = next
			continue
		default:
		}
		break
	}
	r.apply(Batch{
		Reset: !r.started, Events: events,
		Generation: r.generation, Revision: r.revision, Complete: r.complete,
	})
	r.started = true
	return nil
}

// read turns an entry into an event. What cannot be read changes nothing: the
// object stays as it was.
func (r *replayer) read(e jetstream.KeyValueEntry) (Event, bool) {
	r.revision = max(r.revision, e.Revision())
	key := Key(e.Key())
	ev := Event{Key: key, Revision: e.Revision()}
	removed := e.Operation() != jetstream.KeyValuePut
	switch {
	case key.Kind() == 0:
		// Of a later version: it means nothing to this one.
		r.log.Warn("entry of the state log is of an unknown kind", logkey.Name, e.Key(), logkey.Revision, e.Revision())
		return Event{}, false
	case key == GenerationKey:
		if removed {
			return Event{}, false
		}
		g, err := strconv.ParseUint(string(e.Value()), 10, 64)
		if err != nil {
			r.log.Error("generation of the state log cannot be read", logkey.Error, err)
			return Event{}, false
		}
		r.generation = g
		return Event{}, false
	case removed:
		return ev, true
	}
	m, err := decode(key, e.Value())
	if err != nil {
		r.log.Error("entry of the state log cannot be read", logkey.Revision, e.Revision(), logkey.Error, err)
		return Event{}, false
	}
	ev.Value = m
	return ev, true
}

// check finds out that the log is not the one that we replay: then the watch
// would stay silent for ever.
func (r *replayer) check(ctx context.Context, kv jetstream.KeyValue, start bus.Head) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	head, err := bus.HeadOf(ctx, kv)
	if err != nil {
		if errors.Is(err, jetstream.ErrBucketNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("%w: %w", ErrReplaced, err)
		}
		return nil // disconnected; what we have stays as it is
	}
	if !head.Created.Equal(start.Created) || head.Sequence < r.revision {
		return fmt.Errorf("%w: its head is %d, made %v; replayed to %d of one made %v",
			ErrReplaced, head.Sequence, head.Created, r.revision, start.Created)
	}
	return nil
}
