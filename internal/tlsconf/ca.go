package tlsconf

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

const caKeyFile = "ca.key"

// Lifetimes of what a CA issues. The clock may be an hour off.
const (
	caLife   = 10 * 365 * 24 * time.Hour
	certLife = 365 * 24 * time.Hour
	skew     = time.Hour
)

// CA issues the certificates of one installation.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a CA with a key of its own.
func NewCA() (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the CA's key: %w", err)
	}
	tmpl := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "weir CA"},
		NotBefore:             time.Now().Add(-skew),
		NotAfter:              time.Now().Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	cert, err := sign(tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return &CA{cert, key}, nil
}

// LoadCA reads what Save wrote.
func LoadCA(dir string) (*CA, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, fmt.Errorf("read the CA: %w", err)
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, fmt.Errorf("read the CA: %w", err)
	}
	certDER, _ := pem.Decode(certPEM)
	keyDER, _ := pem.Decode(keyPEM)
	if certDER == nil || keyDER == nil {
		return nil, fmt.Errorf("read the CA in %s: %w", dir, errors.New("not PEM"))
	}
	cert, err := x509.ParseCertificate(certDER.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the CA in %s: %w", dir, err)
	}
	key, err := x509.ParseECPrivateKey(keyDER.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the CA in %s: %w", dir, err)
	}
	return &CA{cert, key}, nil
}

// Save writes the CA's certificate and key into dir.
func (ca *CA) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save the CA: %w", err)
	}
	if err := writePEM(filepath.Join(dir, CAFile), "CERTIFICATE", ca.cert.Raw); err != nil {
		return err
	}
	return writeKey(filepath.Join(dir, caKeyFile), ca.key)
}

// Issue writes ca.crt, tls.crt and tls.key for the part n into dir. ips are
// addresses that the part is reached at; checks are by name, not by address.
func (ca *CA) Issue(dir string, n Name, ips []net.IP) error {
	if !n.Role.valid() || n.Name == "" {
		return fmt.Errorf("issue a certificate: %q is not the name of a part", n)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the key of %s: %w", n, err)
	}
	tmpl := &x509.Certificate{
		Subject:     pkix.Name{CommonName: n.String()},
		NotBefore:   time.Now().Add(-skew),
		NotAfter:    time.Now().Add(certLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{n.uri()},
		DNSNames:    []string{n.Role.DNSName()},
		IPAddresses: ips,
	}
	cert, err := sign(tmpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		return fmt.Errorf("issue a certificate for %s: %w", n, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("issue a certificate for %s: %w", n, err)
	}
	if err := writePEM(filepath.Join(dir, CAFile), "CERTIFICATE", ca.cert.Raw); err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, CertFile), "CERTIFICATE", cert.Raw); err != nil {
		return err
	}
	return writeKey(filepath.Join(dir, KeyFile), key)
}

func sign(tmpl, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("sign a certificate: %w", err)
	}
	tmpl.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return writePEM(path, "EC PRIVATE KEY", der)
}

// writePEM replaces path as a whole, so that a reader never sees half of it.
func writePEM(path, kind string, der []byte) error {
	next := path + ".next"
	if err := os.WriteFile(next, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
