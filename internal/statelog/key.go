// Package statelog is the one order that Weir's replicas agree on: a NATS
// bucket whose stream sequence is the revision.
//
// A Writer copies what a source says into the log, comparing first, so that a
// restart writes only what differs. Replay hands every entry to its caller in
// order and tells when the head that was seen at the start is reached; a View
// keeps the last value of every key. Hold keeps a lease, so that one replica at
// a time copies.
//
// It imports proto, bus, logkey and nats.go. Writers and Views are safe for
// concurrent use; Replay calls back from the one goroutine it runs in.
package statelog

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// Kind of an entry.
type Kind uint8

// The kinds of entries. The zero Kind is none.
const (
	_ Kind = iota
	Generation
	Identity
	Namespace
	Service
	Policy
	Copied
)

var kindNames = map[Kind]string{
	Generation: "generation", Identity: "identity", Namespace: "namespace", Service: "service", Policy: "policy", Copied: "copied",
}

func (k Kind) String() string {
	if s, ok := kindNames[k]; ok {
		return s
	}
	return "kind " + strconv.Itoa(int(k))
}

// A Key names an entry. It is a valid key of a NATS bucket.
type Key string

// GenerationKey names the entry that says which life of the log this is.
const GenerationKey Key = "generation"

// CopiedPoliciesKey names the entry that says in which generation of the log all
// policies of the source have been written once. Before that, a policy that is
// not there may be one that was not written yet.
const CopiedPoliciesKey Key = "copied.policy"

// IdentityKey names an identity by its hash.
func IdentityKey(hash []byte) Key { return Key("identity." + hex.EncodeToString(hash)) }

// NamespaceKey names a namespace.
func NamespaceKey(name string) Key { return Key("namespace." + token(name)) }

// ServiceKey names a Service.
func ServiceKey(namespace, name string) Key {
	return Key("service." + token(namespace) + "." + token(name))
}

// PolicyKey names a policy object by its kind, namespace and name.
func PolicyKey(kind, namespace, name string) Key {
	return Key("policy." + token(kind) + "." + token(namespace) + "." + token(name))
}

// token makes one token of a subject of a Kubernetes name, which may have dots
// but neither "=" nor "_". The empty name is "_".
func token(name string) string {
	if name == "" {
		return "_"
	}
	return strings.ReplaceAll(name, ".", "=")
}

func untoken(t string) string {
	if t == "_" {
		return ""
	}
	return strings.ReplaceAll(t, "=", ".")
}

// Kind says what the key names; zero if it names nothing that this build knows.
func (k Key) Kind() Kind {
	prefix, _, _ := strings.Cut(string(k), ".")
	for kind, name := range kindNames {
		if name == prefix {
			return kind
		}
	}
	return 0
}

// Name is the last name that the key has: of the namespace, Service or policy.
func (k Key) Name() string {
	i := strings.LastIndexByte(string(k), '.')
	return untoken(string(k)[i+1:])
}

// Policy is the kind, namespace and name that a policy's key holds.
func (k Key) Policy() (kind, namespace, name string) {
	parts := strings.Split(string(k), ".")
	if len(parts) != 4 || parts[0] != kindNames[Policy] {
		return "", "", ""
	}
	return untoken(parts[1]), untoken(parts[2]), untoken(parts[3])
}

// Hash is the identity hash that an identity's key holds.
func (k Key) Hash() ([]byte, error) {
	text, ok := strings.CutPrefix(string(k), "identity.")
	if !ok {
		return nil, fmt.Errorf("key %s names no identity", k)
	}
	return hex.DecodeString(text)
}

// decode reads the value of an entry.
func decode(key Key, value []byte) (proto.Message, error) {
	var m proto.Message
	switch key.Kind() {
	case Identity:
		m = &identityv1.Identity{}
	case Namespace:
		m = &identityv1.Namespace{}
	case Service:
		m = &identityv1.Service{}
	case Policy:
		m = &policyv1.PolicyEntry{}
	default:
		return nil, fmt.Errorf("key %s names nothing that this build knows", key)
	}
	if err := proto.Unmarshal(value, m); err != nil {
		return nil, fmt.Errorf("read the value of %s: %w", key, err)
	}
	return m, nil
}

func encode(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}
