// Package rule holds the values that the engine's stages hand to each other:
// what a resolved policy says, without Kubernetes types, labels or I/O.
//
// Values are plain and comparable with go-cmp, slices are sorted and free of
// duplicates, and a zero value never allows anything.
package rule

import "net/netip"

// ID names a selector, a rule or a rule set: the first 16 bytes of the SHA-256
// of its canonical form. The zero ID names nothing.
type ID [16]byte

// IdentityHash is the SHA-256 of an identity's canonical encoding.
type IdentityHash [32]byte

// Revision is a sequence number in the state log. An identity is named on the
// node by the revision at which it entered the log.
type Revision uint64

// Direction is that of a judgement as the judged endpoint sees it.
type Direction uint8

const (
	_ Direction = iota
	Ingress
	Egress
)

// Action of a rule. The zero Action is none that a rule may have; whoever
// meets it denies.
type Action uint8

const (
	_ Action = iota
	Deny
	Allow
	Pass    // go on with the next tier
	Isolate // no peer, no ports: the subject is closed in this direction but for what rules allow
)

// Tier orders rules before their priority.
type Tier uint8

const (
	_ Tier = iota
	Admin
	Normal
	Baseline
)

// Entity is a peer that labels do not name.
type Entity uint8

const (
	_ Entity = iota
	World
	Host       // the node of the judged endpoint
	RemoteNode // another node
	Endpoints  // every pod with an identity
)

// IP protocol numbers that rules name.
const (
	ICMP   uint8 = 1
	TCP    uint8 = 6
	UDP    uint8 = 17
	ICMPv6 uint8 = 58
	SCTP   uint8 = 132
)

// A PortRange is a closed interval of ports of one protocol, in host byte
// order; of ICMP types for ICMP and ICMPv6. With Any set it is every packet of
// every protocol, and the other fields are zero.
type PortRange struct {
	Protocol uint8
	Lo, Hi   uint16 // Lo <= Hi
	Any      bool
}

// Everything is the port list of a rule that names no ports. An empty list is
// not the same: it matches nothing.
func Everything() []PortRange { return []PortRange{{Any: true}} }

// A PrefixSet is a prefix without its excepts.
type PrefixSet struct {
	Prefix netip.Prefix   // masked
	Except []netip.Prefix // masked, inside of Prefix
}

// Selector is a peer selector with its members: whom a rule speaks of.
type Selector struct {
	ID         ID
	Identities []Revision  // sorted
	Prefixes   []PrefixSet // sorted by prefix
	Entities   []Entity    // sorted
	Names      []string    // sorted, lower case, no trailing dot
	// Whether Prefixes may match addresses of pods and of nodes.
	PrefixesMatchPods  bool
	PrefixesMatchNodes bool
	// Within: the selector means its Identities at addresses that Prefixes have,
	// and neither alone.
	Within bool
	Text   string // for people
}

// Rule is one resolved rule.
type Rule struct {
	ID        ID
	Subject   ID // selector of the endpoints that it applies to
	Direction Direction
	Tier      Tier
	Priority  uint32 // lower decides first; 0 in Normal
	Action    Action
	Peer      ID          // zero for Isolate only
	Ports     []PortRange // sorted; empty matches nothing
	// RuleSet that requests must pass, of an Allow rule. Zero: no HTTP judgement.
	RuleSet ID
	Origin  Origin
}

// Origin is what a rule was written as.
type Origin struct {
	Kind       string // CiliumNetworkPolicy, NetworkPolicy, …
	APIVersion string
	Namespace  string
	Name       string
	Path       string // spec.ingress[0].toPorts[0]
	File       string // empty: its source has no files
	Line       int    // from 1; 0: unknown
}

// A RuleSet is content-addressed; a request passes if one of its rules matches.
type RuleSet struct {
	ID    ID
	Rules []HTTPRule
}

// HTTPRule matches if all its conditions hold. A nil condition holds always.
// Regular expressions are RE2 and match the whole value.
type HTTPRule struct {
	Method  *string
	Path    *string // against the target with its query string
	Host    *string // against the Host header with its port
	Headers []HeaderRule
	Origin  Origin // not part of the rule set's ID
}

// HeaderRule holds if the header is there and, with Value, equals it.
type HeaderRule struct {
	Name  string // lower case
	Value *string
}

// Subject says which subject selectors an identity is in.
type Subject struct {
	Identity  IdentityHash
	Revision  Revision
	Selectors []ID // sorted
}

// Identity is the canonical set that an IdentityHash names.
type Identity struct {
	Cluster        string
	Namespace      string // name; its labels are joined at resolving
	Labels         []Label
	ServiceAccount string
	NamedPorts     []NamedPort
}

// Label is a key and its value.
type Label struct{ Key, Value string }

// NamedPort is a container port that has a name.
type NamedPort struct {
	Name     string
	Protocol uint8
	Port     uint16
}

// Backend is where a Service's address leads.
type Backend struct {
	Addr netip.Addr
	Port uint16
}

// Service is one address, protocol and port that clients use.
type Service struct {
	Addr      netip.Addr
	Protocol  uint8
	Port      uint16
	Backends  []Backend // sorted
	Namespace string
	Name      string
}

// Verdict is what is decided of a packet. The zero Verdict denies; a Verdict
// that is neither Denied nor Allowed is the number of a rule set on this node.
type Verdict uint32

const (
	Denied  Verdict = 0
	Allowed Verdict = 1
	// FirstRuleSet is the least number that a rule set may have on a node.
	FirstRuleSet Verdict = 2
)
