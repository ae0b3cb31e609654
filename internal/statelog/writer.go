package statelog

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"weir.dev/weir/internal/bus"
)

// Outcome of a write. The zero Outcome is none.
type Outcome uint8

// What became of a write.
const (
	_         Outcome = iota
	Written           // the log has a new revision
	Unchanged         // the log says the same already
	Older             // the log has a newer version of the object
)

// tries bounds how often a write is tried again because another writer was
// faster.
const tries = 16

// ErrContended reports a key that others wrote each time we were about to.
var ErrContended = errors.New("other writers are always faster")

// Writer writes entries, comparing first.
type Writer struct{ open bus.Opener }

// NewWriter writes into the bucket of the state log, which open opens for each
// write: it should remember it.
func NewWriter(open bus.Opener) *Writer { return &Writer{open} }

// Put makes value the entry of key, unless the entry differs from it in nothing
// but its resource version and time of observation, or has a newer resource
// version. It returns the entry's revision.
func (w *Writer) Put(ctx context.Context, key Key, value proto.Message) (uint64, Outcome, error) {
	text, err := encode(value)
	if err != nil {
		return 0, 0, fmt.Errorf("write %s: %w", key, err)
	}
	for range tries {
		rev, outcome, err := w.put(ctx, key, value, text)
		if errors.Is(err, jetstream.ErrKeyExists) {
			continue // somebody wrote in between
		}
		if err != nil {
			return 0, 0, fmt.Errorf("write %s: %w", key, err)
		}
		return rev, outcome, nil
	}
	return 0, 0, fmt.Errorf("write %s: %w", key, ErrContended)
}

func (w *Writer) put(ctx context.Context, key Key, value proto.Message, text []byte) (uint64, Outcome, error) {
	kv, err := w.open(ctx)
	if err != nil {
		return 0, 0, err
	}
	entry, err := kv.Get(ctx, string(key))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		rev, err := kv.Create(ctx, string(key), text)
		return rev, Written, err
	}
	if err != nil {
		return 0, 0, err
	}
	// What this build cannot read it replaces: the source is what counts.
	if old, err := decode(key, entry.Value()); err == nil {
		switch compare(old, value) {
		case Unchanged:
			return entry.Revision(), Unchanged, nil
		case Older:
			return entry.Revision(), Older, nil
		}
	}
	rev, err := kv.Update(ctx, string(key), text, entry.Revision())
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		err = jetstream.ErrKeyExists
	}
	return rev, Written, err
}

// versioned is what carries its source's resource version.
type versioned interface{ GetResourceVersion() string }

// compare tells what writing next over old would be.
func compare(old, next proto.Message) Outcome {
	if Same(old, next) {
		return Unchanged
	}
	o, okOld := old.(versioned)
	n, okNext := next.(versioned)
	if okOld && okNext && olderVersion(n.GetResourceVersion(), o.GetResourceVersion()) {
		return Older
	}
	return Written
}

// Same tells whether two values say the same but for their resource version
// and time of observation.
func Same(a, b proto.Message) bool { return proto.Equal(spec(a), spec(b)) }

// spec is m without what may differ although it says the same.
func spec(m proto.Message) proto.Message {
	c := proto.Clone(m)
	r := c.ProtoReflect()
	for _, name := range []protoreflect.Name{"resource_version", "observed"} {
		if f := r.Descriptor().Fields().ByName(name); f != nil {
			r.Clear(f)
		}
	}
	return c
}

// olderVersion tells whether resource version a is surely older than b. They
// are decimal numbers of any length; others have no order, and a source whose
// objects have none is believed as it is.
func olderVersion(a, b string) bool {
	x, okX := new(big.Int).SetString(a, 10)
	y, okY := new(big.Int).SetString(b, 10)
	return okX && okY && x.Cmp(y) < 0
}

// Delete removes the entry of key. It is no error if there is none.
func (w *Writer) Delete(ctx context.Context, key Key) error {
	kv, err := w.open(ctx)
	if err != nil {
		return err
	}
	for range tries {
		entry, err := kv.Get(ctx, string(key))
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("remove %s: %w", key, err)
		}
		err = kv.Delete(ctx, string(key), jetstream.LastRevision(entry.Revision()))
		if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			continue
		}
		if err != nil {
			return fmt.Errorf("remove %s: %w", key, err)
		}
		return nil
	}
	return fmt.Errorf("remove %s: %w", key, ErrContended)
}

// DeleteAt removes the entry of key if it still is the one of the revision.
func (w *Writer) DeleteAt(ctx context.Context, key Key, revision uint64) error {
	kv, err := w.open(ctx)
	if err != nil {
		return err
	}
	if err := kv.Delete(ctx, string(key), jetstream.LastRevision(revision)); err != nil {
		return fmt.Errorf("remove %s of revision %d: %w", key, revision, err)
	}
	return nil
}

// Revision asks the server for the revision of key's entry; zero: none.
func (w *Writer) Revision(ctx context.Context, key Key) (uint64, error) {
	kv, err := w.open(ctx)
	if err != nil {
		return 0, err
	}
	entry, err := kv.Get(ctx, string(key))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", key, err)
	}
	return entry.Revision(), nil
}

// EnsureGeneration gives the log a generation if it has none. Whoever is first
// decides; all others find it.
func (w *Writer) EnsureGeneration(ctx context.Context, now time.Time) error {
	kv, err := w.open(ctx)
	if err != nil {
		return err
	}
	_, err = kv.Create(ctx, string(GenerationKey), formatGeneration(now))
	if err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
		return fmt.Errorf("begin a generation: %w", err)
	}
	return nil
}

// NewGeneration begins another generation: every node gets a complete state,
// never a difference. It is for a log that has lost its tail. The generation is
// later than the log's and than after, whatever the clock says: nodes refuse an
// earlier one for ever.
func (w *Writer) NewGeneration(ctx context.Context, now time.Time, after uint64) error {
	kv, err := w.open(ctx)
	if err != nil {
		return err
	}
	entry, err := kv.Get(ctx, string(GenerationKey))
	if err != nil {
		return fmt.Errorf("begin another generation: %w", err)
	}
	if old, err := strconv.ParseUint(string(entry.Value()), 10, 64); err == nil {
		after = max(after, old)
	}
	next := formatGeneration(now)
	if uint64(now.UnixNano()) <= after {
		next = strconv.AppendUint(nil, after+1, 10)
	}
	if _, err := kv.Update(ctx, string(GenerationKey), next, entry.Revision()); err != nil {
		return fmt.Errorf("begin another generation: %w", err)
	}
	return nil
}

// PoliciesCopied writes down that all policies of the source were written in the
// generation, unless that is known.
func (w *Writer) PoliciesCopied(ctx context.Context, generation uint64) error {
	kv, err := w.open(ctx)
	if err != nil {
		return err
	}
	text := strconv.AppendUint(nil, generation, 10)
	entry, err := kv.Get(ctx, string(CopiedPoliciesKey))
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		_, err = kv.Create(ctx, string(CopiedPoliciesKey), text)
	case err == nil && string(entry.Value()) != string(text):
		_, err = kv.Update(ctx, string(CopiedPoliciesKey), text, entry.Revision())
	}
	if err != nil {
		return fmt.Errorf("write down that the policies are in the log: %w", err)
	}
	return nil
}

func formatGeneration(now time.Time) []byte {
	return strconv.AppendUint(nil, uint64(now.UnixNano()), 10)
}
