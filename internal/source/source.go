// Package source tells what objects there are: the small interface that
// identity and policy read from, and the source of the embedded installation,
// folders of ordinary Kubernetes YAML.
//
// A source never takes "I could not read it" for "it is not there": it deletes
// only after a complete list. An object that was good and became bad stays as
// it was, and is told among the refused.
//
// It imports fsnotify and logkey, and no Kubernetes types: what decodes a file
// is handed in. A Store is safe for concurrent use; a source calls back from
// the one goroutine that Run is called in.
package source

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// Key names an object in its cluster.
type Key struct{ Kind, Namespace, Name string }

func (k Key) String() string {
	switch {
	case k.Kind == "":
		return "document"
	case k.Namespace == "":
		return k.Kind + "/" + k.Name
	}
	return k.Kind + "/" + k.Namespace + "/" + k.Name
}

// named tells whether the key names an object.
func (k Key) named() bool { return k.Kind != "" && k.Name != "" }

// An Object is one decoded object.
type Object struct {
	Key
	// ResourceVersion of the object in its source; empty: it has no order.
	ResourceVersion string
	File            string // empty: the source has no files
	Line            int    // from 1
	JSON            []byte // equal objects have equal JSON
	Lines           map[string]int
	Value           any // what the decoder made of it; never written to
}

func (o Object) equal(p Object) bool {
	return o.Key == p.Key && o.ResourceVersion == p.ResourceVersion && o.File == p.File && o.Line == p.Line &&
		bytes.Equal(o.JSON, p.JSON) && maps.Equal(o.Lines, p.Lines)
}

// Refused is a document that has no effect, and why.
type Refused struct {
	Key    // as far as it could be read
	File   string
	Line   int
	Reason string
}

func (r Refused) String() string {
	return fmt.Sprintf("%s:%d: %s: %s", r.File, r.Line, r.Key, r.Reason)
}

// Decode reads the documents of a file.
type Decode func(file string, data []byte) ([]Object, []Refused)

// A Batch is what changed, and how the source is now.
type Batch struct {
	Upserts []Object
	Deletes []Key
	Refused []Refused // all that are refused now, sorted by file and line
	// Unsynced is what cannot be read now, and why. While there is any, nothing
	// is deleted, and what is missing is not known to be gone.
	Unsynced []string
}

// A Source feeds sink until ctx ends. The first batch comes when the source has
// been listed once, or could not be.
type Source interface {
	Run(ctx context.Context, sink func(Batch)) error
}

// Store holds what a source has told so far. It must be made by NewStore.
type Store struct {
	mu       sync.RWMutex
	objects  map[string]map[Key]Object // by kind
	refused  []Refused
	unsynced []string
	listed   bool
	changed  chan struct{}
}

// NewStore returns a store of a source that has told nothing: it is not synced.
func NewStore() *Store {
	return &Store{objects: map[string]map[Key]Object{}, changed: make(chan struct{})}
}

// Apply takes a batch in.
func (s *Store) Apply(b Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range b.Upserts {
		if s.objects[o.Kind] == nil {
			s.objects[o.Kind] = map[Key]Object{}
		}
		s.objects[o.Kind][o.Key] = o
	}
	for _, k := range b.Deletes {
		delete(s.objects[k.Kind], k)
	}
	s.refused, s.unsynced, s.listed = b.Refused, b.Unsynced, true
	close(s.changed)
	s.changed = make(chan struct{})
}

// Get returns the object of the key.
func (s *Store) Get(k Key) (Object, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	o, ok := s.objects[k.Kind][k]
	return o, ok
}

// List returns all objects of a kind, sorted by namespace and name.
func (s *Store) List(kind string) []Object {
	s.mu.RLock()
	out := slices.Collect(maps.Values(s.objects[kind]))
	s.mu.RUnlock()
	slices.SortFunc(out, func(a, b Object) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// Refused returns what is refused now.
func (s *Store) Refused() []Refused {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.refused)
}

// Unsynced tells what cannot be read now. It is never empty before the source
// has been listed.
func (s *Store) Unsynced() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.listed {
		return []string{"the source has not been listed yet"}
	}
	return slices.Clone(s.unsynced)
}

// Gone tells whether an object that the store does not have, and that stood in
// file when it was last seen, is known to be gone: the list is complete, and no
// refused document is or may be the object.
func (s *Store) Gone(k Key, file string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if _, ok := s.objects[k.Kind][k]; ok || !s.listed || len(s.unsynced) > 0 {
		return false
	}
	return !slices.ContainsFunc(s.refused, func(r Refused) bool {
		return r.Key == k || !r.named() && r.File == file
	})
}

// Changed is closed at the next batch.
func (s *Store) Changed() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changed
}
