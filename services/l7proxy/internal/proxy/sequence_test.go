package proxy

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// exchangeOf is one request of a drawn sequence, with the response it must get.
type exchangeOf struct {
	method, raw string
	status      int
	body        string
}

func drawExchange(t *rapid.T, i int) exchangeOf {
	e := exchangeOf{method: rapid.SampledFrom([]string{"GET", "HEAD", "POST", "PUT"}).Draw(t, "method")}
	path := rapid.SampledFrom([]string{"/public", "/public/chunks", "/private", "/public/%2e%2e/private"}).Draw(t, "path")
	body := ""
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: app\r\nX-Number: %d\r\n", e.method, path, i)
	if e.method == "POST" || e.method == "PUT" {
		body = strings.Repeat(fmt.Sprintf("body %d,", i), rapid.SampledFrom([]int{0, 1, 700, 9000}).Draw(t, "repeat"))
		if rapid.Bool().Draw(t, "chunked") {
			head += "Transfer-Encoding: chunked\r\n\r\n"
			e.raw = head + chunked(t, body)
		} else {
			e.raw = head + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
		}
	} else {
		e.raw = head + "\r\n"
	}
	if path == "/public" || path == "/public/chunks" {
		e.status, e.body = 200, fmt.Sprintf("%d %s %s", i, e.method, body)
	} else {
		e.status, e.body = 403, "Access denied"
	}
	if e.method == "HEAD" {
		e.body = ""
	}
	return e
}

func chunked(t *rapid.T, body string) string {
	var b strings.Builder
	for body != "" {
		n := rapid.IntRange(1, len(body)).Draw(t, "chunk")
		fmt.Fprintf(&b, "%x\r\n%s\r\n", n, body[:n])
		body = body[n:]
	}
	return b.String() + "0\r\n\r\n"
}

// Whatever requests come, in whatever pieces, each gets its own response, in
// order, and none that is denied reaches the server.
func TestSequences(t *testing.T) {
	b := behind(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if r.URL.Path != "/public" && r.URL.Path != "/public/chunks" {
			t.Errorf("%s reached the server", r.RequestURI)
		}
		answer := fmt.Sprintf("%s %s %s", r.Header.Get("X-Number"), r.Method, body)
		if r.URL.Path == "/public" {
			w.Header().Set("Content-Length", fmt.Sprint(len(answer)))
		}
		for part := range strings.SplitAfterSeq(answer, ",") {
			_, _ = io.WriteString(w, part) // of a HEAD nothing is written
			if r.URL.Path != "/public" && len(answer) < 1000 {
				w.(http.Flusher).Flush()
			}
		}
	})
	go func() {
		for range b.verdicts { // nobody else takes them
		}
	}()
	t.Cleanup(func() {
		b.stop()
		close(b.verdicts)
	})
	rapid.Check(t, func(rt *rapid.T) {
		var want []exchangeOf
		var raw strings.Builder
		for i := range rapid.IntRange(1, 8).Draw(rt, "requests") {
			e := drawExchange(rt, i)
			want = append(want, e)
			raw.WriteString(e.raw)
		}
		c := b.dial()
		defer c.Close()
		pieces := raw.String()
		sent := make(chan error, 1)
		sizes := rapid.SliceOfN(rapid.SampledFrom([]int{1, 3, 17, 200, 4096, 100_000}), 1, 20).Draw(rt, "pieces")
		go func() {
			for i := 0; pieces != ""; i++ {
				n := min(sizes[i%len(sizes)], len(pieces))
				if i > 200 {
					n = len(pieces)
				}
				if _, err := io.WriteString(c, pieces[:n]); err != nil {
					sent <- err
					return
				}
				pieces = pieces[n:]
			}
			sent <- nil
		}()
		for i, e := range want {
			resp, err := http.ReadResponse(c.br, &http.Request{Method: e.method})
			if err != nil {
				rt.Fatalf("response %d: %v", i, err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != e.status || string(body) != e.body {
				rt.Fatalf("response %d: %d %.60q, %v, want %d %.60q", i, resp.StatusCode, body, err, e.status, e.body)
			}
		}
		if err := <-sent; err != nil {
			rt.Fatal(err)
		}
	})
}
