package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"weir.dev/weir/internal/logkey"
)

// An Entry is one write to a bucket.
type Entry struct {
	Key      string
	Revision uint64
	Value    []byte
	Removed  bool
}

// A Batch is what happened in a bucket since the last one, in order.
type Batch struct {
	// Reset is set on the first batch of a replay: all that was known is void.
	Reset   bool
	Entries []Entry
	// Head is where the replay is after this batch, and in which stream. Between
	// a Reset and the first Complete batch it is a state that never was.
	Head Head
	// Complete tells that the head seen at the start is reached.
	Complete bool
}

// Opener opens a bucket, and makes it if need be.
type Opener func(ctx context.Context) (jetstream.KeyValue, error)

// Limits of following.
const (
	checkEvery   = time.Second
	checkTimeout = 2 * time.Second
	maxPause     = 500 * time.Millisecond
)

// ErrReplaced reports a bucket that is not the one that was replayed: its
// stream was made anew, or came back from an older disk.
var ErrReplaced = errors.New("the bucket was replaced")

// errEnded reports a watch that the server or the connection ended, errStalled
// one that brings nothing although there is more: a server that was restarted
// knows nothing of it, and the client library takes its time to find out.
var (
	errEnded   = errors.New("watching ended")
	errStalled = errors.New("watching brings nothing although there is more")
)

// Follow calls apply with all that a bucket holds and, from then on, with all
// that is written to it, until ctx ends. If the bucket is lost or replaced it
// begins again, with a Reset. apply is called from this goroutine alone.
func Follow(ctx context.Context, open Opener, log *slog.Logger, apply func(Batch)) {
	for ctx.Err() == nil {
		f := follower{apply: apply}
		err := f.run(ctx, open)
		if ctx.Err() != nil {
			return
		}
		log.Warn("reading from NATS again", logkey.Sequence, f.head.Sequence, logkey.Error, err)
		Pause(ctx, maxPause)
	}
}

// Pause waits for at most d, jittered, or until ctx ends.
func Pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d/4 + rand.N(d*3/4))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// follower is one pass from a Reset on.
type follower struct {
	apply    func(Batch)
	head     Head
	checked  uint64 // one more than the sequence at the last check, if there was more then
	backlog  []Entry
	behind   uint64 // what the stream had after the last entry
	started  bool   // a batch was applied
	complete bool
}

func (f *follower) run(ctx context.Context, open Opener) error {
	kv, err := open(ctx)
	if err != nil {
		return err
	}
	start, err := HeadOf(ctx, kv)
	if err != nil {
		return err
	}
	f.head.Created = start.Created
	w, err := kv.WatchAll(ctx)
	if err != nil {
		return fmt.Errorf("watch bucket %s: %w", kv.Bucket(), err)
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
			f.take(e, len(w.Updates()) == 0)
		case <-check.C:
			if err := f.check(ctx, kv); err != nil {
				return err
			}
		}
	}
}

// take collects an entry, and applies what is collected when it is all that the
// stream had. A bucket keeps only a key's last value, so a state in the middle
// of a backlog is none that others saw.
func (f *follower) take(e jetstream.KeyValueEntry, last bool) {
	if e == nil {
		f.complete = true
	} else {
		f.behind = e.Delta()
		f.head.Sequence = max(f.head.Sequence, e.Revision())
		f.backlog = append(f.backlog, Entry{
			Key: e.Key(), Revision: e.Revision(), Value: e.Value(),
			Removed: e.Operation() != jetstream.KeyValuePut,
		})
	}
	if f.behind > 0 || !last {
		return
	}
	f.apply(Batch{Reset: !f.started, Entries: f.backlog, Head: f.head, Complete: f.complete})
	f.started, f.backlog = true, nil
}

// check finds out that the bucket is not the one that we follow: then the watch
// would stay silent for ever.
func (f *follower) check(ctx context.Context, kv jetstream.KeyValue) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	head, err := HeadOf(ctx, kv)
	if err != nil {
		if errors.Is(err, jetstream.ErrBucketNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("%w: %w", ErrReplaced, err)
		}
		return nil // disconnected; what we have stays as it is
	}
	if !head.Created.Equal(f.head.Created) || head.Sequence < f.head.Sequence {
		return fmt.Errorf("%w: its head is %d, made %v; replayed to %d of one made %v",
			ErrReplaced, head.Sequence, head.Created, f.head.Sequence, f.head.Created)
	}
	if head.Sequence == f.head.Sequence {
		f.checked = 0
		return nil
	}
	if f.checked == f.head.Sequence+1 {
		return errStalled
	}
	f.checked = f.head.Sequence + 1
	return nil
}
