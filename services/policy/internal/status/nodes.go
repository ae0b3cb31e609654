// Package status knows which node has what in force: of this replica's own
// streams, and of the others' by the tables that replicas exchange.
//
// A Nodes is safe for concurrent use.
package status

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/policy/internal/catalog"
)

const (
	// tableLife is how long another replica's table counts after it came.
	tableLife = 6 * time.Second
	// forget is how long a node is listed after its enforcer was last seen.
	forget = 24 * time.Hour
)

// Node is what is known of one node.
type Node struct {
	Name     string
	Pos      catalog.Position // in force
	Live     bool             // its enforcer has a stream open
	LastNack string
	Seen     time.Time
}

// Nodes must be made by New.
type Nodes struct {
	now func() time.Time

	mu      sync.Mutex
	own     map[string]*entry
	others  map[string]table // by replica
	changed chan struct{}    // closed at the next change
	version uint64           // of own
	shared  uint64           // the version that the other replicas were told
}

type entry struct {
	Node
	streams int
}

type table struct {
	nodes []Node
	came  time.Time
}

// New returns an empty Nodes that reads the time from now.
func New(now func() time.Time) *Nodes {
	return &Nodes{now: now, own: map[string]*entry{}, others: map[string]table{}, changed: make(chan struct{})}
}

// update changes a node of this replica's own.
func (n *Nodes) update(node string, f func(*entry)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.own[node]
	if e == nil {
		e = &entry{Node: Node{Name: node}}
		n.own[node] = e
	}
	f(e)
	e.Live, e.Seen = e.streams > 0, n.now()
	n.version++
	n.signal()
}

func (n *Nodes) signal() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// Opened counts a stream of the node; the returned function ends it.
func (n *Nodes) Opened(node string) (closed func()) {
	n.update(node, func(e *entry) { e.streams++ })
	return func() { n.update(node, func(e *entry) { e.streams-- }) }
}

// InForce says what the node has in force.
func (n *Nodes) InForce(node string, pos catalog.Position) {
	n.update(node, func(e *entry) { e.Pos, e.LastNack = pos, "" })
}

// Refused says that the node refused a state, and what is still in force.
func (n *Nodes) Refused(node string, pos catalog.Position, reason string) {
	n.update(node, func(e *entry) { e.Pos, e.LastNack = pos, reason })
}

// Streams is the number of streams that this replica has open.
func (n *Nodes) Streams() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	streams := 0
	for _, e := range n.own {
		streams += e.streams
	}
	return streams
}

// Own is this replica's table, and its version.
func (n *Nodes) Own() ([]*policyv1.NodeRevision, uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]*policyv1.NodeRevision, 0, len(n.own))
	for _, name := range slices.Sorted(maps.Keys(n.own)) {
		out = append(out, n.own[name].message())
	}
	return out, n.version
}

func (n Node) message() *policyv1.NodeRevision {
	return &policyv1.NodeRevision{
		Node: n.Name, Generation: n.Pos.Generation, Revision: n.Pos.Revision, Live: n.Live,
		LastNack: n.LastNack, Seen: timestamppb.New(n.Seen),
	}
}

// told says that the other replicas were told a version of the table.
func (n *Nodes) told(version uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shared = version
}

// untold tells whether the table has changed since the others were told.
func (n *Nodes) untold() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.shared != n.version
}

// Merge takes another replica's table in.
func (n *Nodes) Merge(replica string, nodes []*policyv1.NodeRevision) {
	t := table{nodes: make([]Node, 0, len(nodes)), came: n.now()}
	for _, m := range nodes {
		t.nodes = append(t.nodes, Node{
			Name: m.GetNode(), Pos: catalog.Position{Generation: m.GetGeneration(), Revision: m.GetRevision()},
			Live: m.GetLive(), LastNack: m.GetLastNack(), Seen: m.GetSeen().AsTime(),
		})
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.others[replica] = t
	n.signal()
}

// All is what all replicas know together, sorted by name: of each node what the
// replica says that has its stream, else what was said last.
func (n *Nodes) All() []Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.now()
	best := map[string]Node{}
	add := func(x Node) {
		old, there := best[x.Name]
		if !there || x.Live && !old.Live || x.Live == old.Live && x.Seen.After(old.Seen) {
			best[x.Name] = x
		}
	}
	for _, e := range n.own {
		add(e.Node)
	}
	for replica, t := range n.others {
		dead := now.Sub(t.came) > tableLife
		for _, x := range t.nodes {
			x.Live = x.Live && !dead
			add(x)
		}
		if now.Sub(t.came) > forget {
			delete(n.others, replica)
		}
	}
	out := make([]Node, 0, len(best))
	for _, x := range best {
		if x.Live || now.Sub(x.Seen) < forget {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Message is a node as messages name it.
func (n Node) Message() *policyv1.NodeRevision { return n.message() }

// Changed is closed at the next change.
func (n *Nodes) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// Enforced counts the live nodes that have a revision in force, all live nodes,
// and names the others.
func Enforced(nodes []Node, at catalog.Position) (enforced, live uint32, stale []string) {
	for _, n := range nodes {
		switch {
		case !n.Live:
			stale = append(stale, n.Name)
			continue
		case n.Pos.Generation == at.Generation && n.Pos.Revision >= at.Revision:
			enforced++
		}
		live++
	}
	return enforced, live, stale
}
