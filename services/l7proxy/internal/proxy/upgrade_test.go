package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"weir.dev/weir/services/l7proxy/internal/http1"
)

func webSocketServer(c *net.TCPConn, br *bufio.Reader) {
	head(br)
	_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello ")
	_, _ = io.Copy(c, br)
}

const webSocket = "GET /public HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

func TestWebSocket(t *testing.T) {
	b := before(t, webSocketServer)
	c := b.dial()
	c.say(webSocket + "there")
	if first := head(c.br); !strings.HasPrefix(first, "HTTP/1.1 101 ") {
		t.Fatalf("response %q", first)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(c.br); err != nil || string(all) != "hello there" {
		t.Errorf("%q, %v", all, err)
	}
	if v := b.verdict(); v.Status != 101 || v.Denied {
		t.Errorf("verdict %+v", v)
	}
}

// An open WebSocket ends when the policy would refuse it.
func TestWebSocketEndsWithItsPolicy(t *testing.T) {
	b := before(t, webSocketServer)
	c := b.dial()
	c.say(webSocket)
	head(c.br)
	b.judged.flip(public) // another word, the same verdict
	for range 5 {
		c.say("x")
		if got, err := c.br.ReadByte(); err != nil {
			t.Fatalf("%q, %v: the WebSocket ended though it is allowed", got, err)
		}
	}
	b.judged.flip(nothing)
	if _, err := io.ReadAll(c.br); err == nil {
		t.Error("the WebSocket ends in peace, want a reset")
	}
}

func TestRefusedUpgrades(t *testing.T) {
	b := behind(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header.Get("Upgrade"), r.Header.Get("Http2-Settings"), r.Header.Get("Connection"))
	})
	c := b.dial()
	c.say("GET /public HTTP/1.1\r\nHost: app\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n")
	c.want(200, "")
	c.say("CONNECT app:80 HTTP/1.1\r\nHost: app:80\r\n\r\n")
	c.want(405, "Method Not Allowed")
	c.wantEnd()
	c = b.dial()
	c.say("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	c.want(505, "HTTP Version Not Supported")
	c.wantEnd()
	b.verdict()
	for _, want := range []string{http1.ReasonConnect, http1.ReasonVersion} {
		if v := b.verdict(); v.Reason != want {
			t.Errorf("verdict %+v, want reason %s", v, want)
		}
	}
}
