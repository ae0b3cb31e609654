package source_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"weir.dev/weir/internal/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// decode reads lines "Kind/namespace/name value"; a value "bad" refuses the
// object, a line that is not of this form refuses itself.
func decode(file string, data []byte) (objects []source.Object, refused []source.Refused) {
	for i, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		name, value, ok := strings.Cut(line, " ")
		parts := strings.Split(name, "/")
		if !ok || len(parts) != 3 {
			refused = append(refused, source.Refused{File: file, Line: i + 1, Reason: "not an object"})
			continue
		}
		k := source.Key{Kind: parts[0], Namespace: parts[1], Name: parts[2]}
		if value == "bad" {
			refused = append(refused, source.Refused{Key: k, File: file, Line: i + 1, Reason: "bad value"})
			continue
		}
		objects = append(objects, source.Object{
			Key: k, File: file, Line: i + 1,
			JSON: fmt.Appendf(nil, `{"metadata":{"resourceVersion":"7"},"spec":%q}`, value),
		})
	}
	return objects, refused
}

type folder struct {
	t     *testing.T
	dir   string
	store *source.Store
}

// watch starts a source of one folder, which need not be there.
func watch(t *testing.T, dir string) *folder {
	t.Helper()
	f := &folder{t: t, dir: dir, store: source.NewStore()}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	m := source.NewManifests([]string{dir}, decode, slog.New(slog.DiscardHandler))
	go func() { done <- m.Run(ctx, f.store.Apply) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *folder) write(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *folder) remove(name string) {
	f.t.Helper()
	if err := os.Remove(filepath.Join(f.dir, name)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *folder) path(name string) string { return filepath.Join(f.dir, name) }

// state is what the store says of kind P, as text: "name=value@file:line".
func (f *folder) state() []string {
	out := []string{}
	for _, o := range f.store.List("P") {
		_, spec, _ := strings.Cut(string(o.JSON), `"spec":`)
		out = append(out, fmt.Sprintf("%s=%s@%s:%d", o.Name, strings.Trim(spec, `"}`), filepath.Base(o.File), o.Line))
	}
	return out
}

// want waits until the store says what is wanted.
func (f *folder) want(what string, want ...string) {
	f.t.Helper()
	if want == nil {
		want = []string{}
	}
	f.await(what, func() string { return cmp.Diff(want, f.state()) })
}

func (f *folder) await(what string, diff func() string) {
	f.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		changed := f.store.Changed()
		d := diff()
		if d == "" {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			f.t.Fatalf("%s (-want +got):\n%s", what, d)
		}
	}
}

func (f *folder) awaitRefused(what string, parts ...string) {
	f.t.Helper()
	f.await(what, func() string {
		for _, r := range f.store.Refused() {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(fmt.Sprint(r), p) }) {
				return ""
			}
		}
		return fmt.Sprintf("refused %v, want one with %q", f.store.Refused(), parts)
	})
}

func TestFolderIsFollowed(t *testing.T) {
	f := watch(t, t.TempDir())
	f.want("an empty folder")
	f.write("a.yaml", "P/default/one 1\nP/default/two 2\n")
	f.want("a new file", "one=1@a.yaml:1", "two=2@a.yaml:2")
	f.write("b.json", "P/default/three 3\n")
	f.write("c.txt", "P/default/four 4\n")
	f.write(".d.yaml", "P/default/five 5\n")
	f.want("only manifests count", "one=1@a.yaml:1", "three=3@b.json:1", "two=2@a.yaml:2")
	f.write("a.yaml", "P/default/two 2b\n")
	f.want("a changed file", "three=3@b.json:1", "two=2b@a.yaml:1")
	f.remove("b.json")
	f.want("a removed file", "two=2b@a.yaml:1")
	if o, ok := f.store.Get(source.Key{Kind: "P", Namespace: "default", Name: "two"}); !ok || o.ResourceVersion != "7" {
		t.Errorf("resource version: got %q, %v, want 7", o.ResourceVersion, ok)
	}
}

func TestSameObjectInTwoFiles(t *testing.T) {
	f := watch(t, t.TempDir())
	f.write("z.yaml", "P/default/one old\n")
	f.want("the first file", "one=old@z.yaml:1")
	f.write("a.yaml", "P/default/one new\nP/default/two 2\n")
	f.want("the older stays", "one=old@z.yaml:1", "two=2@a.yaml:2")
	f.awaitRefused("the newer is refused with both paths", f.path("a.yaml"), f.path("z.yaml"))
	f.write("z.yaml", "P/default/one old2\n") // newer by time, but it is what is in force
	f.want("what is in force keeps its place", "one=old2@z.yaml:1", "two=2@a.yaml:2")
	f.remove("z.yaml")
	f.want("the other takes its place", "one=new@a.yaml:1", "two=2@a.yaml:2")
	if r := f.store.Refused(); len(r) != 0 {
		t.Errorf("still refused: %v", r)
	}
}

func TestBadDocumentRefusesItself(t *testing.T) {
	f := watch(t, t.TempDir())
	f.write("a.yaml", "P/default/one 1\nP/default/two 2\n")
	f.want("two objects", "one=1@a.yaml:1", "two=2@a.yaml:2")
	f.write("a.yaml", "P/default/one bad\nP/default/two 2b\nP/default/three bad\n")
	f.want("what was good stays as it was, the rest of the file changes", "one=1@a.yaml:1", "two=2b@a.yaml:2")
	f.awaitRefused("the bad version is told", "P/default/one", f.path("a.yaml"), "stays in force")
	f.awaitRefused("so is the new bad object", "P/default/three", "bad value")
	f.write("a.yaml", "P/default/two 2b\n???\n")
	f.want("a document that cannot be read may be the missing one", "one=1@a.yaml:1", "two=2b@a.yaml:1")
	gone := source.Key{Kind: "P", Namespace: "default", Name: "never seen"}
	if f.store.Gone(gone, f.path("a.yaml")) || !f.store.Gone(gone, f.path("b.yaml")) {
		t.Error("only what stood in the file of the bad document may still be there")
	}
	f.write("a.yaml", "P/default/two 2b\n")
	f.want("it is gone when all can be read", "two=2b@a.yaml:1")
}

func TestS6NotSyncedIsNotEmpty(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "manifests")
	f := watch(t, dir)
	unsynced := func(what, part string) {
		t.Helper()
		f.await(what, func() string {
			if got := strings.Join(f.store.Unsynced(), "\n"); !strings.Contains(got, part) || part == "" && got != "" {
				return fmt.Sprintf("unsynced %q, want %q", got, part)
			}
			return ""
		})
	}
	unsynced("a folder that is not there", "no such file")
	if f.store.Gone(source.Key{Kind: "P", Name: "x"}, "") {
		t.Error("an object is taken for gone while the folder cannot be read")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f.write("a.yaml", "P/default/one 1\n")
	f.write("b.yaml", "P/default/two 2\n")
	f.want("the folder has come", "one=1@a.yaml:1", "two=2@b.yaml:1")
	unsynced("the folder has come", "")

	f.write("a.yaml", "") // as a writer leaves it for a moment
	unsynced("a file that is half written", "is being written")
	f.remove("b.yaml")
	f.write("c.yaml", "P/default/three 3\n")
	f.want("nothing is deleted meanwhile", "one=1@a.yaml:1", "three=3@c.yaml:1", "two=2@b.yaml:1")
	f.write("a.yaml", "P/default/one 1b\n")
	f.want("all is read again", "one=1b@a.yaml:1", "three=3@c.yaml:1")

	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	unsynced("the folder is taken away", "no such file")
	f.want("nothing is deleted", "one=1b@a.yaml:1", "three=3@c.yaml:1")
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	f.remove("c.yaml")
	f.want("the folder is back without one file", "one=1b@a.yaml:1")
}
