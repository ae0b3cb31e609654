// Package natsserver runs a NATS server inside of the calling process, with
// the very configuration that deploy/nats installs: for an installation on one
// machine, and for tests.
//
// It imports nats-server and the names of certificate files.
package natsserver

import (
	_ "embed" // the configuration
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"weir.dev/weir/internal/tlsconf"
)

//go:embed nats.conf
var conf string

// startLimit bounds how long a server takes to listen.
const startLimit = 20 * time.Second

// ErrNotListening reports a server that did not come up in time.
var ErrNotListening = errors.New("the server does not listen")

// Config says where a server listens and what it keeps where.
type Config struct {
	Listen string // HOST:PORT; port -1 takes a free one
	Store  string // folder of the JetStream store
	TLSDir string // ca.crt, tls.crt, tls.key; the certificate names nats.weir
	// Log receives the server's own lines. Nil: they are dropped.
	Log server.Logger
}

// Start returns a server that accepts clients. Its owner calls Shutdown and
// WaitForShutdown.
func Start(cfg Config) (*server.Server, error) {
	var text strings.Builder
	for _, v := range [][2]string{
		{"WEIR_NATS_LISTEN", cfg.Listen},
		{"WEIR_NATS_STORE", cfg.Store},
		{"WEIR_NATS_CA", filepath.Join(cfg.TLSDir, tlsconf.CAFile)},
		{"WEIR_NATS_CERT", filepath.Join(cfg.TLSDir, tlsconf.CertFile)},
		{"WEIR_NATS_KEY", filepath.Join(cfg.TLSDir, tlsconf.KeyFile)},
	} {
		fmt.Fprintf(&text, "%s: %q\n", v[0], v[1])
	}
	text.WriteString(conf)
	opts := &server.Options{NoSigs: true}
	if err := opts.ProcessConfigString(text.String()); err != nil {
		return nil, fmt.Errorf("read the configuration of NATS: %w", err)
	}
	opts.NoLog = cfg.Log == nil
	srv, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("make a NATS server: %w", err)
	}
	if cfg.Log != nil {
		srv.SetLoggerV2(cfg.Log, false, false, false)
	}
	srv.Start()
	if !srv.ReadyForConnections(startLimit) {
		srv.Shutdown()
		return nil, fmt.Errorf("start NATS on %s: %w within %v", cfg.Listen, ErrNotListening, startLimit)
	}
	return srv, nil
}
