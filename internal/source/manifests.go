package source

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"weir.dev/weir/internal/logkey"
)

// How long a folder is left to settle after a change, at most; and how often it
// is looked at without one, in case a change was not told.
const (
	settle      = 40 * time.Millisecond
	settleLimit = 400 * time.Millisecond
	lookEvery   = 5 * time.Second
	lookAgain   = 250 * time.Millisecond // something could not be read
)

// Manifests is a source of files: *.yaml, *.yml and *.json in folders that are
// watched. Files and folders whose names begin with a dot are left alone.
type Manifests struct {
	folders []string
	decode  Decode
	log     *slog.Logger

	files   map[string]file
	inForce map[Key]Object
	told    bool
	last    Batch // its Refused and Unsynced were told
}

// NewManifests returns a source of the folders. They need not be there yet.
func NewManifests(folders []string, decode Decode, log *slog.Logger) *Manifests {
	return &Manifests{
		folders: folders, decode: decode, log: log,
		files: map[string]file{}, inForce: map[Key]Object{},
	}
}

// file is what a file said when it was last read whole.
type file struct {
	stamp   stamp
	objects []Object
	refused []Refused
}

// stamp tells one content of a file from another.
type stamp struct {
	modified time.Time
	size     int64
	inode    uint64
}

func stampOf(fi fs.FileInfo) stamp {
	return stamp{modified: fi.ModTime(), size: fi.Size(), inode: inode(fi)}
}

// Run tells what the folders say, and what changes in them, until ctx ends.
func (m *Manifests) Run(ctx context.Context, sink func(Batch)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch folders: %w", err)
	}
	defer func() { _ = w.Close() }()
	for {
		m.watch(w)
		b := m.scan()
		if changes(b, m.last) || !m.told {
			m.told, m.last = true, b
			sink(b)
		}
		wait := lookEvery
		if len(b.Unsynced) > 0 {
			wait = lookAgain
		}
		if err := awaitChange(ctx, w, wait); err != nil {
			return nil // ctx has ended
		}
	}
}

// watch adds the folders that are there. Adding one twice is nothing.
func (m *Manifests) watch(w *fsnotify.Watcher) {
	for _, dir := range m.folders {
		if err := w.Add(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.log.Warn("folder cannot be watched; it is read from time to time", logkey.Path, dir, logkey.Error, err)
		}
	}
}

// awaitChange returns when something changed and then was quiet for a moment,
// or when wait is over. It is an error only if ctx ended.
func awaitChange(ctx context.Context, w *fsnotify.Watcher, wait time.Duration) error {
	quiet := time.NewTimer(wait)
	defer quiet.Stop()
	var limit <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.Events:
			quiet.Reset(settle)
			if limit == nil {
				t := time.NewTimer(settleLimit)
				defer t.Stop()
				limit = t.C
			}
		case <-w.Errors: // an overflow: look at once
			return nil
		case <-quiet.C:
			return nil
		case <-limit:
			return nil
		}
	}
}

func changes(b, last Batch) bool {
	return len(b.Upserts) > 0 || len(b.Deletes) > 0 ||
		!slices.Equal(b.Refused, last.Refused) || !slices.Equal(b.Unsynced, last.Unsynced)
}

// scan reads what changed and compares it with what is in force.
func (m *Manifests) scan() Batch {
	var b Batch
	seen := map[string]bool{}
	unread := func(path string, err error) {
		b.Unsynced = append(b.Unsynced, fmt.Sprintf("%s: %v", path, err))
	}
	for _, dir := range m.folders {
		entries, err := os.ReadDir(dir)
		if err != nil {
			unread(dir, err)
			for path := range m.files {
				seen[path] = seen[path] || filepath.Dir(path) == filepath.Clean(dir)
			}
			continue
		}
		for _, e := range entries {
			if e.IsDir() || !isManifest(e.Name()) {
				continue
			}
			path := filepath.Join(dir, e.Name())
			seen[path] = true
			if err := m.read(path); err != nil {
				unread(path, err)
			}
		}
	}
	for path := range m.files {
		if !seen[path] {
			delete(m.files, path)
		}
	}
	m.merge(&b)
	return b
}

func isManifest(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(name, ".")
	}
	return false
}

// errHalfWritten reports a file that is being written; what it said stays.
var errHalfWritten = errors.New("is being written")

// read reads a file if it is not the one that was read. An error leaves what
// the file said.
func (m *Manifests) read(path string) error {
	before, err := os.Stat(path)
	if err != nil {
		return err
	}
	old, known := m.files[path]
	if known && old.stamp == stampOf(before) {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	after, err := os.Stat(path)
	if err != nil {
		return err
	}
	if stampOf(before) != stampOf(after) || int64(len(text)) != after.Size() {
		return errHalfWritten
	}
	if len(bytes.TrimSpace(text)) == 0 && len(old.objects) > 0 {
		return fmt.Errorf("%w: it is empty; remove it to delete what it said", errHalfWritten)
	}
	f := file{stamp: stampOf(after)}
	f.objects, f.refused = m.decode(path, text)
	for i := range f.objects {
		f.objects[i].ResourceVersion = resourceVersion(f.objects[i].JSON)
	}
	m.files[path] = f
	return nil
}

func resourceVersion(text []byte) string {
	var h struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	if json.Unmarshal(text, &h) != nil {
		return ""
	}
	return h.Metadata.ResourceVersion
}

// merge puts the files together and fills in what changed.
func (m *Manifests) merge(b *Batch) {
	next := m.choose(b)
	for k, old := range m.inForce {
		if _, ok := next[k]; ok {
			continue
		}
		if m.mayBeThere(old, b) {
			next[k] = old
			continue
		}
		b.Deletes = append(b.Deletes, k)
	}
	for k, o := range next {
		if old, ok := m.inForce[k]; !ok || !old.equal(o) {
			b.Upserts = append(b.Upserts, o)
		}
	}
	m.inForce = next
	for i, r := range b.Refused {
		if o, ok := next[r.Key]; ok && o.File == r.File && r.named() {
			b.Refused[i].Reason += "; what it said before stays in force"
		}
	}
	slices.SortFunc(b.Upserts, func(x, y Object) int { return compareKeys(x.Key, y.Key) })
	slices.SortFunc(b.Deletes, compareKeys)
	slices.SortFunc(b.Refused, func(x, y Refused) int {
		return cmp.Or(cmp.Compare(x.File, y.File), cmp.Compare(x.Line, y.Line), compareKeys(x.Key, y.Key))
	})
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// choose takes one object of each key, and refuses the others: what is in force
// stays; else the older file wins, by time, then by path. All that files
// refuse is refused.
func (m *Manifests) choose(b *Batch) map[Key]Object {
	paths := make([]string, 0, len(m.files))
	for p := range m.files {
		paths = append(paths, p)
	}
	slices.SortFunc(paths, func(a, b string) int {
		return cmp.Or(m.files[a].stamp.modified.Compare(m.files[b].stamp.modified), cmp.Compare(a, b))
	})
	next := map[Key]Object{}
	// An object whose document went bad keeps its place.
	for _, p := range paths {
		for _, r := range m.files[p].refused {
			b.Refused = append(b.Refused, r)
			if old, ok := m.inForce[r.Key]; ok && r.named() && old.File == p {
				next[r.Key] = old
			}
		}
	}
	for _, p := range paths {
		for _, o := range m.files[p].objects {
			if old, ok := m.inForce[o.Key]; ok && old.File == p {
				if cur, ok := next[o.Key]; !ok || cur.File != p {
					next[o.Key] = o
				}
			}
		}
	}
	for _, p := range paths {
		for _, o := range m.files[p].objects {
			cur, ok := next[o.Key]
			if !ok {
				next[o.Key] = o
				continue
			}
			if cur.File == o.File && cur.Line == o.Line {
				continue
			}
			b.Refused = append(b.Refused, Refused{
				Key: o.Key, File: o.File, Line: o.Line,
				Reason: fmt.Sprintf("%s is also in %s:%d, which stays in force: remove it from %s:%d",
					o.Key, cur.File, cur.Line, o.File, o.Line),
			})
		}
	}
	return next
}

// mayBeThere tells whether an object that no file says any more may still be
// meant: something could not be read, or its file has a document that cannot.
func (m *Manifests) mayBeThere(old Object, b *Batch) bool {
	if len(b.Unsynced) > 0 {
		return true
	}
	f, ok := m.files[old.File]
	return ok && slices.ContainsFunc(f.refused, func(r Refused) bool { return !r.named() })
}
