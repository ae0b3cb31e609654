package bus

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// callLimit bounds one request to the server, whatever its caller's patience:
// an answer that was lost with a connection never comes.
const callLimit = 4 * time.Second

// limited is a bucket whose requests are bounded. Watching is not.
type limited struct{ jetstream.KeyValue }

// Get is bounded.
func (l limited) Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return l.KeyValue.Get(ctx, key)
}

// Put is bounded.
func (l limited) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return l.KeyValue.Put(ctx, key, value)
}

// Create is bounded.
func (l limited) Create(ctx context.Context, key string, value []byte, opts ...jetstream.KVCreateOpt) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return l.KeyValue.Create(ctx, key, value, opts...)
}

// Update is bounded.
func (l limited) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return l.KeyValue.Update(ctx, key, value, revision)
}

// Delete is bounded.
func (l limited) Delete(ctx context.Context, key string, opts ...jetstream.KVDeleteOpt) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return l.KeyValue.Delete(ctx, key, opts...)
}

// Status is bounded.
func (l limited) Status(ctx context.Context) (jetstream.KeyValueStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return l.KeyValue.Status(ctx)
}
