package http1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"testing"
	"testing/iotest"
)

// What is passed on of a head reads the same again, and net/http, where it
// takes the head too, finds the same request in it.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST http://a/b?c HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
		"GET /%2e;a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
		"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := HeadLen(b, 0)
		if m, err2 := HeadLen(b, len(b)/2); err == nil && n > 0 && len(b)/2 < n && (m != n || err2 != nil) {
			// What was looked at before may not change the end that is found.
			t.Fatalf("HeadLen finds %d, and %d, %v, from the middle on", n, m, err2)
		}
		if err != nil || n == 0 {
			return
		}
		var r Request
		if r.ParseRequest(b[:n]) != nil {
			return
		}
		out := r.AppendHead(nil)
		if k, err := HeadLen(out, 0); err != nil || k != len(out) {
			t.Fatalf("%q is passed on as %q: head of %d, %v", b[:n], out, k, err)
		}
		var again Request
		if err := again.ParseRequest(out); err != nil {
			t.Fatalf("%q is passed on as %q, which is refused: %v", b[:n], out, err)
		}
		if again.Method != r.Method || again.Target != r.Target || again.Host != r.Host || again.Kind != r.Kind ||
			again.Length != r.Length || again.Close != r.Close || again.WebSocket != r.WebSocket {
			t.Fatalf("%q is passed on as %q, which reads otherwise", b[:n], out)
		}
		std, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(out)))
		if err != nil {
			return // it is stricter about some hosts and escapes
		}
		if std.Method != r.Method || std.RequestURI != r.Target || r.Kind == Length && std.ContentLength != r.Length {
			t.Fatalf("net/http finds %s %s with %d bytes in %q", std.Method, std.RequestURI, std.ContentLength, out)
		}
	})
}

// A chunked body that is taken comes out so that net/http reads the very bytes
// that were in its chunks, and comes out the same byte by byte.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{"0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n", "1;a=b\r\nx\r\n0\r\nA: b\r\n\r\n", "ff\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var once, slow bytes.Buffer
		err := CopyBody(&once, reader(bytes.NewReader(b)), Chunked, 0)
		err2 := CopyBody(&slow, reader(iotest.OneByteReader(bytes.NewReader(b))), Chunked, 0)
		if (err == nil) != (err2 == nil) {
			t.Fatalf("at once %v, byte by byte %v", err, err2)
		}
		if err != nil {
			return
		}
		if !bytes.Equal(once.Bytes(), slow.Bytes()) {
			t.Fatalf("at once %q, byte by byte %q", once.Bytes(), slow.Bytes())
		}
		head := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
		std, err := http.ReadRequest(bufio.NewReader(io.MultiReader(bytes.NewReader([]byte(head)), bytes.NewReader(once.Bytes()))))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(std.Body); err != nil {
			t.Fatalf("net/http refuses %q: %v", once.Bytes(), err)
		}
	})
}

// Nothing that a server sends makes the parser fail but by an error.
func FuzzResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"), "GET")
	f.Add([]byte("HTTP/1.0 101\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"), "HEAD")
	f.Fuzz(func(t *testing.T, b []byte, method string) {
		n, err := HeadLen(b, 0)
		if err != nil || n == 0 {
			return
		}
		var r Response
		if r.ParseResponse(b[:n], method) != nil {
			return
		}
		out := r.AppendHead(nil, r.Close, 1)
		var again Response
		if err := again.ParseResponse(out, method); err != nil {
			t.Fatalf("%q is passed on as %q, which is refused: %v", b[:n], out, err)
		}
		if again.Status != r.Status || again.Kind != r.Kind || again.Length != r.Length {
			t.Fatalf("%q is passed on as %q, which reads otherwise", b[:n], out)
		}
	})
}
