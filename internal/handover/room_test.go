package handover

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A process that has no room for all files of a message keeps the sockets that
// fitted, loses other messages, and goes on receiving.
func TestNoRoomForFiles(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fds := []uintptr{r.Fd(), w.Fd(), r.Fd(), w.Fd(), r.Fd(), w.Fd()}
	for _, m := range []struct {
		Message
		files []uintptr
	}{{Message{Kind: Sockets, Namespace: In, Family: 4}, fds}, {Message{Kind: Connection}, fds[:2]}, {Message{Kind: Retire}, nil}} {
		if err := a.Send(m.Message, m.files...); err != nil {
			t.Fatal(err)
		}
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	limit := func(cur uint64) {
		t.Helper()
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: cur, Max: old.Max}); err != nil {
			t.Fatal(err)
		}
	}
	free, err := unix.Dup(int(r.Fd())) // the lowest number that is free
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(free); err != nil {
		t.Fatal(err)
	}
	limit(uint64(free) + 2)
	defer limit(old.Cur)
	m, files, err := b.Receive()
	if m.Kind != Sockets || len(files) == 0 || len(files) >= len(fds) || err != nil {
		t.Errorf("sockets: %v with %d files, %v; want a few", m, len(files), err)
	}
	limit(uint64(free))
	if m, _, err := b.Receive(); m.Kind != Connection || !errors.Is(err, ErrFiles) {
		t.Errorf("connection: %v, %v; want %v", m, err, ErrFiles)
	}
	if m, _, err := b.Receive(); m.Kind != Retire || err != nil {
		t.Errorf("then: %v, %v", m, err)
	}
	limit(old.Cur)
	CloseAll(append(files, r, w))
}
