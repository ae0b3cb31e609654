package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
)

// A proxy gives its connections to the next: idle ones at once, the others when
// their exchange has ended, and with what the client has sent early served
// first. Their ends notice nothing.
func TestHandOver(t *testing.T) {
	arrived, answer := make(chan struct{}), make(chan struct{})
	old := behind(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/public/slow" {
			close(arrived)
			<-answer
		}
		fmt.Fprint(w, r.URL.Path)
	})
	next := behind(t, func(http.ResponseWriter, *http.Request) { t.Error("another server is asked") })
	var idle []*client
	for range 50 {
		c := old.dial()
		c.say(get("/public"))
		c.want(200, "/public")
		idle = append(idle, c)
	}
	busy := old.dial()
	busy.say(get("/public/slow") + get("/public/early"))
	<-arrived

	old.proxy.HandOver(to(next))
	waitFor(t, "idle connections are with the next proxy", func() bool { return next.proxy.Open() == len(idle) })
	for _, c := range idle {
		c.say(get("/public/a"))
		c.want(200, "/public/a")
		c.say(get("/private"))
		c.want(403, "Access denied")
	}
	close(answer)
	busy.want(200, "/public/slow")
	busy.want(200, "/public/early")
	waitFor(t, "the busy one too", func() bool { return next.proxy.Open() == len(idle)+1 })
	old.stop()
	busy.say(get("/public/b"))
	busy.want(200, "/public/b")
	if n := old.proxy.Open(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

// While connections are given away under load no request fails.
func TestHandOverUnderLoad(t *testing.T) {
	old := behind(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "done") })
	next := behind(t, func(http.ResponseWriter, *http.Request) { t.Error("another server is asked") })
	const conns, requests = 20, 40
	half := make(chan struct{}, conns)
	var clients sync.WaitGroup
	for range conns {
		c := old.dial()
		clients.Go(func() {
			for i := range requests {
				if i == requests/2 {
					half <- struct{}{}
				}
				if err := ask(c); err != nil {
					t.Errorf("request %d: %v", i, err)
					return
				}
			}
		})
	}
	for range conns / 2 {
		<-half
	}
	old.proxy.HandOver(to(next))
	clients.Wait()
	waitFor(t, "all are with the next proxy", func() bool { return old.proxy.Open() == 0 && next.proxy.Open() == conns })
}

func ask(c *client) error {
	if _, err := io.WriteString(c, get("/public")); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != 200 || resp.Close {
		return fmt.Errorf("%s, close %v", resp.Status, resp.Close)
	}
	return nil
}

// to gives connections to another proxy, as if that were another process.
func to(next *bench) func(Pair) error {
	return func(p Pair) error {
		client, err := dup(p.Client)
		if err != nil {
			return err
		}
		server, err := dup(p.Server)
		if err != nil {
			return err
		}
		next.proxy.Adopt(Pair{Direction: p.Direction, Client: client, Server: server})
		return nil
	}
}

func dup(c *net.TCPConn) (*net.TCPConn, error) {
	f, err := c.File()
	if err != nil {
		return nil, err
	}
	d, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return d.(*net.TCPConn), nil
}
