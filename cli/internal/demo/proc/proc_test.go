package proc

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weir.dev/weir/internal/netns"
	"weir.dev/weir/internal/server"
)

func TestMain(m *testing.M) {
	if netns.IsHolder() {
		os.Exit(netns.Hold())
	}
	goleak.VerifyTestMain(m)
}

// shell is a process that runs a script in a space of its own.
func shell(t *testing.T, script string) *Process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	space, err := netns.Start(t.Context(), exe, nil, netns.Setup{})
	if err != nil {
		t.Fatal(err)
	}
	p := New(Spec{Name: "shell", Path: "/bin/sh", Args: []string{"-c", script}, Env: []string{"PATH=/bin:/usr/bin"}, Space: space, Dir: t.TempDir()})
	t.Cleanup(func() {
		if p.Status().State == Running {
			if err := p.Kill(); err != nil {
				t.Error(err)
			}
		}
		if err := space.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestAProcessIsStoppedKilledAndStartedAgain(t *testing.T) {
	p := shell(t, "echo begun; exec sleep 60")
	if err := p.Stop(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("stop before start: %v", err)
	}
	for _, c := range []struct {
		end  func() error
		want string
	}{{func() error { return p.Stop(t.Context()) }, Stopped}, {p.Kill, Killed}} {
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		if err := p.Start(); !errors.Is(err, ErrRunning) {
			t.Errorf("start twice: %v", err)
		}
		if s := p.Status(); s.State != Running || s.PID == 0 {
			t.Errorf("started: %+v", s)
		}
		if err := c.end(); err != nil {
			t.Fatal(err)
		}
		if s := p.Status(); s.State != c.want || s.PID != 0 {
			t.Errorf("ended: %+v, want %s", s, c.want)
		}
	}
}

func TestAnEndByItselfIsTold(t *testing.T) {
	p := shell(t, "echo last words; exit 3")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	<-p.Ended()
	if s := p.Status(); s.State != Exited || !strings.Contains(s.Detail, "3") {
		t.Errorf("status %+v, want exited with 3", s)
	}
	text, err := os.ReadFile(filepath.Join(p.spec.Dir, "log"))
	if err != nil || string(text) != "last words\n" {
		t.Errorf("log %q, %v", text, err)
	}
	if err := AwaitReady(t.Context(), p, filepath.Join(t.TempDir(), "none.sock")); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("await ready: %v, want that it has ended", err)
	}
}

func TestAwaitReadyWaitsForTheAnswer(t *testing.T) {
	p := shell(t, "exec sleep 60")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	lis, err := server.ListenUnix(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked < 3 {
			http.Error(w, "[-] log replayed: 3 of 5", http.StatusServiceUnavailable)
		}
	})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := AwaitReady(ctx, p, socket); err != nil || asked != 3 {
		t.Errorf("await ready: %v after %d questions", err, asked)
	}
	asked = -1 << 30
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := AwaitReady(short, p, socket); err == nil || !strings.Contains(err.Error(), "3 of 5") {
		t.Errorf("await ready: %v, want what it says", err)
	}
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	<-done
}
