package handover

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pair(t *testing.T) (*Conn, *Conn) {
	t.Helper()
	a, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	b, err := FromFile(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(a.Close(), b.Close()); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return a, b
}

func TestFilesArriveOpen(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	want := Message{Kind: Offer, Files: []File{Word, CtTCP}}
	if err := a.Send(want, r.Fd(), w.Fd()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	got, files, err := b.Receive()
	if err != nil {
		t.Fatal(err)
	}
	defer CloseAll(files)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("message (-want +got):\n%s", d)
	}
	if _, err := files[1].WriteString("x"); err != nil {
		t.Fatal(err)
	}
	if n, err := files[0].Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("read from the passed pipe: %d, %v", n, err)
	}
}

func TestMostFiles(t *testing.T) {
	a, b := pair(t)
	fds := make([]uintptr, MaxFiles)
	for i := range fds {
		fds[i] = os.Stderr.Fd()
	}
	if err := a.Send(Message{Kind: Sockets, Namespace: In, Family: 4}, fds...); err != nil {
		t.Fatal(err)
	}
	_, files, err := b.Receive()
	if err != nil || len(files) != MaxFiles {
		t.Fatalf("%d files, %v, want %d", len(files), err, MaxFiles)
	}
	CloseAll(files)
	if err := a.Send(Message{Kind: Sockets}, append(fds, fds[0])...); err == nil {
		t.Error("more files than a message can carry are sent")
	}
}

func TestOfferWithoutItsFiles(t *testing.T) {
	a, b := pair(t)
	if err := a.Send(Message{Kind: Offer, Files: []File{Word}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Receive(); !errors.Is(err, ErrFiles) {
		t.Errorf("Receive: %v, want ErrFiles", err)
	}
}

func TestEndOfThePeer(t *testing.T) {
	a, b := pair(t)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("Receive: %v, want EOF", err)
	}
}

func TestListenAndDial(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "handover.sock")
	for range 2 { // the second takes the place of the first
		ln, err := Listen(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		ln.SetUnlinkOnClose(false)
		c, err := Dial(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("stat: %v, %v, want mode 0600", fi, err)
		}
		if err := errors.Join(c.Close(), ln.Close()); err != nil {
			t.Error(err)
		}
	}
}
