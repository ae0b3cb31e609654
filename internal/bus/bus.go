// Package bus connects Weir's parts to NATS and sets up what they keep there:
// the buckets of the state log, of the addresses and of the leases.
//
// It imports logkey, tlsconf and nats.go.
package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"weir.dev/weir/internal/logkey"
	"weir.dev/weir/internal/tlsconf"
)

// Names of buckets and subjects.
const (
	StateBucket   = "weir-state"
	AddressBucket = "weir-addresses"
	LeaseBucket   = "weir-leases"

	// Addresses is where writes to the address bucket are republished, each
	// under the key's last token, with the headers below.
	Addresses      = "weir.address."
	AllAddresses   = Addresses + ">"
	AddressHead    = "weir.addresshead"
	Acks           = "weir.acks."
	SequenceHeader = "Nats-Sequence"
	// PreviousHeader holds the sequence of the previous write to the same key;
	// zero: none.
	PreviousHeader = "Nats-Last-Sequence"
	// TimeHeader holds when the write entered the stream, as RFC 3339.
	TimeHeader = "Nats-Time-Stamp"
	// OperationHeader is set on a removal ("DEL" or "PURGE"), which has no body.
	OperationHeader = "KV-Operation"
)

// LeaseTTL is how long a lease outlives its holder's last renewal.
const LeaseTTL = 3 * time.Second

// Limits of the wait between two attempts to connect.
const (
	minDelay = 100 * time.Millisecond
	maxDelay = 3 * time.Second
)

// Config says whom to connect to, and as whom.
type Config struct {
	URL    string // tls://HOST:PORT, several separated by commas
	TLSDir string
	Role   tlsconf.Role // of the certificate in TLSDir
	Name   string       // of the node or replica, for people who read the server's log
}

// Connect returns a connection that keeps trying for ever, from the first
// attempt on: it need not be connected yet. The caller closes it.
func Connect(cfg Config, log *slog.Logger) (*nats.Conn, error) {
	conf, err := tlsconf.Client(cfg.TLSDir, tlsconf.NATS)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	return connect(cfg, conf, log)
}

func connect(cfg Config, conf *tls.Config, log *slog.Logger) (*nats.Conn, error) {
	nc, err := nats.Connect(cfg.URL,
		nats.Name(string(cfg.Role)+"/"+cfg.Name),
		nats.Secure(conf),
		nats.TLSHandshakeFirst(),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(),
		nats.CustomReconnectDelay(delay),
		nats.CustomInboxPrefix("_INBOX."+string(cfg.Role)),
		// A dead server is noticed within two of these.
		nats.PingInterval(5*time.Second),
		nats.MaxPingsOutstanding(2),
		// Writes while disconnected fail at once; their callers try again.
		nats.ReconnectBufSize(-1),
		nats.ConnectHandler(func(c *nats.Conn) {
			log.Info("connected to NATS", logkey.Address, c.ConnectedAddr())
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("connection to NATS lost", logkey.Error, err)
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) {
			log.Info("connected to NATS again", logkey.Address, c.ConnectedAddr())
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			// The owner of a subscription sees the gap by sequence and repairs it.
			if sub != nil {
				log.Warn("subscription to NATS disturbed", logkey.Name, sub.Subject, logkey.Error, err)
				return
			}
			log.Warn("NATS reports", logkey.Error, err)
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w", cfg.URL, err)
	}
	return nc, nil
}

// delay grows with the attempts and is jittered, so that not everybody comes
// back at once.
func delay(attempts int) time.Duration {
	d := maxDelay
	if attempts < 5 {
		d = min(d, minDelay<<attempts)
	}
	return d/2 + rand.N(d)
}

// State opens the bucket of the state log, and makes it if it is not there.
func State(ctx context.Context, js jetstream.JetStream) (jetstream.KeyValue, error) {
	return bucket(ctx, js, jetstream.KeyValueConfig{
		Bucket:       StateBucket,
		Description:  "Weir's state log: identities, namespaces, services, policies",
		History:      1,
		MaxValueSize: 3 << 20,
		Storage:      jetstream.FileStorage,
	})
}

// AddressRecords opens the bucket of the address records, and makes it if it is
// not there.
func AddressRecords(ctx context.Context, js jetstream.JetStream) (jetstream.KeyValue, error) {
	return bucket(ctx, js, jetstream.KeyValueConfig{
		Bucket:       AddressBucket,
		Description:  "Weir's address records",
		History:      1,
		MaxValueSize: 64 << 10,
		Storage:      jetstream.FileStorage,
		RePublish:    &jetstream.RePublish{Source: "$KV." + AddressBucket + ".>", Destination: AllAddresses},
	})
}

// Leases opens the bucket of the leases, and makes it if it is not there.
func Leases(ctx context.Context, js jetstream.JetStream) (jetstream.KeyValue, error) {
	return bucket(ctx, js, jetstream.KeyValueConfig{
		Bucket:       LeaseBucket,
		Description:  "who of Weir's replicas copies sources into the log",
		History:      1,
		TTL:          LeaseTTL,
		MaxValueSize: 256,
		Storage:      jetstream.MemoryStorage,
	})
}

// bucket makes the bucket or finds it. A bucket that is there with another
// configuration (more replicas, say) is the operator's choice and used as it is.
func bucket(ctx context.Context, js jetstream.JetStream, cfg jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	kv, err := js.CreateKeyValue(ctx, cfg)
	if errors.Is(err, jetstream.ErrBucketExists) {
		kv, err = js.KeyValue(ctx, cfg.Bucket)
	}
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", cfg.Bucket, err)
	}
	return limited{kv}, nil
}

// A Head is the end of a stream, and which stream it is: one that was made
// anew has another time of creation.
type Head struct {
	Sequence uint64
	Created  time.Time
}

// HeadOf asks the server for a bucket's head.
func HeadOf(ctx context.Context, kv jetstream.KeyValue) (Head, error) {
	st, err := kv.Status(ctx)
	if err != nil {
		return Head{}, fmt.Errorf("ask for the head of %s: %w", kv.Bucket(), err)
	}
	s, ok := st.(*jetstream.KeyValueBucketStatus)
	if !ok {
		return Head{}, fmt.Errorf("ask for the head of %s: a status of type %T", kv.Bucket(), st)
	}
	in := s.StreamInfo()
	return Head{Sequence: in.State.LastSeq, Created: in.Created}, nil
}

// Cached returns an opener that opens once and remembers, for writers. It is
// safe for concurrent use.
func Cached(open Opener) Opener {
	var mu sync.Mutex
	var kv jetstream.KeyValue
	return func(ctx context.Context) (jetstream.KeyValue, error) {
		mu.Lock()
		defer mu.Unlock()
		if kv != nil {
			return kv, nil
		}
		opened, err := open(ctx)
		if err != nil {
			return nil, err
		}
		kv = opened
		return kv, nil
	}
}
