package statelog

import (
	"context"
	"log/slog"
	"strconv"

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
	// Copied tells that all policies of the source were written in this
	// generation.
	Copied bool
}

// Replay calls apply with all that the log holds and, from then on, with all
// that is written to it, until ctx ends. If the log is lost or replaced it
// begins again, with a Reset.
func Replay(ctx context.Context, open bus.Opener, log *slog.Logger, apply func(Batch)) {
	r := reader{log: log}
	bus.Follow(ctx, open, log, func(b bus.Batch) {
		if b.Reset {
			r.generation, r.copied = 0, 0
		}
		out := Batch{Reset: b.Reset, Revision: b.Head.Sequence, Complete: b.Complete}
		for _, e := range b.Entries {
			if ev, ok := r.read(e); ok {
				out.Events = append(out.Events, ev)
			}
		}
		out.Generation = r.generation
		out.Copied = r.generation != 0 && r.copied == r.generation
		apply(out)
	})
}

type reader struct {
	log        *slog.Logger
	generation uint64
	copied     uint64 // generation that has all policies; 0: none
}

// read turns an entry into an event. What cannot be read changes nothing: the
// object stays as it was.
func (r *reader) read(e bus.Entry) (Event, bool) {
	key := Key(e.Key)
	switch {
	case key.Kind() == 0:
		// Of a later version: it means nothing to this one.
		r.log.Warn("entry of the state log is of an unknown kind", logkey.Name, e.Key, logkey.Revision, e.Revision)
		return Event{}, false
	case key == GenerationKey:
		r.number(e, &r.generation)
		return Event{}, false
	case key.Kind() == Copied:
		if key == CopiedPoliciesKey {
			r.number(e, &r.copied)
		}
		return Event{}, false
	case e.Removed:
		return Event{Key: key, Revision: e.Revision}, true
	}
	m, err := decode(key, e.Value)
	if err != nil {
		r.log.Error("entry of the state log cannot be read", logkey.Revision, e.Revision, logkey.Error, err)
		return Event{}, false
	}
	return Event{Key: key, Revision: e.Revision, Value: m}, true
}

// number takes over a generation. One that cannot be read changes nothing, nor
// does its removal.
func (r *reader) number(e bus.Entry, into *uint64) {
	if e.Removed {
		return
	}
	g, err := strconv.ParseUint(string(e.Value), 10, 64)
	if err != nil {
		r.log.Error("generation of the state log cannot be read", logkey.Name, e.Key, logkey.Error, err)
		return
	}
	*into = g
}
