// Package control is how weir demo's commands talk to a running demo: HTTP on a
// unix socket in its state folder, 0600. It imports proc and parts.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"

	"golang.org/x/sys/unix"

	"weir.dev/weir/cli/internal/demo/proc"
	"weir.dev/weir/cli/internal/parts"
)

// Actions on a part.
const (
	Start   = "start"
	Stop    = "stop"
	Kill    = "kill"
	Restart = "restart"
)

// Demo is what a running demo offers.
type Demo interface {
	List() []proc.Status
	Act(ctx context.Context, part, action string) error
	// DeletePod ends a pod; if it belongs to something, another takes its place.
	DeletePod(ctx context.Context, namespace, name string) error
	// Down begins the demo's end and returns at once.
	Down()
}

// ErrUnknown says that there is no such part or action.
var ErrUnknown = errors.New("unknown")

// Socket is the path of a demo's control socket.
func Socket(d parts.Demo) string { return filepath.Join(d.Sockets(), "demo.sock") }

// Handler serves the demo.
func Handler(d Demo) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/parts", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, d.List())
	})
	mux.HandleFunc("POST /v1/parts/{part}/{action}", func(w http.ResponseWriter, r *http.Request) {
		done(w, d.Act(r.Context(), r.PathValue("part"), r.PathValue("action")))
	})
	mux.HandleFunc("DELETE /v1/pods/{namespace}/{name}", func(w http.ResponseWriter, r *http.Request) {
		done(w, d.DeletePod(r.Context(), r.PathValue("namespace"), r.PathValue("name")))
	})
	mux.HandleFunc("POST /v1/down", func(w http.ResponseWriter, _ *http.Request) {
		d.Down()
		answer(w, struct{}{})
	})
	return mux
}

func done(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, ErrUnknown):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusConflict)
	default:
		answer(w, struct{}{})
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}

// Client calls a running demo.
type Client struct {
	demo string
	http *http.Client
}

// NewClient is a client of the demo; nothing is connected yet.
func NewClient(d parts.Demo) *Client {
	return &Client{demo: d.Name, http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", Socket(d))
		},
	}}}
}

// List tells how the parts are.
func (c *Client) List(ctx context.Context) ([]proc.Status, error) {
	var out []proc.Status
	return out, c.call(ctx, http.MethodGet, "/v1/parts", &out)
}

// Act does something to a part.
func (c *Client) Act(ctx context.Context, part, action string) error {
	return c.call(ctx, http.MethodPost, "/v1/parts/"+part+"/"+action, &struct{}{})
}

// DeletePod ends a pod.
func (c *Client) DeletePod(ctx context.Context, namespace, name string) error {
	return c.call(ctx, http.MethodDelete, "/v1/pods/"+namespace+"/"+name, &struct{}{})
}

// Down begins the demo's end.
func (c *Client) Down(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/down", &struct{}{})
}

func (c *Client) call(ctx context.Context, method, path string, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://demo"+path, nil)
	if err != nil {
		return fmt.Errorf("call the demo: %w", err)
	}
	resp, err := c.http.Do(req)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("demo %q: its own process is gone (%w); clear what it left with: weir demo down --name %s", c.demo, err, c.demo)
	}
	if err != nil {
		return fmt.Errorf("call the demo: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("read the demo's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(string(bytes.TrimSpace(text)))
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("read the demo's answer: %w", err)
	}
	return nil
}
