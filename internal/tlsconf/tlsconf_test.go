package tlsconf_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"weir.dev/weir/internal/tlsconf"
)

func issue(t *testing.T, ca *tlsconf.CA, n tlsconf.Name) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), n.Name)
	if err := ca.Issue(dir, n, nil); err != nil {
		t.Fatal(err)
	}
	return dir
}

func newCA(t *testing.T) *tlsconf.CA {
	t.Helper()
	ca, err := tlsconf.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// handshake returns the client's and the server's error, and the name that the
// server saw.
func handshake(t *testing.T, server, client *tls.Config) (name tlsconf.Name, clientErr, serverErr error) {
	t.Helper()
	lis, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	type result struct {
		err  error
		name tlsconf.Name
	}
	done := make(chan result, 1)
	go func() {
		c, err := lis.Accept()
		if err != nil {
			done <- result{err: err}
			return
		}
		defer c.Close()
		tc := c.(*tls.Conn)
		if err := tc.HandshakeContext(context.Background()); err != nil {
			done <- result{err: err}
			return
		}
		ctx := peer.NewContext(context.Background(), &peer.Peer{
			Addr:     c.RemoteAddr(),
			AuthInfo: credentials.TLSInfo{State: tc.ConnectionState()},
		})
		n, _ := tlsconf.FromContext(ctx)
		done <- result{name: n}
	}()
	c, err := tls.Dial("tcp", lis.Addr().String(), client)
	if err == nil {
		// The server's refusal of a client certificate arrives with the first read.
		_, clientErr = c.Read(make([]byte, 1))
		c.Close()
	} else {
		clientErr = err
	}
	r := <-done
	return r.name, clientErr, r.err
}

func TestPartsKnowEachOther(t *testing.T) {
	ca := newCA(t)
	srv, err := tlsconf.Server(issue(t, ca, tlsconf.Name{Role: tlsconf.Identity, Name: "identity-0"}))
	if err != nil {
		t.Fatal(err)
	}
	node := tlsconf.Name{Role: tlsconf.Node, Name: "n1"}
	cli, err := tlsconf.Client(issue(t, ca, node), tlsconf.Identity)
	if err != nil {
		t.Fatal(err)
	}
	name, _, serverErr := handshake(t, srv, cli)
	if serverErr != nil || name != node {
		t.Fatalf("server saw %v, %v; want %v", name, serverErr, node)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	srv, err := tlsconf.Server(issue(t, ca, tlsconf.Name{Role: tlsconf.Identity, Name: "identity-0"}))
	if err != nil {
		t.Fatal(err)
	}
	node := tlsconf.Name{Role: tlsconf.Node, Name: "n1"}
	clientOf := func(ca *tlsconf.CA, to tlsconf.Role) *tls.Config {
		conf, err := tlsconf.Client(issue(t, ca, node), to)
		if err != nil {
			t.Fatal(err)
		}
		return conf
	}
	wrongRoot := clientOf(other, tlsconf.Identity)
	wrongRoot.VerifyConnection = nil
	noCert := clientOf(ca, tlsconf.Identity)
	noCert.GetClientCertificate = nil
	old := clientOf(ca, tlsconf.Identity)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, conf := range map[string]*tls.Config{
		"another CA's certificate": wrongRoot,
		"no certificate":           noCert,
		"TLS 1.2":                  old,
	} {
		if n, _, serverErr := handshake(t, srv, conf); serverErr == nil {
			t.Errorf("%s: accepted as %v", name, n)
		}
	}
	if _, clientErr, _ := handshake(t, srv, clientOf(ca, tlsconf.Policy)); clientErr == nil {
		t.Error("a client that wants policy accepted identity's certificate")
	}
	if _, clientErr, _ := handshake(t, srv, clientOf(other, tlsconf.Identity)); clientErr == nil {
		t.Error("a client accepted a server of another CA")
	}
}

func TestNewFilesAreUsedAndHalfReplacedOnesAreNot(t *testing.T) {
	ca := newCA(t)
	dir := issue(t, ca, tlsconf.Name{Role: tlsconf.Node, Name: "n1"})
	srv, err := tlsconf.Server(issue(t, ca, tlsconf.Name{Role: tlsconf.Identity, Name: "identity-0"}))
	if err != nil {
		t.Fatal(err)
	}
	cli, err := tlsconf.Client(dir, tlsconf.Identity)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue(dir, tlsconf.Name{Role: tlsconf.Node, Name: "n2"}, nil); err != nil {
		t.Fatal(err)
	}
	if name, _, err := handshake(t, srv, cli); err != nil || name.Name != "n2" {
		t.Fatalf("after rotation the server saw %v, %v; want n2", name, err)
	}
	if err := os.Remove(filepath.Join(dir, tlsconf.KeyFile)); err != nil {
		t.Fatal(err)
	}
	if name, _, err := handshake(t, srv, cli); err != nil || name.Name != "n2" {
		t.Fatalf("with the key away the server saw %v, %v; want the last good certificate", name, err)
	}
}

func TestOfRefusesWhatIsNotOneName(t *testing.T) {
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	for name, uris := range map[string][]*url.URL{
		"none":           nil,
		"two":            {uri("spiffe://weir/node/n1"), uri("spiffe://weir/node/n2")},
		"unknown role":   {uri("spiffe://weir/king/n1")},
		"no name":        {uri("spiffe://weir/node/")},
		"deeper":         {uri("spiffe://weir/node/n1/x")},
		"another domain": {uri("spiffe://elsewhere/node/n1")},
	} {
		if n, err := tlsconf.Of(&x509.Certificate{URIs: uris}); err == nil {
			t.Errorf("%s: got %v", name, n)
		}
	}
}

func TestCASurvivesOnDisk(t *testing.T) {
	dir := t.TempDir()
	if err := newCA(t).Save(dir); err != nil {
		t.Fatal(err)
	}
	ca, err := tlsconf.LoadCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tlsconf.Server(issue(t, ca, tlsconf.Name{Role: tlsconf.NATS, Name: "nats"})); err != nil {
		t.Fatal(err)
	}
	if _, err := tlsconf.Server(t.TempDir()); err == nil {
		t.Error("an empty folder served")
	}
	if err := ca.Issue(t.TempDir(), tlsconf.Name{}, nil); err == nil {
		t.Error("a certificate for nobody was issued")
	}
}
