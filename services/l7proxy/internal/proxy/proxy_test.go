package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"weir.dev/weir/services/l7proxy/internal/rules"
)

func TestDenialLeavesTheConnection(t *testing.T) {
	b := behind(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) })
	c := b.dial()
	c.say(get("/public"))
	c.want(200, "/public")
	c.say(get("/private"))
	resp, body := c.answer("GET")
	if resp.StatusCode != 403 || body != "Access denied" || resp.ContentLength != 13 || resp.Close {
		t.Errorf("%d %q of %d bytes, close %v", resp.StatusCode, body, resp.ContentLength, resp.Close)
	}
	c.say(get("/public/a") + get("/private") + get("/public/b")) // pipelined
	c.want(200, "/public/a")
	c.want(403, "Access denied")
	c.want(200, "/public/b")
	c.say("HEAD /private HTTP/1.1\r\nHost: app\r\n\r\n")
	if resp, body := c.answer("HEAD"); resp.StatusCode != 403 || body != "" || resp.ContentLength != 13 {
		t.Errorf("HEAD: %d %q of %d bytes", resp.StatusCode, body, resp.ContentLength)
	}
	for _, want := range []Verdict{
		{Path: "/public", Status: 200, Rule: 0},
		{Path: "/private", Status: 403, Rule: -1, Denied: true, Reason: rules.ReasonDenied},
	} {
		got := b.verdict()
		if got.Path != want.Path || got.Status != want.Status || got.Rule != want.Rule || got.Denied != want.Denied ||
			got.Reason != want.Reason || got.RuleSet != public || got.Host != "app" || got.Method != "GET" || got.Flow.Client.Port() == 0 {
			t.Errorf("verdict %+v, want %+v", got, want)
		}
	}
}

func TestBodyOfADeniedRequest(t *testing.T) {
	b := behind(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) })
	for name, req := range map[string]string{
		"a length": "POST /private HTTP/1.1\r\nHost: app\r\nContent-Length: 20\r\n\r\nGET /public HTTP/1.1",
		"chunks":   "POST /private HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nGET \r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := b.dial()
			c.say(req)
			c.want(403, "Access denied")
			c.say(get("/public"))
			c.want(200, "/public")
		})
	}
	for name, req := range map[string]string{
		"an expectation": "POST /private HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 20\r\n\r\n",
		"a long body":    "POST /private HTTP/1.1\r\nHost: app\r\nContent-Length: 1000000\r\n\r\nabc",
		"close":          "GET /private HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := b.dial()
			c.say(req)
			if resp, body := c.answer("POST"); resp.StatusCode != 403 || body != "Access denied" || !resp.Close {
				t.Errorf("%d %q, close %v, want the connection to end", resp.StatusCode, body, resp.Close)
			}
			c.wantEnd()
		})
	}
}

// What an ordinary client and an ordinary server say to each other arrives.
func TestMessages(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	b := behind(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		switch r.URL.Path {
		case "/public/echo":
			w.Header().Set("X-Trailer", r.Trailer.Get("X-Sum"))
			if _, err := w.Write(body); err != nil {
				t.Error(err)
			}
		case "/public/204":
			w.WriteHeader(http.StatusNoContent)
		case "/public/304":
			w.WriteHeader(http.StatusNotModified)
		case "/public/chunks":
			w.Header().Set("Trailer", "X-Sum")
			for i := range 100 {
				fmt.Fprintf(w, "part %d,", i)
				w.(http.Flusher).Flush()
			}
			w.Header().Set("X-Sum", "7")
		case "/public/large":
			w.Header().Set("Content-Length", fmt.Sprint(len(large)))
			if _, err := w.Write(large); err != nil {
				t.Error(err)
			}
		}
	})
	tr := &http.Transport{DialContext: (&net.Dialer{}).DialContext, MaxConnsPerHost: 1, ExpectContinueTimeout: time.Second}
	defer tr.CloseIdleConnections()
	hc := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	do := func(method, path string, body io.Reader, change func(*http.Request)) (*http.Response, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+b.addr+path, body)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(req)
		}
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, got
	}
	if _, got := do("POST", "/public/echo", bytes.NewReader(large), nil); !bytes.Equal(got, large) {
		t.Errorf("a large body comes back as %d bytes", len(got))
	}
	if resp, got := do("POST", "/public/echo", io.MultiReader(strings.NewReader("ab"), bytes.NewReader(large)), func(r *http.Request) {
		r.Trailer = http.Header{"X-Sum": {"5"}}
	}); len(got) != len(large)+2 || resp.Header.Get("X-Trailer") != "5" {
		t.Errorf("chunks come back as %d bytes with trailer %q", len(got), resp.Header.Get("X-Trailer"))
	}
	if _, got := do("POST", "/public/echo", strings.NewReader("abc"), func(r *http.Request) { r.Header.Set("Expect", "100-continue") }); string(got) != "abc" {
		t.Errorf("after 100-continue: %q", got)
	}
	if resp, got := do("HEAD", "/public/large", nil, nil); resp.ContentLength != int64(len(large)) || len(got) > 0 {
		t.Errorf("HEAD: %d, %d bytes", resp.ContentLength, len(got))
	}
	for path, want := range map[string]int{"/public/204": 204, "/public/304": 304} {
		if resp, got := do("GET", path, nil, nil); resp.StatusCode != want || len(got) > 0 {
			t.Errorf("%s: %d with %d bytes", path, resp.StatusCode, len(got))
		}
	}
	if resp, got := do("GET", "/public/chunks", nil, nil); !strings.HasSuffix(string(got), "part 99,") || resp.Trailer.Get("X-Sum") != "7" {
		t.Errorf("chunks: %.30q, trailers %v", got, resp.Trailer)
	}
	if _, got := do("GET", "/public/large", nil, nil); !bytes.Equal(got, large) {
		t.Errorf("a large response comes as %d bytes", len(got))
	}
	if n := b.proxy.Open(); n != 1 {
		t.Errorf("%d connections, want one for all of it", n)
	}
}

func TestHTTP10(t *testing.T) {
	b := behind(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) })
	c := b.dial()
	c.say("GET /public HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
	c.want(200, "HTTP/1.0")
	c.say("GET /private HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
	c.want(403, "Access denied")
	c.say("GET /public HTTP/1.0\r\n\r\n")
	c.want(200, "HTTP/1.0")
	c.wantEnd()
}

func TestResponseUntilTheEnd(t *testing.T) {
	b := before(t, func(c *net.TCPConn, br *bufio.Reader) {
		head(br)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nuntil the end")
	})
	c := b.dial()
	c.say(get("/public"))
	resp, body := c.answer("GET")
	if body != "until the end" || !resp.Close {
		t.Errorf("%q, close %v", body, resp.Close)
	}
	c.wantEnd()
}

// The other end of a connection is not held open by the proxy.
func TestIdleEndIsPassedOn(t *testing.T) {
	b := before(t, func(c *net.TCPConn, br *bufio.Reader) {
		head(br)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	c := b.dial()
	c.say(get("/public"))
	c.want(200, "ok")
	c.wantEnd()

	gone := make(chan error, 1)
	b = before(t, func(c *net.TCPConn, br *bufio.Reader) {
		_, err := br.ReadByte()
		gone <- err
	})
	c = b.dial()
	_ = c.Close()
	if err := <-gone; !errors.Is(err, io.EOF) {
		t.Errorf("the server finds %v when the client is gone, want EOF", err)
	}
}

func TestBadServers(t *testing.T) {
	for name, tt := range map[string]struct {
		response string
		want     int // 0: the connection ends without a response
	}{
		"no HTTP":                   {"hello\r\n\r\n", 502},
		"two framings":              {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502},
		"bare line feeds":           {"HTTP/1.1 200 OK\nContent-Length: 0\n\n", 502},
		"a head without an end":     {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 70_000), 502},
		"nothing":                   {"", 0},
		"half a head":               {"HTTP/1.1 200 OK\r\n", 0},
		"a switch nobody asked for": {"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := before(t, func(c *net.TCPConn, br *bufio.Reader) {
				head(br)
				_, _ = io.WriteString(c, tt.response)
			})
			c := b.dial()
			c.say(get("/public"))
			if tt.want != 0 {
				c.want(tt.want, "Bad Gateway")
			}
			c.wantEnd()
		})
	}
}

// A response that was cut is not passed off as a whole one.
func TestHalfAResponse(t *testing.T) {
	for name, response := range map[string]string{
		"a length": "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
		"chunks":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
		"no chunk": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			b := before(t, func(c *net.TCPConn, br *bufio.Reader) {
				head(br)
				_, _ = io.WriteString(c, response)
			})
			c := b.dial()
			c.say(get("/public"))
			resp, err := http.ReadResponse(c.br, nil)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
			}
			if err == nil {
				t.Error("the client takes it for whole")
			}
		})
	}
}

// What a server says unasked is nobody's response.
func TestServerSpeaksUnasked(t *testing.T) {
	b := before(t, func(c *net.TCPConn, br *bufio.Reader) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
		head(br)
	})
	b.dial().wantEnd()
}

// The second half of a request that turns out malformed never reaches the
// server, nor does anything after it.
func TestMalformedInTheMiddle(t *testing.T) {
	got := make(chan string, 1)
	b := before(t, func(_ *net.TCPConn, br *bufio.Reader) {
		all, _ := io.ReadAll(br)
		got <- string(all)
	})
	c := b.dial()
	c.say("POST /public HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\nGET /private HTTP/1.1\r\nHost: app\r\n\r\n")
	c.want(400, "Bad Request")
	c.wantEnd()
	const want = "POST /public HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
	if all := <-got; !strings.HasPrefix(want, all) {
		t.Errorf("the server got %q, want no more than %q", all, want)
	}
}

// A client that leaves in the middle of a body takes the server's side along.
func TestClientLeavesInTheMiddle(t *testing.T) {
	done := make(chan error, 1)
	b := before(t, func(_ *net.TCPConn, br *bufio.Reader) {
		head(br)
		_, err := io.Copy(io.Discard, br)
		done <- err
	})
	c := b.dial()
	c.say("POST /public HTTP/1.1\r\nHost: app\r\nContent-Length: 100\r\n\r\nabc")
	_ = c.Close()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("the server still waits for the rest")
	}
}

// A response that comes before the request's end reaches the client.
func TestEarlyResponse(t *testing.T) {
	b := before(t, func(c *net.TCPConn, br *bufio.Reader) {
		head(br)
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge")
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, br)
	})
	c := b.dial()
	c.say("POST /public HTTP/1.1\r\nHost: app\r\nContent-Length: 1000000\r\n\r\nabc")
	c.want(413, "large")
}

func TestSlowHead(t *testing.T) {
	b := behind(t, func(http.ResponseWriter, *http.Request) {})
	c := b.dial()
	c.say("GET /public HTTP/1.1\r\nHo")
	c.want(408, "Request Timeout")
	c.wantEnd()
	if v := b.verdict(); v.Reason != ReasonSlow || !v.Denied {
		t.Errorf("verdict %+v", v)
	}
	// A connection on which nothing is said may wait.
	quiet := b.dial()
	late := b.dial()
	late.say("GET /public HTTP/1.1\r\n")
	late.want(408, "Request Timeout")
	quiet.say(get("/public"))
	quiet.want(200, "")
}

// A client that does not read its response is cut, and does not hold the
// server for ever.
func TestClientThatDoesNotRead(t *testing.T) {
	done := make(chan struct{})
	l := limits()
	l.Write = time.Second
	b := beforeWith(t, l, func(c *net.TCPConn, br *bufio.Reader) {
		defer close(done)
		head(br)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		chunk := "10000\r\n" + strings.Repeat("x", 1<<16) + "\r\n"
		for {
			if _, err := io.WriteString(c, chunk); err != nil {
				return
			}
		}
	})
	c := b.dial()
	if err := c.SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	c.say(get("/public"))
	select {
	case <-done:
	case <-time.After(8 * time.Second):
		t.Error("the server still writes")
	}
}

func TestRuleSetsComeAndGo(t *testing.T) {
	b := behind(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) })
	c := b.dial()
	c.say(get("/public"))
	c.want(200, "/public")
	b.judged.flip(nothing)
	c.say(get("/public"))
	c.want(403, "Access denied")
	b.judged.flip(unknown)
	c.say(get("/public"))
	c.want(503, "Service Unavailable")
	b.judged.flip(Allowed)
	c.say(get("/private"))
	c.want(200, "/private")
	b.judged.flip(0)
	c.say(get("/public"))
	c.want(403, "Access denied")
	c.wantEnd()
	for _, want := range []string{"", rules.ReasonDenied, ReasonNoRuleSet, "", ReasonNoJudgement} {
		if v := b.verdict(); v.Reason != want || v.Denied != (want != "") {
			t.Errorf("verdict %+v, want reason %q", v, want)
		}
	}
}

func TestAmbiguousPath(t *testing.T) {
	b := behind(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RequestURI) })
	c := b.dial()
	c.say(get("/public/..;/private"))
	c.want(403, "Access denied")
	if v := b.verdict(); v.Reason != rules.ReasonAmbiguous {
		t.Errorf("verdict %+v, want reason %s", v, rules.ReasonAmbiguous)
	}
}

// Told to end, a proxy finishes what is under way and then closes.
func TestDrain(t *testing.T) {
	arrived, answer := make(chan struct{}), make(chan struct{})
	b := behind(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/public/slow" {
			close(arrived)
			<-answer
		}
		fmt.Fprint(w, "done")
	})
	idle, busy := b.dial(), b.dial()
	idle.say(get("/public"))
	idle.want(200, "done")
	busy.say(get("/public/slow"))
	<-arrived
	stopped := make(chan struct{})
	go func() { b.stop(); close(stopped) }()
	waitFor(t, "draining", b.proxy.draining.Load)
	idle.say(get("/public"))
	if resp, body := idle.answer("GET"); body != "done" || !resp.Close {
		t.Errorf("%q, close %v", body, resp.Close)
	}
	close(answer)
	busy.want(200, "done")
	<-stopped
	if n := b.proxy.Open(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

// A client that was answered without having sent its body may send it or not,
// so nothing more is taken from it.
func TestFinalResponseInsteadOfContinue(t *testing.T) {
	rest := make(chan string, 1)
	b := before(t, func(c *net.TCPConn, br *bufio.Reader) {
		head(br)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
		all, _ := io.ReadAll(br)
		rest <- string(all)
	})
	c := b.dial()
	c.say("POST /public HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 43\r\n\r\n")
	if resp, body := c.answer("POST"); body != "no" || !resp.Close {
		t.Errorf("%q, close %v", body, resp.Close)
	}
	_, _ = io.WriteString(c, get("/private")) // the proxy may have closed
	c.wantEnd()
	if got := <-rest; got != "" {
		t.Errorf("the server got %q", got)
	}
}

func TestTooManyConnections(t *testing.T) {
	t.Run("of all", func(t *testing.T) { tooMany(t, func(l *Limits) { l.Connections = 2 }) })
	t.Run("of one client", func(t *testing.T) { tooMany(t, func(l *Limits) { l.PerClient = 2 }) })
}

func tooMany(t *testing.T, set func(*Limits)) {
	ln := listen(t)
	srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	l := limits()
	set(&l)
	b := newBench(t, ln, l)
	a, c := b.dial(), b.dial()
	a.say(get("/public"))
	a.want(200, "")
	c.say(get("/public"))
	c.want(200, "")
	third, err := net.Dial("tcp", b.addr)
	if err != nil {
		return // the reset was faster
	}
	_ = third.SetDeadline(time.Now().Add(5 * time.Second)) // it may be reset by now
	if n, err := third.Read(make([]byte, 1)); n != 0 || isTimeout(err) {
		t.Errorf("the third connection reads %d, %v", n, err)
	}
	_ = third.Close()
}
