package addressclient

import (
	"maps"
	"net/netip"
	"time"

	"weir.dev/weir/services/enforcer/internal/desired"
)

// head is the end of the address stream, and which stream it is.
type head struct {
	sequence uint64
	created  int64 // nanoseconds since 1970; a stream made anew has a later one
}

// event is one write of the stream: a record, or none for a removal.
type event struct {
	sequence uint64
	addr     netip.Addr
	record   *desired.Record
}

// entry is what is known of an address; a removed one is kept until a snapshot
// that is not older, so that it does not come back.
type entry struct {
	sequence uint64 // 0: of a stream that is gone
	record   *desired.Record
}

// store keeps the records and knows whether it has missed any. It is not safe
// for concurrent use.
type store struct {
	complete bool  // a snapshot has been taken in
	created  int64 // of the stream; 0: not known yet
	entries  map[netip.Addr]entry
	// Every write up to seen has been taken in, and those in ahead.
	seen  uint64
	ahead map[uint64]bool
	// suspect is a head that was announced and not yet reached.
	suspect uint64
	// Records of a stream that is gone stay until then: every node registers its
	// pods anew.
	until time.Time
	// missed says that a head showed writes which no later one will show again.
	missed bool
}

func newStore() *store {
	return &store{entries: map[netip.Addr]entry{}, ahead: map[uint64]bool{}}
}

// take takes an event in. It reports whether the records changed.
func (s *store) take(e event) bool {
	if e.sequence > s.seen {
		s.ahead[e.sequence] = true
		s.advance()
	}
	return s.put(e)
}

func (s *store) put(e event) bool {
	old := s.entries[e.addr]
	if old.sequence >= e.sequence {
		return false
	}
	s.entries[e.addr] = entry{e.sequence, e.record}
	switch {
	case old.record == nil && e.record == nil:
		return false
	case old.record == nil || e.record == nil:
		return true
	}
	return *old.record != *e.record
}

func (s *store) advance() {
	for s.ahead[s.seen+1] {
		s.seen++
		delete(s.ahead, s.seen)
	}
}

// gap reports whether writes are known to be missing, so that a snapshot is needed.
func (s *store) gap() bool { return len(s.ahead) > 0 || !s.complete || s.missed }

// announce takes note of a head: of another stream, or of writes that should
// have come since the head before it.
func (s *store) announce(h head) {
	if h.created != s.created {
		s.missed = s.missed || h.created > s.created
		return
	}
	s.missed = s.missed || s.suspect > s.seen
	s.suspect = h.sequence
}

// renewal is how long the records of a stream that is gone are kept.
const renewal = 30 * time.Second

// snapshot takes a complete snapshot in: what it does not have is removed,
// unless an event that is newer says otherwise, or the stream began anew just
// now. A snapshot of an older stream is refused. It reports whether the records
// changed and whether it was used.
func (s *store) snapshot(records []desired.Record, h head, now time.Time) (changed, used bool) {
	if h.created < s.created {
		return false, false
	}
	if h.created > s.created && s.created != 0 {
		s.reset()
		s.until = now.Add(renewal)
	}
	s.created = h.created
	named := make(map[netip.Addr]bool, len(records))
	for _, r := range records {
		named[r.Addr] = true
		changed = s.put(event{h.sequence, r.Addr, &r}) || changed
	}
	for addr, e := range s.entries {
		if e.sequence == 0 && now.Before(s.until) {
			continue
		}
		if !named[addr] && e.sequence <= h.sequence {
			delete(s.entries, addr)
			changed = changed || e.record != nil
		}
	}
	s.complete, s.missed = true, s.suspect > max(s.seen, h.sequence)
	if h.sequence > s.seen {
		s.seen = h.sequence
		maps.DeleteFunc(s.ahead, func(n uint64, _ bool) bool { return n <= h.sequence })
	}
	s.advance()
	return changed, true
}

// reset begins another stream, whose sequences say nothing about the old ones.
// Records of the old one stay until the snapshot is in.
func (s *store) reset() {
	s.seen, s.suspect = 0, 0
	s.ahead = map[uint64]bool{}
	for addr, e := range s.entries {
		s.entries[addr] = entry{0, e.record}
	}
}

// records is a copy of all records.
func (s *store) records() map[netip.Addr]desired.Record {
	out := make(map[netip.Addr]desired.Record, len(s.entries))
	for addr, e := range s.entries {
		if e.record != nil {
			out[addr] = *e.record
		}
	}
	return out
}
