package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A stream is one sort of traffic that load makes.
type stream struct {
	name  string
	kind  string        // of the kinds below
	conns int           // that many at a time
	pace  time.Duration // between two answers of one connection
	limit time.Duration // for one answer
	want  string        // the answer that is no event
	port  int           // the client's own; 0: any
	url   *url.URL
}

// Kinds of streams.
const (
	alive = "alive" // asks again and again on one connection
	fresh = "fresh" // a connection for each request
	dial  = "dial"  // connects, and asks nothing
	hold  = "hold"  // asks once and waits for the connection's end
)

// An event is an answer that was not the wanted one.
type event struct {
	Stream string        `json:"stream"`
	At     time.Time     `json:"at"`
	Took   time.Duration `json:"took"`
	Got    string        `json:"got"`
	Reused bool          `json:"reused,omitempty"` // the connection had answered before
	Client string        `json:"client,omitempty"`
}

// A report is one line of load's output: what has come since the start, and the
// events since the last line.
type report struct {
	Answers map[string]map[string]int `json:"answers"` // by stream
	Events  []event                   `json:"events,omitempty"`
}

// reportEvery is how often load tells what it has got.
const reportEvery = 100 * time.Millisecond

// runLoad makes the streams' traffic until stdin ends, and tells about it.
func runLoad(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	var streams []stream
	for _, a := range args {
		s, err := parseStream(a)
		if err != nil {
			return err
		}
		streams = append(streams, s)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, in) // however it ends
		cancel()
	}()
	l := &loader{report: report{Answers: map[string]map[string]int{}}}
	var clients sync.WaitGroup
	for _, s := range streams {
		l.report.Answers[s.name] = map[string]int{}
		for range s.conns {
			clients.Go(func() { (&client{loader: l, stream: s}).run(ctx) })
		}
	}
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		if err := l.tell(out); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			clients.Wait()
			return l.tell(out)
		}
	}
}

// parseStream reads KEY=VALUE,KEY=VALUE.
func parseStream(text string) (stream, error) {
	s := stream{conns: 1, pace: 20 * time.Millisecond, limit: 10 * time.Second, want: "200"}
	for field := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(field, "=")
		var err error
		switch key {
		case "name":
			s.name = value
		case "kind":
			s.kind = value
		case "conns":
			s.conns, err = strconv.Atoi(value)
		case "pace":
			s.pace, err = time.ParseDuration(value)
		case "limit":
			s.limit, err = time.ParseDuration(value)
		case "want":
			s.want = value
		case "port":
			s.port, err = strconv.Atoi(value)
		case "url":
			s.url, err = url.Parse(value)
		default:
			err = errors.New("unknown key")
		}
		if err != nil {
			return s, fmt.Errorf("stream %q: %s: %w", text, key, err)
		}
	}
	if s.url == nil || s.name == "" {
		return s, fmt.Errorf("stream %q: name and url are needed", text)
	}
	return s, nil
}

// loader gathers what all clients get.
type loader struct {
	mu     sync.Mutex
	report report
}

func (l *loader) note(s *stream, e event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.report.Answers[s.name][e.Got]++
	if e.Got != s.want {
		l.report.Events = append(l.report.Events, e)
	}
}

func (l *loader) tell(out io.Writer) error {
	l.mu.Lock()
	line, err := json.Marshal(l.report)
	l.report.Events = nil
	l.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = out.Write(append(line, '\n'))
	return err
}

// client is one connection of a stream, made anew whenever it has ended.
type client struct {
	*loader
	stream stream
	conn   net.Conn // nil: none
	buf    *bufio.Reader
	reused bool
}

func (c *client) run(ctx context.Context) {
	defer func() { c.drop() }()
	tick := time.NewTicker(c.stream.pace)
	defer tick.Stop()
	for ctx.Err() == nil {
		begun := time.Now()
		e := event{Stream: c.stream.name, Reused: c.reused}
		e.Got = c.ask(ctx)
		if ctx.Err() != nil {
			return
		}
		e.At, e.Took = time.Now(), time.Since(begun)
		if c.conn != nil {
			e.Client = c.conn.LocalAddr().String()
		}
		c.note(&c.stream, e)
		if c.stream.kind == hold && c.conn != nil {
			e.Got, e.Reused = c.wait(ctx), true
			e.At = time.Now()
			if ctx.Err() == nil {
				c.note(&c.stream, e)
			}
			return
		}
		if _, err := strconv.Atoi(e.Got); err != nil || c.stream.kind != alive {
			c.drop()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func (c *client) drop() {
	if c.conn != nil {
		_ = c.conn.Close() // it has ended, or is not needed
	}
	c.conn, c.reused = nil, false
}

// ask sends one request and tells what came: a status, or how it went wrong.
func (c *client) ask(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, c.stream.limit)
	defer cancel()
	if c.conn == nil {
		dialer := net.Dialer{Control: reusable}
		if c.stream.port != 0 {
			dialer.LocalAddr = &net.TCPAddr{Port: c.stream.port}
		}
		conn, err := dialer.DialContext(ctx, "tcp", c.stream.url.Host)
		if err != nil {
			return ending(err)
		}
		if c.stream.kind == dial {
			_ = conn.(*net.TCPConn).SetLinger(0) // its port is free at once
			_ = conn.Close()
			return "open"
		}
		c.conn, c.buf = conn, bufio.NewReader(conn)
	}
	conn := c.conn
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", c.stream.url.Path, c.stream.url.Host); err != nil {
		return ending(err)
	}
	resp, err := http.ReadResponse(c.buf, nil)
	if err != nil {
		return ending(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return ending(err)
	}
	if c.reused = true; resp.Close {
		c.drop()
	}
	return strconv.Itoa(resp.StatusCode)
}

// wait waits for the connection's end.
func (c *client) wait(ctx context.Context) string {
	conn := c.conn
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.buf.ReadByte(); err != nil {
		return ending(err)
	}
	return "unasked"
}

// reusable lets a port be taken again that has just been let go.
func reusable(_, _ string, c syscall.RawConn) error {
	var inner error
	err := c.Control(func(fd uintptr) {
		inner = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	})
	return errors.Join(err, inner)
}

// ending names the way a connection went wrong.
func ending(err error) string {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED):
		return "reset" // by the other end, or by the node, which resets both
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return err.Error()
}
