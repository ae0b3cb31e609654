package status

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/logkey"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

const (
	// shareEvery bounds how often a table that changed is told, gather how long
	// after the change the first time.
	shareEvery = time.Second
	gather     = 40 * time.Millisecond
	// aliveEvery is how often one that did not is.
	aliveEvery = 2 * time.Second
)

// Exchange tells the other replicas this one's table, and takes in theirs,
// until ctx ends.
func (n *Nodes) Exchange(ctx context.Context, nc *nats.Conn, replica string, log *slog.Logger) error {
	subject := bus.Acks + strings.ReplaceAll(replica, ".", "-")
	sub, err := nc.Subscribe(bus.Acks+"*", func(m *nats.Msg) {
		if m.Subject == subject {
			return
		}
		t := &policyv1.GetStatusResponse{}
		if err := proto.Unmarshal(m.Data, t); err != nil {
			log.Warn("table of another replica cannot be read", logkey.Replica, m.Subject, logkey.Error, err)
			return
		}
		n.Merge(m.Subject, t.GetNodes())
	})
	if err != nil {
		return fmt.Errorf("subscribe to the replicas' tables: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	share := func() error {
		nodes, version := n.Own()
		text, err := proto.Marshal(&policyv1.GetStatusResponse{Replica: replica, Nodes: nodes})
		if err == nil {
			err = nc.Publish(subject, text)
		}
		if err == nil {
			n.told(version)
		}
		return err
	}
	for {
		if err := n.untilDue(ctx); err != nil {
			return nil // ctx has ended
		}
		if err := share(); err != nil && nc.IsConnected() {
			log.Warn("table not told to the other replicas", logkey.Error, err)
		}
		if !pause(ctx, shareEvery) {
			return nil
		}
	}
}

// untilDue returns a moment after this replica's table has changed, so that the
// nodes that follow at once are told with the first; or when it is time to show
// that the replica lives.
func (n *Nodes) untilDue(ctx context.Context) error {
	alive := time.NewTimer(aliveEvery - shareEvery)
	defer alive.Stop()
	for {
		changed := n.Changed()
		if n.untold() {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-alive.C:
			return nil
		case <-changed:
		}
	}
	if !pause(ctx, gather) {
		return ctx.Err()
	}
	return nil
}

// pause waits for d; it tells whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
