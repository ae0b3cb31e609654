package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// A client that leaves before the response is there does not leave the server
// waiting for it; one that only ends its half gets its response.
func TestClientEndsWhileItWaits(t *testing.T) {
	seen := make(chan error, 1)
	answer := make(chan struct{})
	b := before(t, func(c *net.TCPConn, br *bufio.Reader) {
		head(br)
		_, err := br.ReadByte()
		seen <- err
		<-answer
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
	})
	wantSeen := func(want error) {
		t.Helper()
		select {
		case err := <-seen:
			if !errors.Is(err, want) {
				t.Errorf("the server finds %v, want %v", err, want)
			}
		case <-time.After(5 * time.Second):
			t.Error("the server does not learn of it")
		}
	}
	c := b.dial()
	c.say(get("/public"))
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantSeen(io.EOF)
	answer <- struct{}{}
	c.want(200, "late")

	c = b.dial()
	c.say(get("/public"))
	if err := c.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	wantSeen(io.EOF)
	close(answer)
}

// A fault in the handling of one connection ends that one.
func TestPanicEndsOneConnection(t *testing.T) {
	b := before(t, func(c *net.TCPConn, br *bufio.Reader) {
		for head(br) != "" {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	c := b.dial()
	c.say(get("/public"))
	c.want(200, "ok")
	b.judged.mu.Lock()
	b.judged.broken = true
	b.judged.mu.Unlock()
	other := b.dial()
	other.say(get("/public"))
	other.wantEnd()
	c.say(get("/public")) // judged already, under this word
	c.want(200, "ok")
}
