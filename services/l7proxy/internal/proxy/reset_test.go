package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
)

// A server hears of its client's reset as a reset, as it would without a proxy.
func TestClientsResetIsTheServers(t *testing.T) {
	end := make(chan error, 1)
	b := before(t, func(c *net.TCPConn, br *bufio.Reader) {
		head(br)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		_, err := br.ReadByte()
		end <- err
	})
	c := b.dial()
	c.say(get("/public"))
	c.want(200, "ok")
	if err := errors.Join(c.SetLinger(0), c.Close()); err != nil {
		t.Fatal(err)
	}
	if err := <-end; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server's connection ended with %v, want a reset", err)
	}
}
