package http1

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func parse(head string) (Request, error) {
	var r Request
	n, err := HeadLen([]byte(head), 0)
	if err == nil && n != len(head) {
		return r, errors.New("HeadLen does not find the end")
	}
	if err == nil {
		err = r.ParseRequest([]byte(head))
	}
	return r, err
}

func TestRequestsThatAreTaken(t *testing.T) {
	tests := []struct {
		name, head string
		want       Request
		forwarded  string
	}{
		{
			"the least", "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
			Request{Method: "GET", Target: "/", Host: "a", Minor: 1}, "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		},
		{
			"names and values stay as they came", "GET /a?b=c%20d HTTP/1.1\r\nhOsT:a:80\r\nX-One:  two\t\r\nX-Bin: \xe4\r\n\r\n",
			Request{Method: "GET", Target: "/a?b=c%20d", Host: "a:80", Minor: 1},
			"GET /a?b=c%20d HTTP/1.1\r\nhOsT:a:80\r\nX-One:  two\t\r\nX-Bin: \xe4\r\n\r\n",
		},
		{
			"hop-by-hop fields go", "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, TE\r\nTE: trailers\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\n\r\n",
			Request{Method: "GET", Target: "/", Host: "a", Minor: 1}, "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		},
		{
			"close", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n",
			Request{Method: "GET", Target: "/", Host: "a", Minor: 1, Close: true}, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
		},
		{
			"HTTP/1.0 without a Host", "GET / HTTP/1.0\r\n\r\n",
			Request{Method: "GET", Target: "/", Close: true}, "GET / HTTP/1.0\r\n\r\n",
		},
		{
			"HTTP/1.0 with keep-alive", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
			Request{Method: "GET", Target: "/"}, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
		},
		{
			"an absolute-form becomes a path", "GET HTTP://A:80/x?y HTTP/1.1\r\nHost: a:80\r\n\r\n",
			Request{Method: "GET", Target: "/x?y", Host: "a:80", Minor: 1}, "GET /x?y HTTP/1.1\r\nHost: a:80\r\n\r\n",
		},
		{
			"an absolute-form without a path", "GET http://a?q HTTP/1.1\r\nHost: a\r\n\r\n",
			Request{Method: "GET", Target: "/?q", Host: "a", Minor: 1}, "GET /?q HTTP/1.1\r\nHost: a\r\n\r\n",
		},
		{
			"the asterisk-form", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
			Request{Method: "OPTIONS", Target: "*", Host: "a", Minor: 1}, "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
		},
		{
			"a length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 007\r\n\r\n",
			Request{Method: "POST", Target: "/", Host: "a", Minor: 1, Kind: Length, Length: 7},
			"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 007\r\n\r\n",
		},
		{
			"chunks, and an expectation", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nExpect: 100-Continue\r\n\r\n",
			Request{Method: "POST", Target: "/", Host: "a", Minor: 1, Kind: Chunked, Continue: true},
			"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nExpect: 100-Continue\r\n\r\n",
		},
		{
			"a WebSocket", "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n",
			Request{Method: "GET", Target: "/", Host: "a", Minor: 1, WebSocket: true},
			"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		},
		{
			"other upgrades are passed over", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n",
			Request{Method: "GET", Target: "/", Host: "a", Minor: 1}, "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		},
		{
			"one of several upgrades is none", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
			Request{Method: "GET", Target: "/", Host: "a", Minor: 1}, "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parse(tt.head)
			if err != nil {
				t.Fatal(err)
			}
			if forwarded := string(got.AppendHead(nil)); forwarded != tt.forwarded {
				t.Errorf("passed on as %q, want %q", forwarded, tt.forwarded)
			}
			got.Fields = nil
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	const get, host = "GET / HTTP/1.1\r\n", "Host: a\r\n"
	tests := []struct {
		name, head string
		status     int
	}{
		{"a bare line feed after the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n", 400},
		{"a bare line feed in the fields", get + "Host: a\nX: y\r\n\r\n", 400},
		{"a bare line feed at the end", get + "Host: a\r\n\n", 400},
		{"a bare carriage return in a value", get + host + "X: a\rb\r\n\r\n", 400},
		{"NUL in a value", get + host + "X: a\x00b\r\n\r\n", 400},
		{"DEL in a value", get + host + "X: a\x7fb\r\n\r\n", 400},
		{"NUL in the target", "GET /\x00 HTTP/1.1\r\n" + host + "\r\n", 400},
		{"a folded line", get + host + "X: a\r\n b\r\n\r\n", 400},
		{"a fold before the first field", get + " X: a\r\n" + host + "\r\n", 400},
		{"a blank before a colon", get + "Host : a\r\n\r\n", 400},
		{"no name", get + host + ": x\r\n\r\n", 400},
		{"no colon", get + host + "X\r\n\r\n", 400},
		{"a name that is no token", get + host + "X(y): z\r\n\r\n", 400},
		{"a name in another alphabet", get + host + "H\xf6st: z\r\n\r\n", 400},
		{"no method", " / HTTP/1.1\r\n" + host + "\r\n", 400},
		{"a method that is no token", "G@T / HTTP/1.1\r\n" + host + "\r\n", 400},
		{"no version", "GET /\r\n" + host + "\r\n", 400},
		{"two blanks before the version", "GET /  HTTP/1.1\r\n" + host + "\r\n", 400},
		{"a blank after the version", "GET / HTTP/1.1 \r\n" + host + "\r\n", 400},
		{"a tab for a blank", "GET\t/ HTTP/1.1\r\n" + host + "\r\n", 400},
		{"a version in small letters", "GET / http/1.1\r\n" + host + "\r\n", 400},
		{"HTTP/1.2", "GET / HTTP/1.2\r\n" + host + "\r\n", 505},
		{"HTTP/2.0", "GET / HTTP/2.0\r\n" + host + "\r\n", 505},
		{"HTTP/1.10", "GET / HTTP/1.10\r\n" + host + "\r\n", 400},
		{"the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\n", 505},
		{"an empty request line", "\r\n\r\n", 400},
		{"no Host", get + "\r\n", 400},
		{"two Hosts", get + host + host + "\r\n", 400},
		{"two Hosts in HTTP/1.0", "GET / HTTP/1.0\r\n" + host + "HOST: b\r\n\r\n", 400},
		{"user information in the Host", get + "Host: u@a\r\n\r\n", 400},
		{"a list of Hosts", get + "Host: a, b\r\n\r\n", 400},
		{"a path in the Host", get + "Host: a/b\r\n\r\n", 400},
		{"a fragment", "GET /#a HTTP/1.1\r\n" + host + "\r\n", 400},
		{"a high byte in the target", "GET /\xff HTTP/1.1\r\n" + host + "\r\n", 400},
		{"a target that is no path", "GET a HTTP/1.1\r\n" + host + "\r\n", 400},
		{"an authority-form", "GET a:80 HTTP/1.1\r\n" + host + "\r\n", 400},
		{"an asterisk with GET", "GET * HTTP/1.1\r\n" + host + "\r\n", 400},
		{"https", "GET https://a/ HTTP/1.1\r\n" + host + "\r\n", 400},
		{"an authority other than the Host", "GET http://b/ HTTP/1.1\r\n" + host + "\r\n", 400},
		{"an authority with user information", "GET http://u@a/ HTTP/1.1\r\n" + host + "\r\n", 400},
		{"an authority and no Host", "GET http://a/ HTTP/1.0\r\n\r\n", 400},
		{"an empty authority", "GET http:///a HTTP/1.1\r\nHost:\r\n\r\n", 400},
		{"CONNECT", "CONNECT a:80 HTTP/1.1\r\n" + host + "\r\n", 405},
		{"CONNECT with a path", "CONNECT /a HTTP/1.1\r\n" + host + "\r\n", 405},
		{"both framings", get + host + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		{"two lengths", get + host + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400},
		{"two equal lengths", get + host + "Content-Length: 1\r\nContent-Length: 1\r\n\r\n", 400},
		{"a list of lengths", get + host + "Content-Length: 1, 1\r\n\r\n", 400},
		{"a negative length", get + host + "Content-Length: -1\r\n\r\n", 400},
		{"a signed length", get + host + "Content-Length: +1\r\n\r\n", 400},
		{"a hexadecimal length", get + host + "Content-Length: 0x1\r\n\r\n", 400},
		{"no length", get + host + "Content-Length:\r\n\r\n", 400},
		{"a length with a blank in it", get + host + "Content-Length: 1 1\r\n\r\n", 400},
		{"a length beyond counting", get + host + "Content-Length: 9999999999999999999\r\n\r\n", 400},
		{"another coding", get + host + "Transfer-Encoding: gzip\r\n\r\n", 501},
		{"two codings", get + host + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501},
		{"chunked twice", get + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 501},
		{"chunked with a parameter", get + host + "Transfer-Encoding: chunked;a=b\r\n\r\n", 501},
		{"a coding in quotes", get + host + "Transfer-Encoding: \"chunked\"\r\n\r\n", 501},
		{"chunks in HTTP/1.0", "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		{"a field named in Connection", get + host + "Connection: X-Token\r\nX-Token: a\r\n\r\n", 400},
		{"a framing field named in Connection", get + host + "Connection: content-length\r\n\r\n", 400},
		{"another expectation", get + host + "Expect: the-best\r\n\r\n", 417},
		{"a WebSocket with a body", get + host + "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\n", 400},
		{"too many fields", get + host + strings.Repeat("a: b\r\n", maxFields) + "\r\n", 431},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parse(tt.head)
			var refused *Error
			if !errors.As(err, &refused) || refused.Status != tt.status {
				t.Errorf("%v, want a refusal with %d", err, tt.status)
			}
		})
	}
}

func TestResponses(t *testing.T) {
	tests := []struct {
		name, head, method string
		want               Response
		closes             bool
		forwarded          string
	}{
		{
			"a length", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nKeep-Alive: 5\r\nConnection: keep-alive\r\n\r\n", "GET",
			Response{Status: 200, Minor: 1, Kind: Length, Length: 3}, false, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
		},
		{
			"until the end", "HTTP/1.1 200 OK\r\n\r\n", "GET",
			Response{Status: 200, Minor: 1, Kind: UntilEOF, Close: true}, true, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
		},
		{
			"no body for HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "HEAD",
			Response{Status: 200, Minor: 1}, false, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
		},
		{
			"no body with 204", "HTTP/1.1 204\r\n\r\n", "GET",
			Response{Status: 204, Minor: 1}, false, "HTTP/1.1 204\r\n\r\n",
		},
		{
			"no body with 304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", "GET",
			Response{Status: 304, Minor: 1}, false, "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
		},
		{
			"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "GET",
			Response{Status: 200, Minor: 1, Kind: Chunked}, false, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		},
		{
			"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "GET",
			Response{Status: 200, Close: true}, true, "HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
		},
		{
			"a WebSocket", "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\r\n", "GET",
			Response{Status: 101, Minor: 1, WebSocket: true}, false, "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got Response
			if err := got.ParseResponse([]byte(tt.head), tt.method); err != nil {
				t.Fatal(err)
			}
			if forwarded := string(got.AppendHead(nil, tt.closes, 1)); forwarded != tt.forwarded {
				t.Errorf("passed on as %q, want %q", forwarded, tt.forwarded)
			}
			got.Fields, got.line = nil, ""
			if d := cmp.Diff(tt.want, got, cmp.AllowUnexported(Response{})); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
	for _, head := range []string{
		"HTTP/2 200 OK\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 099 x\r\n\r\n", "HTTP/1.1 600 x\r\n\r\n", "200 OK\r\n\r\n", "HTTP/1.1 2000\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX : y\r\n\r\n", "HTTP/1.1 200 O\x00K\r\n\r\n",
	} {
		var r Response
		if err := r.ParseResponse([]byte(head), "GET"); err == nil {
			t.Errorf("%q is taken", head)
		}
	}
}
