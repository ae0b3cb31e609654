package replica_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/natstest"
	kitserver "weir.dev/weir/internal/server"
	"weir.dev/weir/internal/tlsconf"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	"weir.dev/weir/services/identity/internal/replica"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 30 * time.Second

// cluster is NATS, a folder of manifests, and replicas that the test starts.
type cluster struct {
	t    *testing.T
	nats *natstest.Server
	dir  string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, nats: natstest.Start(t), dir: t.TempDir()}
	c.write("ns", "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n")
	return c
}

func (c *cluster) write(name, format string, args ...any) {
	c.t.Helper()
	path := filepath.Join(c.dir, name+".yaml")
	if err := os.WriteFile(path+".next", fmt.Appendf(nil, format, args...), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(path+".next", path); err != nil {
		c.t.Fatal(err)
	}
}

// pod writes a pod; labels are "key: value, key: value".
func (c *cluster) pod(name, uid, node, labels string) {
	c.t.Helper()
	c.write(name, "apiVersion: v1\nkind: Pod\nmetadata: {name: %s, uid: %s, labels: {%s}}\nspec: {nodeName: %s, containers: [{name: c, image: i}]}\n",
		name, uid, labels, node)
}

func (c *cluster) remove(name string) {
	c.t.Helper()
	if err := os.Remove(filepath.Join(c.dir, name+".yaml")); err != nil {
		c.t.Fatal(err)
	}
}

// replica is a running weir-identity.
type running struct {
	c      *cluster
	listen string
	socket string
	http   string
	stop   func()
}

func (c *cluster) start(name string) *running {
	c.t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	r := &running{c: c, listen: lis.Addr().String(), socket: filepath.Join(c.t.TempDir(), "s"), http: filepath.Join(c.t.TempDir(), "h")}
	if err := lis.Close(); err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- replica.Run(ctx, replica.Config{
			Name: name, Cluster: "test", NATS: c.nats.URL, Manifests: []string{c.dir},
			Server: kitserver.Config{Listen: r.listen, Socket: r.socket, HTTP: r.http, TLSDir: c.nats.Issue(c.t, tlsconf.Identity, name)},
		}, slog.New(slog.DiscardHandler))
	}()
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

func (r *running) dial(target string, creds credentials.TransportCredentials) identityv1.IdentityServiceClient {
	r.c.t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		r.c.t.Fatal(err)
	}
	r.c.t.Cleanup(func() { _ = conn.Close() })
	return identityv1.NewIdentityServiceClient(conn)
}

// as returns a client with a certificate of the role.
func (r *running) as(role tlsconf.Role, name string) identityv1.IdentityServiceClient {
	r.c.t.Helper()
	conf, err := tlsconf.Client(r.c.nats.Issue(r.c.t, role, name), tlsconf.Identity)
	if err != nil {
		r.c.t.Fatal(err)
	}
	return r.dial("passthrough:///"+r.listen, credentials.NewTLS(conf))
}

func (r *running) operator() identityv1.IdentityServiceClient {
	r.c.t.Helper()
	return r.dial("unix://"+r.socket, insecure.NewCredentials())
}

func (c *cluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	c.t.Cleanup(cancel)
	return ctx
}

// ready waits until the replica has replayed.
func (r *running) ready() *running {
	r.c.t.Helper()
	r.eventually("the replica replays", func() error {
		_, err := r.operator().Lookup(r.c.ctx(), &identityv1.LookupRequest{Address: []byte{10, 0, 0, 1}})
		return err
	})
	return r
}

func (r *running) eventually(what string, f func() error) {
	r.c.t.Helper()
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
			r.c.t.Fatalf("%s: %v", what, err)
		}
	}
}

func addr(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

func register(name, uid string, addrs ...string) *identityv1.RegisterRequest {
	req := &identityv1.RegisterRequest{Namespace: "default", Name: name, PodUid: uid}
	for _, a := range addrs {
		req.Addresses = append(req.Addresses, addr(a))
	}
	return req
}

func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("%s: got %v (%v), want %v", what, got, err, want)
	}
}

func TestRegisterAndSnapshot(t *testing.T) {
	c := newCluster(t)
	c.pod("app2", "u2", "n1", "id: app2, pod-template-hash: x")
	r := c.start("identity-0").ready()
	n1 := r.as(tlsconf.Node, "n1")

	sub, err := c.nats.Connect(t, tlsconf.Node, "n2").SubscribeSync(bus.AllAddresses)
	if err != nil {
		t.Fatal(err)
	}
	first, err := n1.Register(c.ctx(), register("app2", "u2", "10.244.1.2", "fd00:244:1::2"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := n1.Register(c.ctx(), register("app2", "u2", "10.244.1.2", "fd00:244:1::2"))
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(first, again) {
		t.Errorf("registered twice: %v, then %v", first, again)
	}
	if l := first.GetContent().GetLabels(); len(l) != 1 || l[0].GetKey() != "id" || first.GetContent().GetCluster() != "test" {
		t.Errorf("identity %v, want the label id=app2 alone, of cluster test", first.GetContent())
	}
	if first.GetGeneration() == 0 || first.GetIdentityRevision() == 0 {
		t.Errorf("no generation or revision: %v", first)
	}
	for range 2 {
		m, err := sub.NextMsg(limit)
		if err != nil {
			t.Fatal(err)
		}
		rec := &identityv1.AddressRecord{}
		if err := proto.Unmarshal(m.Data, rec); err != nil {
			t.Fatal(err)
		}
		if rec.GetPodUid() != "u2" || !bytes.Equal(rec.GetIdentity(), first.GetIdentity()) || len(rec.GetAddress()) != 16 {
			t.Errorf("published record %v, want one of u2", rec)
		}
	}
	if _, err := c.nats.Connect(t, tlsconf.Node, "n3").SubscribeSync(bus.AddressHead); err != nil {
		t.Fatal(err)
	}

	// A second replica tells the same, and where it ends.
	other := c.start("identity-1").ready()
	stream, err := other.as(tlsconf.Node, "n2").Snapshot(c.ctx(), &identityv1.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var records int
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatalf("snapshot without an end: %v", err)
		}
		records += len(m.GetRecords())
		if m.GetEnd() {
			if m.GetSequence() < first.GetAddressSequence() || m.GetCreatedUnixNano() == 0 {
				t.Errorf("end %v, want sequence %d at least", m, first.GetAddressSequence())
			}
			break
		}
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) || records != 2 {
		t.Errorf("snapshot: %d records, then %v; want 2 and the end", records, err)
	}
	look, err := other.as(tlsconf.Node, "n2").Lookup(c.ctx(), &identityv1.LookupRequest{Address: addr("10.244.1.2")})
	if err != nil || look.GetRecord().GetPodName() != "app2" {
		t.Errorf("lookup: %v, %v", look, err)
	}
	none, err := other.as(tlsconf.Node, "n2").Lookup(c.ctx(), &identityv1.LookupRequest{Address: addr("10.244.9.9")})
	if err != nil || none.GetRecord() != nil || none.GetSequence() < first.GetAddressSequence() {
		t.Errorf("lookup of nobody: %v, %v", none, err)
	}
}

func TestHeadIsPublished(t *testing.T) {
	c := newCluster(t)
	c.start("identity-0").ready()
	sub, err := c.nats.Connect(t, tlsconf.Node, "n1").SubscribeSync(bus.AddressHead)
	if err != nil {
		t.Fatal(err)
	}
	m, err := sub.NextMsg(limit)
	if err != nil {
		t.Fatal(err)
	}
	head := &identityv1.AddressHead{}
	if err := proto.Unmarshal(m.Data, head); err != nil || head.GetCreatedUnixNano() == 0 {
		t.Errorf("head %v, %v", head, err)
	}
}

func (c *cluster) node(name, podRange string, addrs ...string) {
	c.t.Helper()
	var list []string
	for _, a := range addrs {
		list = append(list, fmt.Sprintf("{type: InternalIP, address: %q}", a))
	}
	c.write("node-"+name, "apiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDRs: [%q]}\nstatus: {addresses: [%s]}\n",
		name, podRange, strings.Join(list, ", "))
}

func registerNode(c *cluster, client identityv1.IdentityServiceClient, addrs ...string) error {
	req := &identityv1.RegisterNodeRequest{}
	for _, a := range addrs {
		req.Addresses = append(req.Addresses, addr(a))
	}
	_, err := client.RegisterNode(c.ctx(), req)
	return err
}

// addressesOfNodes lists what nodes have, as "NODE ADDRESS".
func (r *running) addressesOfNodes() []string {
	r.c.t.Helper()
	list, err := r.operator().ListAddresses(r.c.ctx(), &identityv1.ListAddressesRequest{})
	if err != nil {
		r.c.t.Fatal(err)
	}
	var out []string
	for _, rec := range list.GetRecords() {
		a, _ := netip.AddrFromSlice(rec.GetAddress())
		out = append(out, rec.GetNode()+" "+a.Unmap().String())
	}
	return out
}

func TestNodeReplacesItsAddresses(t *testing.T) {
	c := newCluster(t)
	c.node("n1", "10.244.1.0/24", "10.200.0.1", "fd00:200::1", "10.200.0.7")
	r := c.start("identity-0").ready()
	n1 := r.as(tlsconf.Node, "n1")
	if err := registerNode(c, n1, "10.200.0.1", "fd00:200::1"); err != nil {
		t.Fatal(err)
	}
	if err := registerNode(c, n1, "10.200.0.1", "10.200.0.7"); err != nil {
		t.Fatal(err)
	}
	want := []string{"n1 10.200.0.1", "n1 10.200.0.7"}
	r.eventually("n1 has what it said last", func() error {
		if got := r.addressesOfNodes(); !slices.Equal(got, want) {
			return fmt.Errorf("got %v, want %v", got, want)
		}
		return nil
	})
}

// A node has what its Node object says and its own pods' ranges, and nothing of
// the world's, a Service's or another node's, whatever it claims.
func TestS9NodeHasOnlyItsOwnAddresses(t *testing.T) {
	c := newCluster(t)
	c.node("n1", "10.244.1.0/24", "10.200.0.1")
	c.node("n3", "10.244.3.0/24", "10.200.0.3")
	r := c.start("identity-0").ready()
	claim := func(node string, addrs ...string) []string {
		req := &identityv1.RegisterNodeRequest{}
		for _, a := range addrs {
			req.Addresses = append(req.Addresses, addr(a))
		}
		resp, err := r.as(tlsconf.Node, node).RegisterNode(c.ctx(), req)
		if err != nil {
			t.Fatal(err)
		}
		var refused []string
		for _, b := range resp.GetRefused() {
			a, _ := netip.AddrFromSlice(b)
			refused = append(refused, a.Unmap().String())
		}
		return refused
	}
	if got, want := claim("n1", "10.200.0.1", "10.244.1.1", "8.8.8.8", "10.96.0.10", "10.244.3.9", "10.200.0.3"),
		[]string{"8.8.8.8", "10.96.0.10", "10.200.0.3", "10.244.3.9"}; !slices.Equal(got, want) {
		t.Errorf("refused %v, want %v", got, want)
	}
	if got, want := claim("n9", "10.200.0.9"), []string{"10.200.0.9"}; !slices.Equal(got, want) {
		t.Errorf("a node that nobody knows: refused %v, want %v", got, want)
	}
	want := []string{"n1 10.200.0.1", "n1 10.244.1.1"}
	r.eventually("n1 has what it may have", func() error {
		if got := r.addressesOfNodes(); !slices.Equal(got, want) {
			return fmt.Errorf("records %v, want %v", got, want)
		}
		return nil
	})
}

// state reads the log as the test sees it.
func (c *cluster) state() jetstream.KeyValue {
	c.t.Helper()
	kv, err := bus.State(c.ctx(), c.nats.JetStream(c.t, tlsconf.Identity, "test"))
	if err != nil {
		c.t.Fatal(err)
	}
	return kv
}

func TestRelabelledPodMeansAnotherIdentity(t *testing.T) {
	c := newCluster(t)
	c.pod("app", "u", "n1", "id: one")
	r := c.start("identity-0").ready()
	n1 := r.as(tlsconf.Node, "n1")
	first, err := n1.Register(c.ctx(), register("app", "u", "10.244.1.2"))
	if err != nil {
		t.Fatal(err)
	}
	c.pod("app", "u", "n1", "id: two")
	r.eventually("the record is rewritten", func() error {
		look, err := n1.Lookup(c.ctx(), &identityv1.LookupRequest{Address: addr("10.244.1.2")})
		if err != nil {
			return err
		}
		if rec := look.GetRecord(); bytes.Equal(rec.GetIdentity(), first.GetIdentity()) || rec.GetIdentityRevision() <= first.GetIdentityRevision() {
			return fmt.Errorf("still %v", rec)
		}
		return nil
	})
}

func TestServicesAndRefusedObjects(t *testing.T) {
	c := newCluster(t)
	c.write("svc", `apiVersion: v1
kind: Service
metadata: {name: app1-service}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  selector: {id: app1}
  ports: [{port: 80, targetPort: http}]
`)
	c.write("pod", `apiVersion: v1
kind: Pod
metadata: {name: app1, uid: u1, labels: {id: app1}}
spec: {nodeName: n1, containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.2}, {ip: "fd00:244:1::2"}]}
`)
	c.write("bad", "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {nodeNam: n1}\n")
	r := c.start("identity-0").ready()
	kv := c.state()
	r.eventually("the service is in the log", func() error {
		e, err := kv.Get(c.ctx(), "service.default.app1-service")
		if err != nil {
			return err
		}
		svc := &identityv1.Service{}
		if err := proto.Unmarshal(e.Value(), svc); err != nil {
			return err
		}
		if len(svc.GetAddresses()) != 2 || len(svc.GetPorts()) != 1 || len(svc.GetPorts()[0].GetBackends()) != 2 ||
			svc.GetPorts()[0].GetBackends()[0].GetPort() != 8080 {
			return fmt.Errorf("service %v", svc)
		}
		return nil
	})
	r.eventually("the service is listed", func() error {
		list, err := r.operator().ListServices(c.ctx(), &identityv1.ListServicesRequest{Namespace: "default"})
		if err != nil || len(list.GetServices()) != 1 || list.GetServices()[0].GetName() != "app1-service" || list.GetRevision() == 0 {
			return fmt.Errorf("%v, %w", list, err)
		}
		return nil
	})
	if list, err := r.operator().ListServices(c.ctx(), &identityv1.ListServicesRequest{Namespace: "other"}); err != nil || len(list.GetServices()) != 0 {
		t.Errorf("services of another namespace: %v, %v", list, err)
	}
	st, err := r.operator().GetStatus(c.ctx(), &identityv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(st.GetRefused()) != 1 || st.GetRefused()[0].GetName() != "bad" || st.GetRefused()[0].GetLine() != 1 ||
		st.GetRefused()[0].GetFile() != filepath.Join(c.dir, "bad.yaml") {
		t.Errorf("refused: %v", st.GetRefused())
	}
	c.remove("svc")
	r.eventually("the service is gone", func() error {
		if _, err := kv.Get(c.ctx(), "service.default.app1-service"); !errors.Is(err, jetstream.ErrKeyNotFound) {
			return fmt.Errorf("still there: %v", err)
		}
		return nil
	})
}

func TestMetrics(t *testing.T) {
	c := newCluster(t)
	r := c.start("identity-0").ready()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", r.http)
		},
	}}
	resp, err := client.Get("http://replica/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	problems, err := promlint.New(resp.Body).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "weir_") {
			t.Errorf("metric %s: %s", p.Metric, p.Text)
		}
	}
}
