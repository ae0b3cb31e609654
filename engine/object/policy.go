// Package object turns Kubernetes documents into values: it decodes YAML and
// JSON with positions, validates, and refuses what it does not know. It is the
// only package of the engine that knows Kubernetes types, and imports them, a
// YAML parser and engine/rule; it does no I/O.
package object

import "weir.dev/weir/engine/rule"

// Semantics says by whose meaning a policy is judged.
type Semantics uint8

const (
	_                      Semantics = iota
	SemanticsV1                      // cilium.io/v1 (2017): L3 and L4 independent, all objects of a subject folded into one
	SemanticsV2                      // cilium.io/v2: rules are alternatives, deny wins
	SemanticsNetworkPolicy           // networking.k8s.io/v1
	SemanticsCluster                 // policy.networking.k8s.io/v1alpha2: tiers and priorities
)

// Policy is one policy object, of any kind, decoded and validated, its selectors
// canonical and with the namespaces that they are limited to written out.
type Policy struct {
	Origin    rule.Origin // Path is empty
	Semantics Semantics
	Subject   Selector
	// Whether the policy isolates what it selects, by direction.
	IsolatesIngress bool
	IsolatesEgress  bool
	Rules           []PolicyRule
	// Lines in Origin.File by field path, where the source has lines.
	Lines map[string]int
	// Warnings of what the policy says that its author hardly means: see Lint.
	Warnings []string
	// Also are the further entries of specs, if the object has more than one:
	// each has its own subject and its own rules and counts like a policy.
	Also []*Policy
}

// Parts are the policy and what its further specs say. Whoever judges by a
// policy judges by all its parts.
func (p *Policy) Parts() []*Policy { return append([]*Policy{p}, p.Also...) }

// LimitCIDRs takes from the policy's prefixes the right to match pods and nodes:
// what the cluster's switch cidrSelectsPods does when it is off.
func (p *Policy) LimitCIDRs() {
	for _, part := range p.Parts() {
		for i := range part.Rules {
			peers := part.Rules[i].Peers
			for k := range peers {
				peers[k].PrefixesMatchPods, peers[k].PrefixesMatchNodes = false, false
			}
		}
	}
}

// PolicyRule is one entry of ingress, egress, ingressDeny or egressDeny.
type PolicyRule struct {
	Direction rule.Direction
	Action    rule.Action // Allow, Deny or Pass
	Tier      rule.Tier
	Priority  uint32
	// Peers that any one of may match. Absent means everybody (v2, NetworkPolicy,
	// cluster) or nobody's entry (v1 ingress; an egress rule of v1 has no peers by
	// its nature and is written out as every entity); empty means nobody.
	Peers   []Peer
	AnyPeer bool // Peers is absent
	// Requires must all match too (v1 only: fromRequires).
	Requires []Selector
	// Ports of which any one may match. With AnyPort set it is absent: every
	// protocol and port; empty and not AnyPort matches nothing.
	Ports   []PortRule
	AnyPort bool
	Path    string // field path: spec.ingress[0]
}

// Peer is one alternative of a rule: exactly one field is set.
type Peer struct {
	Labels *Selector
	// Prefixes are CIDRs with their excepts. PrefixesMatchPods and -Nodes say
	// what a NetworkPolicy's ipBlock or a cluster policy's network may match.
	Prefix             *rule.PrefixSet
	PrefixesMatchPods  bool
	PrefixesMatchNodes bool
	Entities           []rule.Entity // alternatives; "all" and "cluster" are written out
	Name               string        // a DNS name or pattern
	Path               string        // field path
}

// PortRule is a port list with the HTTP rules for it.
type PortRule struct {
	Ports []Port // any one may match; empty: nothing
	// AnyPort: ports is absent, every protocol and port.
	AnyPort bool
	// HTTP rules of which one must match a request. Nil: no HTTP judgement;
	// empty and not nil does not occur (decoding turns it into nil, as v2 means).
	HTTP []rule.HTTPRule
	Path string
}

// Port is a range of one protocol, or a named port of the side that is reached.
type Port struct {
	Range rule.PortRange // if Name is empty
	Name  string         // with Protocol; matched against the receiver's named ports
	// Protocol of Name: 0 means any.
	Protocol uint8
}

// Selector says which pods are meant, by labels of the pod and of its
// namespace. The zero Selector selects nobody.
type Selector struct {
	// Namespaces the pod must be in, by name, sorted. Empty and not AnyNamespace
	// selects nobody.
	Namespaces   []string
	AnyNamespace bool
	// NamespaceLabels must hold of the namespace's labels.
	NamespaceLabels []Requirement
	// Labels must hold of the pod's security-relevant labels, its service account
	// and its cluster: of what SelectorLabels says of an identity.
	Labels []Requirement
	// Text is for people: "id=app2 in default".
	Text string
}

// Operator of a requirement.
type Operator uint8

const (
	_ Operator = iota
	In
	NotIn // also holds if the key is absent
	Exists
	DoesNotExist
)

// Requirement on one label. Values are sorted.
type Requirement struct {
	Key      string
	Operator Operator
	Values   []string
}
