package proxy

import (
	"errors"
	"io"
	"time"

	"weir.dev/weir/services/l7proxy/internal/http1"
)

// back reads the server's responses until the connection cannot be used again.
func (s *session) back() {
	b := back{session: s}
	for b.next() {
	}
}

// A back holds what the back uses again for each response.
type back struct {
	*session
	resp http1.Response
	ex   *exchange // whose final response is still to come
	head []byte    // to write to again
}

// next passes one response on, interim ones included; false if there can be
// no other.
func (b *back) next() bool {
	b.server.each = 0
	head, err := b.out.Head()
	if b.ex == nil {
		select {
		case b.ex = <-b.exchanges:
		default:
			// Given away; or the server has closed, or speaks unasked.
			b.backIdle = errors.Is(err, errPaused) && len(b.out.Buffered()) == 0
			return false
		}
	}
	if err != nil {
		return b.fail(err)
	}
	n := len(head)
	if err := b.resp.ParseResponse(head, b.ex.method); err != nil {
		return b.fail(err)
	}
	b.out.Take(n)
	switch {
	case b.resp.Status == 101:
		return b.switched()
	case b.resp.Status < 200:
		return b.interim()
	default:
		return b.final()
	}
}

// fail ends an exchange without a response from the server. If the server just
// closed, so does the proxy: that is what the client would see without it.
func (b *back) fail(err error) bool {
	res := result{close: true}
	var bad *http1.Error
	if errors.As(err, &bad) {
		res.status = 502
		b.p.cfg.Metrics.badResponses.Inc()
		// An error says that the client is gone.
		_, _ = b.client.Write(appendAnswer(nil, 502, text(502), true, b.ex.method == "HEAD", b.ex.minor))
	}
	b.ex.result <- res
	return false
}

func (b *back) interim() bool {
	if b.resp.Status == 100 {
		b.ex.waits = false
	}
	if b.ex.minor == 0 {
		return true
	}
	if _, err := b.client.Write(b.resp.AppendHead(nil, false, b.ex.minor)); err != nil {
		b.ex.result <- result{close: true}
		return false
	}
	return true
}

// final passes the response on and ends the exchange.
func (b *back) final() bool {
	if b.resp.Kind == http1.Chunked && b.ex.minor == 0 {
		return b.fail(&http1.Error{Status: 502, Reason: http1.ReasonFraming, Text: "chunks for an HTTP/1.0 client"})
	}
	// Who got no 100 may send the body or not: what comes next is not certain.
	unsent := b.ex.waits
	closes := b.ex.close || b.resp.Close || unsent
	head := b.resp.AppendHead(b.head[:0], closes, b.ex.minor)
	b.head = reusable(head)
	err := http1.Send(&b.client, head, b.out, b.resp.Kind, b.resp.Length)
	ex := b.ex
	b.ex = nil
	if err != nil {
		// The client must not take half a response for a whole one.
		b.cut()
		closes = true
	}
	ex.result <- result{status: b.resp.Status, close: closes}
	if unsent {
		b.client.wake()
	}
	return !closes
}

// switched leaves HTTP for a WebSocket that was asked for. The server's other
// switches end the connection: nobody could judge what follows.
func (b *back) switched() bool {
	if !b.ex.webSocket || !b.resp.WebSocket {
		b.p.cfg.Metrics.badResponses.Inc()
		b.ex.result <- result{close: true}
		return false
	}
	if _, err := b.client.Write(b.resp.AppendHead(nil, false, b.ex.minor)); err != nil {
		b.ex.result <- result{close: true}
		return false
	}
	b.p.cfg.Metrics.tunnels.Inc()
	b.ex.result <- result{status: 101, tunnel: true}
	b.ex = nil
	relay(&b.client, b.out)
	t := time.NewTimer(maxGoodbye)
	defer t.Stop()
	select {
	case <-b.outDone:
	case <-t.C:
	}
	return false
}

// relay copies what comes until it ends, and ends the other half then.
func relay(dst *side, src *http1.Reader) {
	err := http1.CopyBody(dst, src, http1.UntilEOF, 0)
	if err == nil || errors.Is(err, io.EOF) {
		// An error says that the peer is gone, which its reader finds too.
		_ = dst.tcp.CloseWrite()
	}
}
