package bypass

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/l7proxy/internal/proxy"
	"weir.dev/weir/services/l7proxy/internal/rules"
)

// A Result is what became of one case. Problem is empty if it passed.
type Result struct {
	Case    Case
	Outcome string
	Problem string
}

// atOnce is how many cases run beside each other.
const atOnce = 8

// Run runs all cases and returns their results in the same order. An error
// says that the corpus could not be run, not that a case failed.
func (c *Corpus) Run(ctx context.Context) ([]Result, error) {
	policy, err := parsePolicy(c.Policy.Allow)
	if err != nil {
		return nil, err
	}
	results := make([]Result, len(c.Cases))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i, cs := range c.Cases {
		g.Go(func() error {
			o, err := runCase(ctx, policy, cs)
			if err != nil {
				return fmt.Errorf("case %s: %w", cs.ID, err)
			}
			results[i] = Result{Case: cs, Outcome: o.String(), Problem: cs.check(o)}
			return nil
		})
	}
	return results, g.Wait()
}

// parsePolicy reads lines of the form METHOD PATH-REGEX [+ NAME: VALUE]….
func parsePolicy(allow []string) ([]rule.HTTPRule, error) {
	var rs []rule.HTTPRule
	for _, line := range allow {
		parts := strings.Split(line, " + ")
		method, path, ok := strings.Cut(parts[0], " ")
		if !ok {
			return nil, fmt.Errorf("policy line %q: want METHOD PATH", line)
		}
		r := rule.HTTPRule{Method: &method, Path: &path}
		for _, h := range parts[1:] {
			name, value, ok := strings.Cut(h, ":")
			if !ok {
				return nil, fmt.Errorf("policy line %q: want NAME: VALUE after the plus", line)
			}
			value = strings.TrimSpace(value)
			r.Headers = append(r.Headers, rule.HeaderRule{Name: strings.ToLower(strings.TrimSpace(name)), Value: &value})
		}
		rs = append(rs, r)
	}
	return rs, nil
}

// number is that of the corpus' policy.
const number = 2

// fixed judges every connection by the corpus' policy.
type fixed struct{}

func (fixed) Word() uint64 { return 1 }

func (fixed) RuleSet(proxy.Flow) (uint32, uint64, bool) { return number, 1, true }

// toServer dials the case's server.
type toServer struct{ addr string }

func (d toServer) Dial(ctx context.Context, _ proxy.Flow) (*net.TCPConn, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", d.addr)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func runCase(ctx context.Context, policy []rule.HTTPRule, c Case) (outcome, error) {
	raw, err := c.bytes()
	if err != nil {
		return outcome{}, err
	}
	set, err := rules.Compile([][]rule.HTTPRule{policy})
	if err != nil {
		return outcome{}, err
	}
	var table rules.Table
	table.Apply(map[uint32]*rules.Set{number: set}, true)
	srv, err := startServer(ctx)
	if err != nil {
		return outcome{}, err
	}
	limits := proxy.DefaultLimits()
	limits.Head, limits.Drain = time.Second, time.Second
	p := proxy.New(proxy.Config{
		Rules: &table, Connections: fixed{}, Dialer: toServer{srv.addr()}, Limits: limits,
	}, slog.New(slog.DiscardHandler))
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return outcome{}, errors.Join(err, srv.stop())
	}
	serving, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- p.Serve(serving, ln, proxy.Ingress) }()
	o, err := converse(ctx, ln.Addr().String(), raw)
	stop()
	p.Drain(ctx)
	err = errors.Join(err, <-done, srv.stop())
	o.reached = srv.reached()
	return o, err
}

const (
	quiet = 250 * time.Millisecond // nothing more is expected after that
	late  = 3 * time.Second        // nothing is waited for beyond
)

// converse sends the input and reads what comes back.
func converse(ctx context.Context, addr string, raw []byte) (o outcome, err error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	// The proxy may have refused the beginning and closed.
	_, _ = c.Write(raw)
	var got []byte
	buf := make([]byte, 64<<10)
	wait, halfClosed := quiet, false
	for {
		if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return o, err
		}
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		if err == nil {
			continue
		}
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			if halfClosed {
				break
			}
			// An input without an end ends now.
			halfClosed, wait = true, late
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				break
			}
			continue
		}
		o.closed = true
		break
	}
	method, _, _ := bytes.Cut(bytes.TrimLeft(raw, "\r\n"), []byte(" "))
	o.responses = parseResponses(got, string(method))
	return o, nil
}

// parseResponses reads the responses up to the first that is not one; the first
// is to a request with that method.
func parseResponses(b []byte, method string) []response {
	var rs []response
	br := bufio.NewReader(bytes.NewReader(b))
	for {
		resp, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			return rs
		}
		if resp.StatusCode == http.StatusContinue {
			continue
		}
		r := response{status: resp.StatusCode, fromServer: resp.Header.Get("X-Server") != ""}
		if resp.StatusCode == http.StatusSwitchingProtocols {
			return append(rs, r)
		}
		body, err := io.ReadAll(resp.Body)
		r.body, r.head = string(body), method == http.MethodHead
		method = http.MethodGet
		rs = append(rs, r)
		if err != nil {
			return rs
		}
	}
}

// A server takes anything for a request and remembers it. It is lenient on
// purpose: what it finds in a stream is what some server might.
type server struct {
	ln    net.Listener
	conns sync.WaitGroup
	mu    sync.Mutex
	got   []request
}

func startServer(ctx context.Context) (*server, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &server{ln: ln}
	s.conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.conns.Go(func() { s.serve(c) })
		}
	})
	return s, nil
}

func (s *server) addr() string { return s.ln.Addr().String() }

func (s *server) stop() error {
	err := s.ln.Close()
	s.conns.Wait()
	return err
}

func (s *server) reached() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got
}

func (s *server) note(r request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, r)
}
