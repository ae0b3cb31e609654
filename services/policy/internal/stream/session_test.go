package stream_test

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"weir.dev/weir/internal/policyitem"
	"weir.dev/weir/internal/statelog"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/policy/internal/catalog"
	"weir.dev/weir/services/policy/internal/status"
	"weir.dev/weir/services/policy/internal/stream"
)

// client is the other end of a session.
type client struct {
	ctx  context.Context
	sent chan *policyv1.WatchPolicyResponse
	says chan *policyv1.WatchPolicyRequest
}

func (c *client) Context() context.Context { return c.ctx }

func (c *client) Send(r *policyv1.WatchPolicyResponse) error {
	c.sent <- r
	return nil
}

func (c *client) Recv() (*policyv1.WatchPolicyRequest, error) {
	select {
	case r := <-c.says:
		return r, nil
	case <-c.ctx.Done():
		return nil, io.EOF
	}
}

// next is what the session sends next.
func (c *client) next(t *testing.T) *policyv1.WatchPolicyResponse {
	t.Helper()
	select {
	case r := <-c.sent:
		return r
	case <-time.After(30 * time.Second):
		t.Fatal("the session sends nothing")
		return nil
	}
}

// A client that refuses is asked again after a pause that grows, and no longer
// than that if it says something else meanwhile.
func TestRefusalsInARowGrowThePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c := &client{ctx, make(chan *policyv1.WatchPolicyResponse), make(chan *policyv1.WatchPolicyRequest)}
		cat := catalog.New(slog.New(slog.DiscardHandler))
		cat.Apply(statelog.Batch{Reset: true, Complete: true, Copied: true, Generation: 1, Revision: 1})
		done := make(chan error, 1)
		go func() {
			done <- stream.Session{
				Node: "n1", Catalog: cat, Nodes: status.New(time.Now), Log: slog.New(slog.DiscardHandler),
				Sent: func([]*policyv1.WatchPolicyResponse) {},
			}.Serve(c)
		}()
		subscribe := &policyv1.Subscribe{}
		c.says <- &policyv1.WatchPolicyRequest{Message: &policyv1.WatchPolicyRequest_Hello{
			Hello: &policyv1.Hello{Digest: policyitem.Digest(nil), Subscribe: subscribe},
		}}
		var pauses []time.Duration
		for r := range 6 {
			at := time.Now()
			m := c.next(t)
			if r > 0 {
				pauses = append(pauses, time.Since(at))
			}
			c.says <- &policyv1.WatchPolicyRequest{Message: &policyv1.WatchPolicyRequest_Nack{Nack: &policyv1.Nack{Nonce: m.GetNonce()}}}
			c.says <- &policyv1.WatchPolicyRequest{Message: &policyv1.WatchPolicyRequest_Subscribe{Subscribe: subscribe}}
		}
		if want := []time.Duration{1 * time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second}; !slices.Equal(pauses, want) {
			t.Errorf("pauses %v, want %v", pauses, want)
		}
		m := c.next(t)
		c.says <- &policyv1.WatchPolicyRequest{Message: &policyv1.WatchPolicyRequest_Ack{Ack: &policyv1.Ack{Nonce: m.GetNonce(), Generation: 1, Revision: 1}}}
		cat.Apply(statelog.Batch{Complete: true, Copied: true, Generation: 1, Revision: 2})
		m = c.next(t)
		at := time.Now()
		c.says <- &policyv1.WatchPolicyRequest{Message: &policyv1.WatchPolicyRequest_Nack{Nack: &policyv1.Nack{Nonce: m.GetNonce()}}}
		c.next(t)
		if got := time.Since(at); got != time.Second {
			t.Errorf("after an ack the first pause is %v, want 1s", got)
		}
		cancel()
		if err := <-done; err == nil {
			t.Error("the session ended without its stream's error")
		}
	})
}
