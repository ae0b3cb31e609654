package bus_test

import (
	"context"
	"crypto/tls"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/natstest"
	"weir.dev/weir/internal/tlsconf"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// connect returns a connection as the role, and what the server refused it.
func connect(t *testing.T, s *natstest.Server, role tlsconf.Role) (*nats.Conn, <-chan error) {
	t.Helper()
	nc := s.Connect(t, role, "x")
	refused := make(chan error, 16)
	nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err })
	return nc, refused
}

func wantRefused(t *testing.T, nc *nats.Conn, refused <-chan error, what string) {
	t.Helper()
	if err := nc.FlushTimeout(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-refused:
		if !errors.Is(err, nats.ErrPermissionViolation) {
			t.Errorf("%s: got %v, want a permissions violation", what, err)
		}
	case <-time.After(5 * time.Second):
		t.Errorf("%s was not refused", what)
	}
}

func TestEachRoleHasItsRights(t *testing.T) {
	s := natstest.Start(t)
	identityJS := s.JetStream(t, tlsconf.Identity, "identity-0")
	policyJS := s.JetStream(t, tlsconf.Policy, "policy-0")
	ctx := t.Context()

	state, err := bus.State(ctx, identityJS)
	if err != nil {
		t.Fatal(err)
	}
	addresses, err := bus.AddressRecords(ctx, identityJS)
	if err != nil {
		t.Fatal(err)
	}
	policyState, err := bus.State(ctx, policyJS) // made twice is made once
	if err != nil {
		t.Fatal(err)
	}
	for _, js := range []jetstream.JetStream{identityJS, policyJS} {
		if _, err := bus.Leases(ctx, js); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("identity and policy write what is theirs and read the log", func(t *testing.T) {
		for _, key := range []string{"identity.00ff", "namespace.default", "service.default.app1-service"} {
			if _, err := state.Create(ctx, key, []byte("x")); err != nil {
				t.Errorf("identity writes %s: %v", key, err)
			}
		}
		if _, err := addresses.Create(ctx, "00000000000000000000ffff0af40101", []byte("x")); err != nil {
			t.Errorf("identity writes an address: %v", err)
		}
		if _, err := policyState.Create(ctx, "policy.ciliumnetworkpolicy.default.rule1", []byte("x")); err != nil {
			t.Errorf("policy writes a policy: %v", err)
		}
		for who, kv := range map[string]jetstream.KeyValue{"identity": state, "policy": policyState} {
			w, err := kv.WatchAll(ctx)
			if err != nil {
				t.Fatalf("%s watches the log: %v", who, err)
			}
			n := 0
			for e := range w.Updates() {
				if e == nil {
					break
				}
				n++
			}
			if n != 4 {
				t.Errorf("%s sees %d keys, want 4", who, n)
			}
			if err := w.Stop(); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("policy cannot write what is identity's, nor identity a policy", func(t *testing.T) {
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := policyState.Put(short, "identity.00ff", []byte("y")); err == nil {
			t.Error("policy wrote an identity")
		}
		if _, err := state.Put(short, "policy.ciliumnetworkpolicy.default.rule1", []byte("y")); err == nil {
			t.Error("identity wrote a policy")
		}
		if _, err := policyJS.KeyValue(short, bus.AddressBucket); err == nil {
			t.Error("policy opened the addresses")
		}
	})
}

func TestNodeIsToldAddressesAndMaySayNothing(t *testing.T) {
	s := natstest.Start(t)
	js := s.JetStream(t, tlsconf.Identity, "identity-0")
	addresses, err := bus.AddressRecords(t.Context(), js)
	if err != nil {
		t.Fatal(err)
	}
	node, refused := connect(t, s, tlsconf.Node)
	sub, err := node.SubscribeSync(bus.AllAddresses)
	if err != nil {
		t.Fatal(err)
	}
	if err := node.FlushTimeout(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	const key = "00000000000000000000ffff0af40101"
	first, err := addresses.Create(t.Context(), key, []byte("record"))
	if err != nil {
		t.Fatal(err)
	}
	if err := addresses.Delete(t.Context(), key, jetstream.LastRevision(first)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct{ body, op, seq, previous string }{{"record", "", "1", "0"}, {"", "DEL", "2", "1"}} {
		m, err := sub.NextMsg(5 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject != bus.Addresses+key || string(m.Data) != want.body || m.Header.Get(bus.OperationHeader) != want.op ||
			m.Header.Get(bus.SequenceHeader) != want.seq || m.Header.Get(bus.PreviousHeader) != want.previous {
			t.Errorf("got %s %q %v, want %+v", m.Subject, m.Data, m.Header, want)
		}
	}
	for _, subject := range []string{
		"$KV.weir-state.identity.00ff", "$KV.weir-state.policy.a.b.c", "$KV.weir-state.generation",
		"$KV.weir-addresses." + key, bus.Addresses + key, bus.AddressHead, bus.Acks + "policy-0",
		"$JS.API.STREAM.PURGE.KV_weir-state", "$JS.API.STREAM.DELETE.KV_weir-addresses", "anything",
	} {
		if err := node.Publish(subject, []byte("x")); err != nil {
			t.Fatal(err)
		}
		wantRefused(t, node, refused, "publish to "+subject)
	}
	for _, subject := range []string{"$KV.>", bus.Acks + "*", "_INBOX.identity.>", ">"} {
		if _, err := node.SubscribeSync(subject); err != nil {
			t.Fatal(err)
		}
		wantRefused(t, node, refused, "subscribe to "+subject)
	}
	if e, err := addresses.Get(t.Context(), key); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("after the node's attempts: got %v, %v, want no record", e, err)
	}
}

func TestStrangersGetNothing(t *testing.T) {
	s := natstest.Start(t)
	dir := t.TempDir()
	if err := s.CA.Issue(dir, tlsconf.Name{Role: tlsconf.Node, Name: "n1"}, nil); err != nil {
		t.Fatal(err)
	}
	good, err := tlsconf.Client(dir, tlsconf.NATS)
	if err != nil {
		t.Fatal(err)
	}
	none := good.Clone()
	none.GetClientCertificate = nil

	other, err := tlsconf.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	foreign := t.TempDir()
	if err := other.Issue(foreign, tlsconf.Name{Role: tlsconf.Identity, Name: "x"}, nil); err != nil {
		t.Fatal(err)
	}
	forged := good.Clone()
	pair, err := tls.LoadX509KeyPair(filepath.Join(foreign, tlsconf.CertFile), filepath.Join(foreign, tlsconf.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	forged.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }

	noUser := t.TempDir()
	if err := s.CA.Issue(noUser, tlsconf.Name{Role: tlsconf.CLI, Name: "someone"}, nil); err != nil {
		t.Fatal(err)
	}
	cli, err := tlsconf.Client(noUser, tlsconf.NATS)
	if err != nil {
		t.Fatal(err)
	}
	old := good.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12

	for name, conf := range map[string]*tls.Config{
		"no certificate": none, "another CA's": forged, "a role without rights": cli, "TLS 1.2": old,
	} {
		nc, err := nats.Connect(s.URL, nats.Secure(conf), nats.TLSHandshakeFirst(), nats.NoReconnect(), nats.Timeout(2*time.Second))
		if err == nil {
			t.Errorf("%s: connected", name)
			nc.Close()
		}
	}
	if nc, err := nats.Connect("nats://"+s.URL[len("tls://"):], nats.NoReconnect(), nats.Timeout(time.Second)); err == nil {
		t.Error("plain text: connected")
		nc.Close()
	}
}
