package integration

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"weir.dev/weir/internal/netns"
	"weir.dev/weir/internal/tlsconf"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// Where the control plane listens, inside of the demo.
const (
	identityAddr = "10.200.0.100:7001"
	policyAddr   = "10.200.0.100:7011"
	natsAddr     = "10.200.0.100:4222"
)

// inside is a dialer whose connections begin in the namespace of a part.
func (d *demo) inside(t *testing.T, part string) func(context.Context, string) (net.Conn, error) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(d.dir, "parts", part, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context, addr string) (conn net.Conn, err error) {
		err = netns.Of(pid).Do(func() error {
			var dialer net.Dialer
			conn, err = dialer.DialContext(ctx, "tcp", addr)
			return err
		})
		return conn, err
	}
}

func (d *demo) pki(part string) string { return filepath.Join(d.dir, "pki", part) }

// as connects to a service from node n1 with that TLS configuration.
func (d *demo) as(t *testing.T, conf *tls.Config, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithContextDialer(d.inside(t, "enforcer-n1")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func client(t *testing.T, dir string, peer tlsconf.Role) *tls.Config {
	t.Helper()
	conf, err := tlsconf.Client(dir, peer)
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

// TestCertificatesLimitWhatAPartMayDo wants of each wrong certificate that it
// gets nothing, and of a node's that it gets its own pods only.
func TestCertificatesLimitWhatAPartMayDo(t *testing.T) {
	d := up(t, "it-trust")
	d.tutorial(t)
	pods := d.running(t, 4)
	n1 := d.pki("enforcer-n1")

	t.Run("a node cannot register another node's pod", func(t *testing.T) {
		far := podOf(t, pods, "app1", "n2")
		near := podOf(t, pods, "app1", "n1")
		identities := identityv1.NewIdentityServiceClient(d.as(t, client(t, n1, tlsconf.Identity), identityAddr))
		address := net.ParseIP(far.Status.PodIP).To4()
		for _, c := range []struct {
			what string
			req  *identityv1.RegisterRequest
			want codes.Code
		}{
			{"a pod of n2", &identityv1.RegisterRequest{Namespace: far.Namespace, Name: far.Name, PodUid: string(far.UID), Addresses: [][]byte{address}}, codes.FailedPrecondition},
			{"a pod that is not there", &identityv1.RegisterRequest{Namespace: "default", Name: "nobody", PodUid: "1", Addresses: [][]byte{address}}, codes.FailedPrecondition},
			{"its pod with the address of n2's", &identityv1.RegisterRequest{Namespace: near.Namespace, Name: near.Name, PodUid: string(near.UID), Addresses: [][]byte{address}}, codes.AlreadyExists},
			{"its own pod", &identityv1.RegisterRequest{Namespace: near.Namespace, Name: near.Name, PodUid: string(near.UID), Addresses: [][]byte{net.ParseIP(near.Status.PodIP).To4()}}, codes.OK},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			_, err := identities.Register(ctx, c.req)
			cancel()
			if got := status.Code(err); got != c.want {
				t.Errorf("register %s: %v, want %v", c.what, err, c.want)
			}
		}
	})

	t.Run("another role cannot register at all", func(t *testing.T) {
		near := podOf(t, pods, "app1", "n1")
		identities := identityv1.NewIdentityServiceClient(d.as(t, client(t, d.pki("policy-0"), tlsconf.Identity), identityAddr))
		_, err := identities.Register(t.Context(), &identityv1.RegisterRequest{
			Namespace: near.Namespace, Name: near.Name, PodUid: string(near.UID), Addresses: [][]byte{net.ParseIP(near.Status.PodIP).To4()},
		})
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("register with policy's certificate: %v, want PermissionDenied", err)
		}
	})

	t.Run("a node cannot write the log, an address or a lease", func(t *testing.T) {
		wantNoWrites(t, d, n1)
	})

	t.Run("no certificate gets nothing", func(t *testing.T) {
		for _, c := range []struct {
			what string
			conf *tls.Config
		}{
			{"no certificate", &tls.Config{InsecureSkipVerify: true}}, // whom it talks to is not the question here
			{"a certificate of another CA", stranger(t)},
		} {
			wantNothing(t, d, c.what, c.conf)
		}
	})

	// The right certificate still does, after all of that.
	d.want(t, "deploy/app2", "http://app1-service/public", served("/public"))
}

// stranger has a certificate for node n1, from a CA of its own.
func stranger(t *testing.T) *tls.Config {
	t.Helper()
	ca, err := tlsconf.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := ca.Issue(dir, tlsconf.Name{Role: tlsconf.Node, Name: "n1"}, nil); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, tlsconf.CertFile), filepath.Join(dir, tlsconf.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true}
}

func wantNothing(t *testing.T, d *demo, what string, conf *tls.Config) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	_, err := identityv1.NewIdentityServiceClient(d.as(t, conf, identityAddr)).GetStatus(ctx, &identityv1.GetStatusRequest{})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("identity with %s: %v, want no connection", what, err)
	}
	_, err = policyv1.NewPolicyServiceClient(d.as(t, conf, policyAddr)).GetStatus(ctx, &policyv1.GetStatusRequest{})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("policy with %s: %v, want no connection", what, err)
	}
	raw, err := d.inside(t, "enforcer-n1")(ctx, natsAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, conf)
	_, err = io.ReadAtLeast(conn, make([]byte, 1), 1)
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("NATS with %s: %v, want the connection closed without a word", what, err)
	}
}

// viaNode lets NATS connect from the namespace of n1.
type viaNode struct {
	dial func(context.Context, string) (net.Conn, error)
}

func (v viaNode) Dial(_, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	return v.dial(ctx, addr)
}

// wantNoWrites tries with a node's certificate what only others may do.
func wantNoWrites(t *testing.T, d *demo, pki string) {
	t.Helper()
	refused := make(chan error, 16)
	nc, err := nats.Connect("tls://"+natsAddr,
		nats.Secure(client(t, pki, tlsconf.NATS)), nats.TLSHandshakeFirst(),
		nats.SetCustomDialer(viaNode{d.inside(t, "enforcer-n1")}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }),
		nats.CustomInboxPrefix("_INBOX.node"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	address := hex.EncodeToString(net.ParseIP("10.244.2.2").To16())
	for _, subject := range []string{
		"$KV.weir-state.identity.00", "$KV.weir-state.policy.CiliumNetworkPolicy.default.rule1", "$KV.weir-state.generation",
		"$KV.weir-addresses." + address, "weir.address." + address, "weir.addresshead", "$KV.weir-leases.identity",
		"$JS.API.STREAM.DELETE.KV_weir-state", "$JS.API.STREAM.PURGE.KV_weir-addresses", "weir.acks.policy-0",
	} {
		if err := nc.Publish(subject, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := nc.FlushTimeout(soon); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-refused:
			if !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), subject) {
				t.Errorf("publish on %s: %v, want a permissions violation", subject, err)
			}
		case <-time.After(soon):
			t.Errorf("publish on %s was not refused", subject)
		}
	}
	if _, err := nc.SubscribeSync("$KV.weir-state.>"); err != nil {
		t.Fatal(err)
	}
	if err := nc.FlushTimeout(soon); err != nil {
		t.Fatal(err)
	}
	select {
	case <-refused:
	case <-time.After(soon):
		t.Error("a node may read the log")
	}
}
