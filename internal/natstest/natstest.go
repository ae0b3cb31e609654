// Package natstest gives tests a NATS server with the installed configuration,
// a CA, and connections as each of Weir's roles. Only tests import it.
package natstest

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	natsd "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/natsserver"
	"weir.dev/weir/internal/tlsconf"
)

// flushLimit bounds the first round trip.
const flushLimit = 10 * time.Second

// Server is a NATS server on loopback, and the CA that all parts are of.
type Server struct {
	URL   string
	CA    *tlsconf.CA
	Store string // folder; read by Restart

	tlsDir string
	srv    *natsd.Server
}

// Start starts a server that ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	ca, err := tlsconf.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{CA: ca, Store: filepath.Join(t.TempDir(), "store")}
	s.tlsDir = s.Issue(t, tlsconf.NATS, "nats")
	s.start(t, "127.0.0.1:-1")
	s.URL = "tls://" + s.srv.Addr().String()
	t.Cleanup(s.Stop)
	return s
}

func (s *Server) start(t testing.TB, listen string) {
	t.Helper()
	srv, err := natsserver.Start(natsserver.Config{Listen: listen, Store: s.Store, TLSDir: s.tlsDir})
	if err != nil {
		t.Fatal(err)
	}
	s.srv = srv
}

// Stop ends the server; its store stays.
func (s *Server) Stop() {
	s.srv.Shutdown()
	s.srv.WaitForShutdown()
}

// Restart starts the server again after a Stop, where it was, with the store
// that is at Store now.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.start(t, strings.TrimPrefix(s.URL, "tls://"))
}

// Issue returns a folder with a certificate for the part.
func (s *Server) Issue(t testing.TB, role tlsconf.Role, name string) string {
	t.Helper()
	dir := t.TempDir()
	if err := s.CA.Issue(dir, tlsconf.Name{Role: role, Name: name}, nil); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Connect returns a connection as the role; it is closed with the test.
func (s *Server) Connect(t testing.TB, role tlsconf.Role, name string) *nats.Conn {
	t.Helper()
	nc, err := bus.Connect(bus.Config{
		URL: s.URL, TLSDir: s.Issue(t, role, name), Role: role, Name: name,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if err := nc.FlushTimeout(flushLimit); err != nil {
		t.Fatalf("connect as %s: %v", role, err)
	}
	return nc
}

// JetStream returns a connection as the role and its JetStream.
func (s *Server) JetStream(t testing.TB, role tlsconf.Role, name string) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(s.Connect(t, role, name))
	if err != nil {
		t.Fatal(err)
	}
	return js
}
