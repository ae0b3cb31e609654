package proxy

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"testing"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/l7proxy/internal/rules"
)

// BenchmarkKeepAlive is one small exchange on a connection that stays, with a
// client and a server that do as little as they can: what it shows is mostly
// the proxy and its system calls.
func BenchmarkKeepAlive(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 4096)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"); err != nil {
						return
					}
				}
			}()
		}
	}()
	set, err := rules.Compile([][]rule.HTTPRule{{{Method: str("GET"), Path: str("/public(/.*)?")}}})
	if err != nil {
		b.Fatal(err)
	}
	var table rules.Table
	table.Apply(map[uint32]*rules.Set{public: set}, true)
	p := New(Config{
		Rules: &table, Connections: &judged{word: 2, number: public}, Dialer: dialTo{ln.Addr().String()}, Limits: DefaultLimits(),
	}, slog.New(slog.DiscardHandler))
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = p.Serve(b.Context(), front, Ingress) }()
	c, err := net.Dial("tcp", front.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	br := bufio.NewReader(c)
	request := []byte("GET /public/a/b/c?d=e HTTP/1.1\r\nHost: app1-service\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	buf := make([]byte, 1024)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(request); err != nil {
			b.Fatal(err)
		}
		if _, err := br.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}
