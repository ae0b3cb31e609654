package tlsconf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Names of the files in a part's certificate folder.
const (
	CAFile   = "ca.crt"
	CertFile = "tls.crt"
	KeyFile  = "tls.key"
)

// ErrNoCertificates reports a certificate folder without certificates in ca.crt.
var ErrNoCertificates = errors.New("no certificates in it")

// Server returns the configuration of a listener with the certificate in dir.
// Clients must show a certificate of the same CA that names a part.
func Server(dir string) (*tls.Config, error) {
	f := &folder{dir: dir}
	if _, err := f.load(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAndVerifyClientCert,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			m, err := f.load()
			if err != nil {
				return nil, err
			}
			return &tls.Config{
				MinVersion:       tls.VersionTLS13,
				ClientAuth:       tls.RequireAndVerifyClientCert,
				ClientCAs:        m.roots,
				Certificates:     []tls.Certificate{m.cert},
				NextProtos:       []string{"h2"},
				VerifyConnection: namesPart,
			}, nil
		},
	}, nil
}

// Client returns the configuration of a connection to a part of role to, with
// the certificate in dir.
func Client(dir string, to Role) (*tls.Config, error) {
	f := &folder{dir: dir}
	if _, err := f.load(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: to.DNSName(),
		// Verified below against roots that are read anew.
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			m, err := f.load()
			if err != nil {
				return nil, err
			}
			return &m.cert, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			m, err := f.load()
			if err != nil {
				return err
			}
			return verifyServer(cs, m.roots, to)
		},
	}, nil
}

func verifyServer(cs tls.ConnectionState, roots *x509.CertPool, to Role) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the server showed no certificate")
	}
	opts := x509.VerifyOptions{
		Roots:         roots,
		Intermediates: x509.NewCertPool(),
		DNSName:       to.DNSName(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, c := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := cs.PeerCertificates[0].Verify(opts)
	return err
}

func namesPart(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the client showed no certificate")
	}
	_, err := Of(cs.PeerCertificates[0])
	return err
}

// FromContext returns the name of the caller of a gRPC method: from its
// certificate, or cli/local for a caller on a unix socket, which only the
// operator of this machine can open. Not ok: nobody.
func FromContext(ctx context.Context) (Name, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return Name{}, false
	}
	if t, ok := p.AuthInfo.(credentials.TLSInfo); ok {
		if len(t.State.VerifiedChains) == 0 {
			return Name{}, false
		}
		n, err := Of(t.State.VerifiedChains[0][0])
		return n, err == nil
	}
	if p.Addr.Network() == "unix" {
		return Name{CLI, "local"}, true
	}
	return Name{}, false
}

// material is what a folder held when it was read.
type material struct {
	cert  tls.Certificate
	roots *x509.CertPool
	stamp [3]time.Time
}

// folder re-reads its files when one of them has another modification time. It
// may be used by several goroutines.
type folder struct {
	dir string

	mu   sync.Mutex
	last *material
}

// load returns the last good material if the files are half replaced.
func (f *folder) load() (*material, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stamp, err := f.stamp()
	if err == nil && f.last != nil && f.last.stamp == stamp {
		return f.last, nil
	}
	if err == nil {
		var m *material
		if m, err = f.read(); err == nil {
			m.stamp = stamp
			f.last = m
			return m, nil
		}
	}
	if f.last != nil {
		return f.last, nil
	}
	return nil, err
}

func (f *folder) stamp() ([3]time.Time, error) {
	var s [3]time.Time
	for i, name := range []string{CAFile, CertFile, KeyFile} {
		st, err := os.Stat(filepath.Join(f.dir, name))
		if err != nil {
			return s, fmt.Errorf("read certificates: %w", err)
		}
		s[i] = st.ModTime()
	}
	return s, nil
}

func (f *folder) read() (*material, error) {
	ca := filepath.Join(f.dir, CAFile)
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read certificates: %s: %w", ca, ErrNoCertificates)
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(f.dir, CertFile), filepath.Join(f.dir, KeyFile))
	if err != nil {
		return nil, fmt.Errorf("read certificates in %s: %w", f.dir, err)
	}
	return &material{cert: cert, roots: roots}, nil
}
