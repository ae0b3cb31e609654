package proxy

import (
	"errors"
	"io"
	"strings"
	"time"

	"weir.dev/weir/engine/httprule"
	"weir.dev/weir/services/l7proxy/internal/http1"
)

// front reads requests until the connection cannot be used again.
func (s *session) front() {
	f := front{session: s}
	for f.next() {
	}
}

// A front holds what the front uses again for each request.
type front struct {
	*session
	req     http1.Request
	headers []httprule.Header
	out     []byte
}

// reusable returns a buffer to write to again, unless it is too large to keep.
func reusable(b []byte) []byte {
	if cap(b) > 8<<10 {
		return nil
	}
	return b
}

// next serves one request; false if there can be no other.
func (f *front) next() bool {
	if !f.between() {
		return false
	}
	head, err := f.head()
	if err != nil {
		f.refuse(err, Verdict{Rule: -1})
		return false
	}
	if head == nil {
		return false
	}
	n := len(head)
	if err := f.req.ParseRequest(head); err != nil {
		f.refuse(err, Verdict{Method: f.req.Method, Path: f.req.Target, Host: f.req.Host, Rule: -1})
		return false
	}
	f.in.Take(n)
	judged := f.judgedAs()
	d, number := f.judge(judged)
	v := Verdict{
		Flow: f.flow, Method: f.req.Method, Path: f.req.Target, Host: f.req.Host,
		RuleSet: number, Rule: d.Rule, Reason: d.Reason, Denied: !d.Allowed,
	}
	if !d.Allowed {
		return f.deny(v)
	}
	return f.pass(v, judged)
}

// head waits for a request's head. It returns nil at the connection's end.
func (f *front) head() ([]byte, error) {
	if len(f.in.Buffered()) == 0 {
		f.client.each, f.client.until = 0, time.Now().Add(f.p.cfg.Limits.Idle)
		err := f.in.Fill()
		if !f.begin(err) {
			return nil, nil // the end, a reset, idle for too long, or given away
		}
	}
	f.client.each, f.client.until = 0, time.Now().Add(f.p.cfg.Limits.Head)
	// RFC 9112 2.2: an empty line before a request is passed over.
	for len(f.in.Buffered()) < 2 {
		if err := f.in.Fill(); err != nil {
			return nil, nil
		}
	}
	if string(f.in.Buffered()[:2]) == "\r\n" {
		f.in.Take(2)
	}
	head, err := f.in.Head()
	var refused *http1.Error
	switch {
	case err == nil:
		return head, nil
	case errors.As(err, &refused):
		return nil, err
	case isTimeout(err):
		return nil, &http1.Error{Status: 408, Reason: ReasonSlow, Text: "the head took too long"}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, &http1.Error{Status: 400, Reason: http1.ReasonMalformed, Text: "the head has no end"}
	default:
		return nil, nil
	}
}

// ReasonSlow: a head took longer than the limit.
const ReasonSlow = "http-slow"

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// judgedAs returns what the rules see of the request.
func (f *front) judgedAs() httprule.Request {
	f.headers = f.headers[:0]
	for i := range f.req.Fields {
		f.headers = append(f.headers, httprule.Header{Name: f.req.Fields[i].Name, Value: f.req.Fields[i].Value})
	}
	return httprule.Request{Method: f.req.Method, Path: f.req.Target, Host: f.req.Host, Headers: f.headers}
}

// pass sends an allowed request to the server and waits for its response.
func (f *front) pass(v Verdict, judged httprule.Request) bool {
	if err := f.checkBody(); err != nil {
		v.Denied = true
		f.refuse(err, v)
		return false
	}
	ex := &exchange{
		method: f.req.Method, minor: f.req.Minor, webSocket: f.req.WebSocket,
		close: f.req.Close || f.p.draining.Load(), waits: f.req.Continue, result: make(chan result, 1),
	}
	f.exchanges <- ex
	err := f.send()
	var bad *http1.Error
	var unsent *http1.WriteError
	malformed := errors.As(err, &bad)
	if err != nil && !errors.As(err, &unsent) {
		// Half a request is with the server: it must never see the other half.
		f.server.wake()
	}
	res, ok := f.await(ex)
	if malformed && res.status == 0 {
		res.status = bad.Status
		_ = f.answer(bad.Status, text(bad.Status), true) // the client may be gone
	}
	v.Status = res.status
	f.note(v)
	switch {
	case err != nil:
		f.client.finish()
		return false
	case !ok:
		return false
	case res.tunnel:
		f.tunnelOut(judged)
		return false
	}
	return !res.close
}

// maxGoodbye bounds what is left of a WebSocket when one end has closed.
const maxGoodbye = 10 * time.Second

// tunnelOut copies what the client of a WebSocket sends.
func (f *front) tunnelOut(judged httprule.Request) {
	f.session.tunnel.Store(&judged)
	f.client.each, f.client.until = 0, time.Time{}
	relay(&f.server, f.in)
	close(f.outDone)
	t := time.NewTimer(maxGoodbye)
	defer t.Stop()
	select {
	case <-f.backDone:
	case <-t.C:
	}
}

// await waits for the response to have been passed on; false if the back has
// ended without one.
//
// A client that ends its half meanwhile, or is gone, is no longer read from, so
// its connection is looked at: the server learns of it as it would without a
// proxy.
func (f *front) await(ex *exchange) (result, bool) {
	look := time.NewTimer(lookAtClient)
	defer look.Stop()
	for waiting := true; waiting; {
		select {
		case res := <-ex.result:
			return res, true
		case <-f.backDone:
			waiting = false
		case <-look.C:
			switch f.client.look() {
			case quiet:
				look.Reset(lookAtClient)
			case ended:
				_ = f.server.tcp.CloseWrite() // an error: the server is gone, which the back finds
			case gone:
				f.server.wake()
			}
		}
	}
	select {
	case res := <-ex.result:
		return res, true
	default:
		return result{close: true}, false
	}
}

const lookAtClient = 250 * time.Millisecond

// firstChunk bounds the wait for a chunked body's beginning before its head is
// passed on without.
const firstChunk = 500 * time.Millisecond

// checkBody refuses a chunked body that begins malformed before the server
// has heard of the request.
func (f *front) checkBody() error {
	if f.req.Kind != http1.Chunked || f.req.Continue {
		return nil
	}
	f.client.each, f.client.until = 0, time.Now().Add(firstChunk)
	err := http1.CheckChunks(f.in)
	var bad *http1.Error
	if errors.As(err, &bad) {
		return bad
	}
	return nil // an end or an error is found again when the body is copied
}

// send passes the request on.
func (f *front) send() error {
	f.client.each = f.p.cfg.Limits.Body
	out := f.req.AppendHead(f.out[:0])
	f.out = reusable(out)
	return http1.Send(&f.server, out, f.in, f.req.Kind, f.req.Length)
}

// maxDrained bounds the body of a denied request that is read for the sake of
// the connection.
const maxDrained = 256 << 10

// deny answers 403. The connection lives on if the request's end can be told.
func (f *front) deny(v Verdict) bool {
	status, body := 403, "Access denied"
	if v.Reason == ReasonNoRuleSet {
		status, body = 503, text(503)
	}
	lives := !f.req.Close && !f.req.Continue && v.Reason != ReasonNoJudgement && !f.p.draining.Load() &&
		(f.req.Kind != http1.Length || f.req.Length <= maxDrained)
	v.Status = status
	f.note(v)
	if !f.answer(status, body, !lives) || !lives {
		f.client.finish()
		return false
	}
	f.client.each = f.p.cfg.Limits.Head
	if err := http1.CopyBody(&capped{left: maxDrained}, f.in, f.req.Kind, f.req.Length); err != nil {
		f.client.finish()
		return false
	}
	return true
}

// capped is a writer that takes only so much.
type capped struct{ left int }

var errCapped = errors.New("the body of a denied request is too long")

func (c *capped) Write(b []byte) (int, error) {
	if c.left -= len(b); c.left < 0 {
		return 0, errCapped
	}
	return len(b), nil
}

// refuse answers a request that could not be read, and ends the connection.
func (f *front) refuse(err error, v Verdict) {
	var bad *http1.Error
	if !errors.As(err, &bad) {
		return
	}
	v.Flow, v.Denied, v.Reason, v.Status = f.flow, true, bad.Reason, bad.Status
	f.note(v)
	_ = f.answer(bad.Status, text(bad.Status), true) // the client may be gone
	f.client.finish()
}

// answer writes a response of the proxy's own; false if the client is gone.
func (f *front) answer(status int, body string, closes bool) bool {
	_, err := f.client.Write(appendAnswer(nil, status, body, closes, f.req.Method == "HEAD", f.req.Minor))
	return err == nil
}

// note counts and reports a verdict. Its strings are copied: they share the
// memory of a whole head.
func (f *front) note(v Verdict) {
	v.Time = time.Now()
	v.Method, v.Path, v.Host = clip(v.Method), clip(v.Path), clip(v.Host)
	f.p.cfg.Metrics.request(v)
	f.p.cfg.Verdict(v)
}

// clip copies a string, or as much of it as is worth keeping.
func clip(s string) string {
	return strings.Clone(s[:min(len(s), 1024)])
}
