// Package desired says what this node's kernel maps should hold: it joins the
// policy in force, the address records and the local endpoints into a
// plan.State, and tells which rule sets the proxy must know and which endpoints
// are judged.
//
// It has no clock and no I/O. Numbers of peers, classes, rows and rule sets are
// chosen by a Builder, which keeps those that still mean the same: a new pod of
// a known identity is one address, a new identity of a known class one more
// class entry. A Builder is for one goroutine; what it returns is not changed
// afterwards and may be read by any.
//
//	address → peer (identity, entity, longest prefix) → class (selectors that match) → cell
package desired

import (
	"fmt"
	"net/netip"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// Position is a place in the order of policy states.
type Position struct {
	Generation uint64
	Revision   rule.Revision
}

// Before reports whether p is older than q.
func (p Position) Before(q Position) bool {
	return p.Generation < q.Generation || p.Generation == q.Generation && p.Revision < q.Revision
}

// Record is what is known of an address.
type Record struct {
	Addr      netip.Addr // IPv4 never mapped
	PodUID    string
	Namespace string
	Pod       string
	Node      string
	Identity  rule.IdentityHash
	// Entered is where Identity entered the state log. The address is pending
	// until the policy in force is at least there, in the same generation.
	Entered     Position
	NodeAddress bool // of Node itself; Identity is zero
}

// Endpoint is one pod's interface on this node.
type Endpoint struct {
	ID       uint32 // never zero, never reused
	Ifindex  uint32
	PodUID   string
	Identity rule.IdentityHash // zero: not registered yet
	Entered  Position          // of Identity
	// Next is the identity that the pod has since it was relabelled; the one
	// before it is judged by until the policy in force knows Next.
	Next        rule.IdentityHash // zero: none
	NextEntered Position
	PodMAC      [6]byte
	HostMAC     [6]byte
	Addrs       []netip.Addr // IPv4 never mapped
}

// Input is all that a node's verdicts depend on.
type Input struct {
	Node string // this node's name

	// At is the position of the policy that the next four fields say. A zero At
	// is no policy: every endpoint is closed.
	At       Position
	Index    *merge.Index
	Rules    []rule.Rule
	Subjects map[rule.IdentityHash]rule.Subject
	Services []rule.Service

	Records map[netip.Addr]Record
	// Names are the live DNS names of addresses outside, sorted.
	Names        map[netip.Addr][]string
	NodeAddrs    []netip.Addr // that interfaces of this node have
	ClusterCIDRs []netip.Prefix
	Endpoints    []Endpoint
}

// Output is what should be in force.
type Output struct {
	State    plan.State
	RuleSets []RuleSet // that State names, by number; the proxy must know them before State is in force
	// Ready says for the IDs of endpoints as whom State judges them. All others
	// are closed.
	Ready map[uint32]Judged
	// Explain names what decided, for events that State gives rise to.
	Explain *Explanation
}

// Judged is the identity whose policy an endpoint is judged by.
type Judged struct {
	Identity rule.IdentityHash
	Entered  Position // as the endpoint said
}

// RuleSet has the number that slots and port maps carry. A request must pass
// each one of AllOf.
type RuleSet struct {
	Number rule.Verdict
	AllOf  []rule.RuleSet // sorted by ID
}

// Builder keeps the numbers of what it built last.
type Builder struct {
	peers    *numbers[peerKey]
	classes  *numbers[string]
	rows     *numbers[string]
	ruleSets ruleSetNumbers
	cells    cellCache

	// entered is where identities entered the log of this generation, as far as
	// records have told.
	generation uint64
	entered    map[rule.IdentityHash]rule.Revision
}

// NewBuilder makes a Builder whose peers stay below limit, and whose rule sets
// have numbers from firstRuleSet on (at least rule.FirstRuleSet), so that one
// from before a restart never means something else.
func NewBuilder(limits plan.Limits, firstRuleSet rule.Verdict) *Builder {
	return &Builder{
		peers:    newNumbers[peerKey](uint32(plan.NoPeer)+1, uint32(limits.PeerLimit())),
		classes:  newNumbers[string](uint32(plan.FirstClass), uint32(plan.DefaultClass)),
		rows:     newNumbers[string](uint32(plan.FirstRow), ^uint32(0)),
		ruleSets: ruleSetNumbers{next: max(firstRuleSet, rule.FirstRuleSet), byKey: map[string]rule.Verdict{}},
	}
}

// Reserve keeps the numbers that a state from before a restart names, so that
// none of them means something else while it is taken out of the kernel.
func (b *Builder) Reserve(s plan.State) {
	for peer, class := range s.Classes {
		b.peers.reserve(uint32(peer))
		b.classes.reserve(uint32(class))
	}
	for key := range s.Cells {
		b.rows.reserve(uint32(key.Row))
		if key.Class != plan.DefaultClass {
			b.classes.reserve(uint32(key.Class))
		}
	}
}

// NextRuleSet is above every rule set number that was given out.
func (b *Builder) NextRuleSet() rule.Verdict { return b.ruleSets.next }

// Build says what should be in force. After an error the state before it stays.
func (b *Builder) Build(in Input) (Output, error) {
	x := &build{builder: b, in: in, state: plan.State{
		Endpoints: map[uint32]plan.Endpoint{},
		Addresses: make(map[netip.Addr]plan.PeerRef, len(in.Records)),
		Prefixes:  map[netip.Prefix]plan.PeerRef{},
		Classes:   map[plan.Peer]plan.Class{},
		Cells:     map[plan.CellKey]plan.PortMap{},
		Services:  map[plan.ServiceKey][]plan.Backend{},
		Pairs:     map[plan.RuleSetPair]rule.Verdict{},
	}, ready: map[uint32]Judged{}, explain: newExplanation(in)}
	b.begin(in)
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"prefixes", x.prefixes},
		{"addresses", x.addresses},
		{"endpoints", x.endpoints}, // numbers the rows that cells are for
		{"services", x.services},   // may number more peers
		{"cells", x.cells},         // of all rows and classes
		{"rule set pairs", x.pairs},
	} {
		if err := step.do(); err != nil {
			return Output{}, fmt.Errorf("build %s: %w", step.name, err)
		}
	}
	sets, err := b.ruleSets.list(in.Index)
	if err != nil {
		return Output{}, err
	}
	for _, set := range sets {
		x.explain.ruleSets[set.Number] = set.AllOf
	}
	return Output{State: x.state, RuleSets: sets, Ready: x.ready, Explain: x.explain}, nil
}

// InForce gives back the numbers that the last State does not name: its plan is
// done, and nothing in the kernel has them any more.
func (b *Builder) InForce() {
	b.peers.sweep()
	b.classes.sweep()
	b.rows.sweep()
	b.ruleSets.sweep()
}

func (b *Builder) begin(in Input) {
	if b.entered == nil || b.generation != in.At.Generation {
		b.generation, b.entered = in.At.Generation, map[rule.IdentityHash]rule.Revision{}
	}
	b.peers.begin()
	b.classes.begin()
	b.rows.begin()
	b.ruleSets.begin()
	b.cells.begin(in.Index)
}

// build is one State in the making.
type build struct {
	builder *Builder
	in      Input
	state   plan.State
	ready   map[uint32]Judged
	explain *Explanation

	lengths4, lengths6 []int // of the policy's prefixes, the longest first
	policyPrefixes     map[netip.Prefix]bool
	rows               []numberedRow
	classes            []numberedClass
}
