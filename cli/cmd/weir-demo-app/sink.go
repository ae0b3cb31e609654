package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// A fate is one line of sink's output: a connection that came, or one that ended.
type fate struct {
	At     time.Time `json:"at"`
	Client string    `json:"client"`
	Listen string    `json:"listen"`
	Ended  string    `json:"ended,omitempty"` // how; empty: it came
}

// runSink answers 200 to every request until stdin ends, and tells the fate of
// each connection.
func runSink(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	flags := flag.NewFlagSet("sink", flag.ContinueOnError)
	listen := flags.String("listen", ":9000", "addresses to listen on, with commas between them")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, in) // however it ends
		cancel()
	}()
	s := &sink{out: json.NewEncoder(out)}
	g, ctx := errgroup.WithContext(ctx)
	for addr := range strings.SplitSeq(*listen, ",") {
		lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		if err != nil {
			return fmt.Errorf("listen on %s: %w", addr, err)
		}
		g.Go(func() error { return s.serve(ctx, lis, addr) })
	}
	s.tell(fate{}) // all listen
	return g.Wait()
}

type sink struct {
	mu  sync.Mutex
	out *json.Encoder
}

func (s *sink) tell(f fate) {
	f.At = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.out.Encode(f) // nobody listens any more
}

func (s *sink) serve(ctx context.Context, lis net.Listener, addr string) error {
	stop := context.AfterFunc(ctx, func() { _ = lis.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := lis.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept on %s: %w", addr, err)
		}
		conns.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			f := fate{Client: c.RemoteAddr().String(), Listen: addr}
			s.tell(f)
			f.Ended = answer(c)
			s.tell(f)
			_ = c.Close()
		})
	}
}

// answer answers a connection's requests and tells how it ended.
func answer(c net.Conn) string {
	buf := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(buf)
		if err != nil {
			return ending(err)
		}
		if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.URL.Path), req.URL.Path); err != nil {
			return ending(err)
		}
	}
}
