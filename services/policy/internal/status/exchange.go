package status

import (
	"context"
	"errors"
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
	// shareEvery bounds how often a table that changed is told.
	shareEvery = time.Second
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
	tick := time.NewTicker(shareEvery)
	defer tick.Stop()
	var told uint64
	var at time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		nodes, version := n.Own()
		if version == told && time.Since(at) < aliveEvery {
			continue
		}
		text, err := proto.Marshal(&policyv1.GetStatusResponse{Replica: replica, Nodes: nodes})
		if err == nil {
			err = nc.Publish(subject, text)
		}
		if err != nil {
			if !errors.Is(err, nats.ErrReconnectBufExceeded) && nc.IsConnected() {
				log.Warn("table not told to the other replicas", logkey.Error, err)
			}
			continue
		}
		told, at = version, time.Now()
	}
}
