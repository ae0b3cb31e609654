package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/l7proxy/internal/rules"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// judged is the datapath of a test: it judges every connection alike.
type judged struct {
	mu     sync.Mutex
	word   uint64
	number uint32
	gone   bool
	broken bool
}

func (j *judged) Word() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.word
}

func (j *judged) RuleSet(Flow) (uint32, uint64, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken {
		panic("broken")
	}
	return j.number, j.word, !j.gone
}

// flip makes another rule set the one in force; 0 none.
func (j *judged) flip(number uint32) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.word += 2
	j.number, j.gone = number, number == 0
}

type dialTo struct{ addr string }

func (d dialTo) Dial(ctx context.Context, _ Flow) (*net.TCPConn, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", d.addr)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// A bench is a proxy in front of a server.
type bench struct {
	t        *testing.T
	proxy    *Proxy
	judged   *judged
	addr     string
	verdicts chan Verdict
	stop     func()
}

func str(s string) *string { return &s }

// Rule sets of a bench: 2 lets /public and what is below it pass, 3 nothing.
const (
	public  uint32 = 2
	nothing uint32 = 3
	unknown uint32 = 9
)

func limits() Limits {
	l := DefaultLimits()
	l.Head, l.Tunnel = time.Second, 10*time.Millisecond
	return l
}

// newBench starts a proxy in front of a server's listener.
func newBench(t *testing.T, server net.Listener, l Limits) *bench {
	t.Helper()
	set, err := rules.Compile([][]rule.HTTPRule{{{Path: str("/public(/.*)?")}}})
	if err != nil {
		t.Fatal(err)
	}
	var table rules.Table
	table.Apply(map[uint32]*rules.Set{public: set, nothing: {}}, true)
	b := &bench{t: t, judged: &judged{word: 2, number: public}, verdicts: make(chan Verdict, 1000)}
	b.proxy = New(Config{
		Rules: &table, Connections: b.judged, Dialer: dialTo{server.Addr().String()}, Limits: l,
		Verdict: func(v Verdict) { b.verdicts <- v },
	}, slog.New(slog.DiscardHandler))
	ln := listen(t)
	b.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := b.proxy.Serve(ctx, ln, Ingress); err != nil {
			t.Error(err)
		}
	})
	serving.Go(func() { b.proxy.WatchTunnels(ctx) })
	var once sync.Once
	b.stop = func() {
		once.Do(func() {
			cancel()
			serving.Wait()
			b.proxy.Drain(context.Background())
		})
	}
	t.Cleanup(b.stop)
	return b
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// behind starts a proxy in front of an HTTP server.
func behind(t *testing.T, h http.HandlerFunc) *bench {
	t.Helper()
	ln := listen(t)
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return newBench(t, ln, limits())
}

// before starts a proxy in front of a server that is a script for each
// connection.
func before(t *testing.T, script func(c *net.TCPConn, br *bufio.Reader)) *bench {
	t.Helper()
	return beforeWith(t, limits(), script)
}

func beforeWith(t *testing.T, l Limits, script func(c *net.TCPConn, br *bufio.Reader)) *bench {
	t.Helper()
	ln := listen(t)
	var scripts sync.WaitGroup
	scripts.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			scripts.Go(func() {
				defer func() { _ = c.Close() }()
				if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
					t.Error(err)
				}
				script(c.(*net.TCPConn), bufio.NewReader(c))
			})
		}
	})
	b := newBench(t, ln, l)
	t.Cleanup(func() {
		b.stop()
		_ = ln.Close()
		scripts.Wait()
	})
	return b
}

// head reads a head and returns its first line, or what came of it.
func head(br *bufio.Reader) string {
	first := ""
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return first + line
		}
		if first == "" {
			first = strings.TrimRight(line, "\r\n")
		}
		if line == "\r\n" {
			return first
		}
	}
}

// A client speaks HTTP by hand.
type client struct {
	*net.TCPConn
	t  *testing.T
	br *bufio.Reader
}

func (b *bench) dial() *client {
	b.t.Helper()
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return &client{TCPConn: c.(*net.TCPConn), t: b.t, br: bufio.NewReader(c)}
}

func (c *client) say(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatal(err)
	}
}

// answer reads a response to a request with that method.
func (c *client) answer(method string) (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.br, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("read response: %v", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("read body: %v", err)
	}
	return resp, string(body)
}

// want reads a response and compares it.
func (c *client) want(status int, body string) {
	c.t.Helper()
	resp, got := c.answer("GET")
	if resp.StatusCode != status || got != body {
		c.t.Errorf("%d %q, want %d %q", resp.StatusCode, got, status, body)
	}
}

// wantEnd wants the connection to end without another byte.
func (c *client) wantEnd() {
	c.t.Helper()
	b, err := io.ReadAll(c.br)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() || len(b) > 0 {
		c.t.Errorf("the connection goes on with %q, %v", b, err)
	}
}

// waitFor waits for a condition.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(5 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("not within 5 s: %s", what)
		case <-tick.C:
		}
	}
}

// verdict takes the next verdict.
func (b *bench) verdict() Verdict {
	b.t.Helper()
	select {
	case v := <-b.verdicts:
		return v
	case <-time.After(5 * time.Second):
		b.t.Fatal("no verdict")
		return Verdict{}
	}
}

func get(path string) string { return fmt.Sprintf("GET %s HTTP/1.1\r\nHost: app\r\n\r\n", path) }
