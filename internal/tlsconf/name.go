// Package tlsconf makes and reads the certificates by which Weir's parts know
// each other: TLS 1.3 with client certificates, files re-read when they change.
//
// A part's name stands in its certificate as the URI spiffe://weir/<role>/<name>;
// the DNS name <role>.weir beside it is what peers and NATS check.
package tlsconf

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
)

// Role of a part.
type Role string

// The roles that a certificate may have.
const (
	Node     Role = "node"
	Identity Role = "identity"
	Policy   Role = "policy"
	NATS     Role = "nats"
	CLI      Role = "cli"
)

func (r Role) valid() bool {
	switch r {
	case Node, Identity, Policy, NATS, CLI:
		return true
	}
	return false
}

// DNSName is what a peer checks when it connects to a part of the role.
func (r Role) DNSName() string { return string(r) + ".weir" }

// Name of one part. The zero Name is nobody.
type Name struct {
	Role Role
	Name string // of the node or the replica
}

func (n Name) String() string { return string(n.Role) + "/" + n.Name }

func (n Name) uri() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: "weir", Path: "/" + string(n.Role) + "/" + n.Name}
}

// Of returns the name that a verified certificate bears. It is an error if the
// certificate has not exactly one name of ours.
func Of(cert *x509.Certificate) (Name, error) {
	var found []Name
	for _, u := range cert.URIs {
		if u.Scheme != "spiffe" || u.Host != "weir" {
			continue
		}
		role, name, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
		if !ok || name == "" || strings.Contains(name, "/") || !Role(role).valid() {
			return Name{}, fmt.Errorf("certificate %s: %q is not the name of a part", cert.Subject, u)
		}
		found = append(found, Name{Role(role), name})
	}
	if len(found) != 1 {
		return Name{}, fmt.Errorf("certificate %s: %d names of parts, want one", cert.Subject, len(found))
	}
	return found[0], nil
}
