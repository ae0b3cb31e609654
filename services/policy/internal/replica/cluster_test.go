package replica_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/natstest"
	"weir.dev/weir/internal/policyitem"
	kitserver "weir.dev/weir/internal/server"
	"weir.dev/weir/internal/statelog"
	"weir.dev/weir/internal/tlsconf"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/policy/internal/replica"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 30 * time.Second

// all is what today's enforcer understands.
var all = []string{"deny", "http", "http.headers", "named-ports", "services", "tiers"}

// cluster is NATS, a folder of policies, and the log as identity writes it.
type cluster struct {
	t     *testing.T
	nats  *natstest.Server
	dir   string
	log   *statelog.Writer
	state jetstream.KeyValue
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, nats: natstest.Start(t), dir: t.TempDir()}
	js := c.nats.JetStream(t, tlsconf.Identity, "identity-0")
	open := bus.Cached(func(ctx context.Context) (jetstream.KeyValue, error) { return bus.State(ctx, js) })
	c.log = statelog.NewWriter(open)
	var err error
	if c.state, err = open(c.ctx()); err != nil {
		t.Fatal(err)
	}
	// An identity is in force once its namespace is known.
	c.put(statelog.NamespaceKey("default"), &identityv1.Namespace{Name: "default"})
	return c
}

func (c *cluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	c.t.Cleanup(cancel)
	return ctx
}

func (c *cluster) write(name, text string) {
	c.t.Helper()
	path := filepath.Join(c.dir, name+".yaml")
	if err := os.WriteFile(path+".next", []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(path+".next", path); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) remove(name string) {
	c.t.Helper()
	if err := os.Remove(filepath.Join(c.dir, name+".yaml")); err != nil {
		c.t.Fatal(err)
	}
}

// put writes an entry of the log as identity does, and returns its revision.
func (c *cluster) put(key statelog.Key, value proto.Message) uint64 {
	c.t.Helper()
	rev, _, err := c.log.Put(c.ctx(), key, value)
	if err != nil {
		c.t.Fatal(err)
	}
	return rev
}

// identity enters the identity of pods with the label id in a namespace.
func (c *cluster) identity(namespace, id string) (hash []byte, revision uint64) {
	c.t.Helper()
	v := &identityv1.Identity{
		Cluster: "test", Namespace: namespace, ServiceAccount: "default",
		Labels: []*identityv1.Label{{Key: "id", Value: id}},
	}
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(v)
	if err != nil {
		c.t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	return sum[:], c.put(statelog.IdentityKey(sum[:]), v)
}

func (c *cluster) head() uint64 {
	c.t.Helper()
	h, err := bus.HeadOf(c.ctx(), c.state)
	if err != nil {
		c.t.Fatal(err)
	}
	return h.Sequence
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// running is a weir-policy.
type running struct {
	c      *cluster
	listen string
	socket string
	http   string
	stop   func()
}

func (c *cluster) start(name string) *running { c.t.Helper(); return c.startWith(name, nil) }

// startWith starts a replica whose replay passes hold before each batch.
func (c *cluster) startWith(name string, hold func(ctx context.Context, b statelog.Batch)) *running {
	c.t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	dir := c.t.TempDir()
	r := &running{c: c, listen: lis.Addr().String(), socket: filepath.Join(dir, "s"), http: filepath.Join(dir, "h")}
	if err := lis.Close(); err != nil {
		c.t.Fatal(err)
	}
	cfg := replica.Config{
		Name: name, Cluster: "test", NATS: c.nats.URL, Manifests: []string{c.dir},
		Server: kitserver.Config{Listen: r.listen, Socket: r.socket, HTTP: r.http, TLSDir: c.nats.Issue(c.t, tlsconf.Policy, name)},
	}
	if hold != nil {
		cfg.Replay = func(ctx context.Context, open bus.Opener, log *slog.Logger, apply func(statelog.Batch)) {
			statelog.Replay(ctx, open, log, func(b statelog.Batch) {
				hold(ctx, b)
				apply(b)
			})
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- replica.Run(ctx, cfg, slog.New(slog.DiscardHandler)) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("%s: %v", name, err)
		}
	}
	c.t.Cleanup(r.stop)
	return r
}

func (r *running) operator() policyv1.PolicyServiceClient {
	r.c.t.Helper()
	return r.dial("unix://"+r.socket, insecure.NewCredentials())
}

func (r *running) as(role tlsconf.Role, name string) policyv1.PolicyServiceClient {
	r.c.t.Helper()
	conf, err := tlsconf.Client(r.c.nats.Issue(r.c.t, role, name), tlsconf.Policy)
	if err != nil {
		r.c.t.Fatal(err)
	}
	return r.dial("passthrough:///"+r.listen, credentials.NewTLS(conf))
}

func (r *running) dial(target string, creds credentials.TransportCredentials) policyv1.PolicyServiceClient {
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		r.c.t.Fatal(err)
	}
	r.c.t.Cleanup(func() { _ = conn.Close() })
	return policyv1.NewPolicyServiceClient(conn)
}

// at waits until the replica serves the revision.
func (r *running) at(revision uint64) *running {
	r.c.t.Helper()
	client := r.operator()
	eventually(r.c.t, fmt.Sprintf("the replica serves revision %d", revision), func() error {
		st, err := client.GetStatus(r.c.ctx(), &policyv1.GetStatusRequest{})
		if err == nil && (st.GetRevision() < revision || st.GetGeneration() == 0) {
			err = fmt.Errorf("at %d", st.GetRevision())
		}
		return err
	})
	return r
}

// policies waits until the log has so many policies.
func (r *running) policies(n int) *policyv1.ListPoliciesResponse {
	r.c.t.Helper()
	client := r.operator()
	var list *policyv1.ListPoliciesResponse
	eventually(r.c.t, fmt.Sprintf("%d policies", n), func() (err error) {
		list, err = client.ListPolicies(r.c.ctx(), &policyv1.ListPoliciesRequest{})
		if err == nil && len(list.GetPolicies()) != n {
			err = fmt.Errorf("policies %v, refused %v", list.GetPolicies(), list.GetRefused())
		}
		return err
	})
	return list
}

// node is a client that holds items as an enforcer does.
type node struct {
	t      *testing.T
	name   string
	caps   []string
	subs   [][]byte
	stream grpc.BidiStreamingClient[policyv1.WatchPolicyRequest, policyv1.WatchPolicyResponse]
	close  context.CancelFunc

	items      map[policyitem.Key]*policyv1.Item
	generation uint64
	revision   uint64
	// Of the last difference.
	full     bool
	upserts  int
	changes  int
	removals int
	bytes    int
	parts    int
	digest   []byte
}

func newNode(t *testing.T, name string, caps []string, subs ...[]byte) *node {
	return &node{t: t, name: name, caps: caps, subs: subs, items: map[policyitem.Key]*policyv1.Item{}}
}

// watch opens a stream to a replica with what the node holds.
func (n *node) watch(r *running) *node {
	n.t.Helper()
	if n.close != nil {
		n.close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	n.t.Cleanup(cancel)
	n.close = cancel
	var err error
	if n.stream, err = r.as(tlsconf.Node, n.name).WatchPolicy(ctx); err != nil {
		n.t.Fatal(err)
	}
	hello := &policyv1.Hello{
		Capabilities: n.caps, Version: "test", Generation: n.generation, Revision: n.revision,
		Digest: policyitem.Digest(n.versions()), Subscribe: &policyv1.Subscribe{Identities: n.subs},
	}
	for k, v := range n.versions() {
		hello.Items = append(hello.Items, &policyv1.ItemVersion{Kind: k.Kind, Key: []byte(k.Key), Version: v})
	}
	n.send(&policyv1.WatchPolicyRequest{Message: &policyv1.WatchPolicyRequest_Hello{Hello: hello}})
	return n
}

func (n *node) send(m *policyv1.WatchPolicyRequest) {
	n.t.Helper()
	if err := n.stream.Send(m); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) subscribe(ids ...[]byte) {
	n.t.Helper()
	n.subs = ids
	n.send(&policyv1.WatchPolicyRequest{Message: &policyv1.WatchPolicyRequest_Subscribe{Subscribe: &policyv1.Subscribe{Identities: ids}}})
}

func (n *node) versions() map[policyitem.Key]uint64 {
	out := map[policyitem.Key]uint64{}
	for k, it := range n.items {
		v, err := policyitem.Version(it)
		if err != nil {
			n.t.Fatal(err)
		}
		out[k] = v
	}
	return out
}

// receive takes one whole difference in, without an answer.
func (n *node) receive() uint64 {
	n.t.Helper()
	next := maps.Clone(n.items)
	n.upserts, n.changes, n.removals, n.bytes, n.parts = 0, 0, 0, 0, 0
	for {
		r, err := n.stream.Recv()
		if err != nil {
			n.t.Fatalf("%s: %v", n.name, err)
		}
		if n.full = r.GetFull(); n.full && n.parts == 0 {
			next = map[policyitem.Key]*policyv1.Item{}
		}
		n.parts++
		n.bytes += proto.Size(r)
		for _, k := range r.GetRemovals() {
			n.removals++
			delete(next, policyitem.Key{Kind: k.GetKind(), Key: string(k.GetKey())})
		}
		for _, c := range r.GetSelectorChanges() {
			n.changes++
			k := policyitem.Key{Kind: policyv1.ItemKind_ITEM_KIND_SELECTOR, Key: string(c.GetId())}
			sel := proto.CloneOf(next[k].GetSelector())
			sel.Identities = slices.DeleteFunc(sel.Identities, func(m uint64) bool { return slices.Contains(c.GetRemoved(), m) })
			sel.Identities = append(sel.Identities, c.GetAdded()...)
			slices.Sort(sel.Identities)
			next[k] = &policyv1.Item{Item: &policyv1.Item_Selector{Selector: sel}}
		}
		for _, it := range r.GetUpserts() {
			n.upserts++
			k, err := policyitem.KeyOf(it)
			if err != nil {
				n.t.Fatal(err)
			}
			next[k] = it
		}
		if !r.GetEnd() {
			continue
		}
		n.items, n.digest = next, r.GetDigest()
		if got := policyitem.Digest(n.versions()); !bytes.Equal(got, n.digest) {
			n.t.Fatalf("%s: digest at revision %d is %x, want %x", n.name, r.GetRevision(), got, n.digest)
		}
		if r.GetGeneration() == n.generation && r.GetRevision() < n.revision {
			n.t.Fatalf("%s: taken back from revision %d to %d", n.name, n.revision, r.GetRevision())
		}
		n.generation, n.revision = r.GetGeneration(), r.GetRevision()
		return r.GetNonce()
	}
}

// next takes one difference in and acknowledges it.
func (n *node) next() {
	n.t.Helper()
	nonce := n.receive()
	n.send(&policyv1.WatchPolicyRequest{Message: &policyv1.WatchPolicyRequest_Ack{Ack: &policyv1.Ack{
		Nonce: nonce, Generation: n.generation, Revision: n.revision,
	}}})
}

// until takes differences in until the node is at the revision.
func (n *node) until(revision uint64) {
	n.t.Helper()
	for n.revision < revision {
		n.next()
	}
}

// count is how many items of a kind the node holds.
func (n *node) count(kind policyv1.ItemKind) int {
	c := 0
	for k := range n.items {
		if k.Kind == kind {
			c++
		}
	}
	return c
}
