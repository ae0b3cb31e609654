package desired

import (
	"fmt"
	"slices"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// numberedRow is a row that some endpoint of the build has.
type numberedRow struct {
	number plan.Row
	merge.RowKey
	text  string    // of the key
	peers []rule.ID // that its rules name, sorted
}

// endpoints gives each endpoint its rows. One whose identity the policy in
// force does not name stays closed.
func (x *build) endpoints() error {
	for _, e := range x.in.Endpoints {
		out := plan.Endpoint{
			ID: e.ID, Egress: plan.RowClosed, Ingress: plan.RowClosed,
			PodMAC: e.PodMAC, HostMAC: e.HostMAC, Addrs: e.Addrs,
		}
		if subject, judged, ok := x.subject(e); ok {
			var err error
			if out.Egress, err = x.row(subject, rule.Egress); err != nil {
				return fmt.Errorf("endpoint %d: %w", e.ID, err)
			}
			if out.Ingress, err = x.row(subject, rule.Ingress); err != nil {
				return fmt.Errorf("endpoint %d: %w", e.ID, err)
			}
			x.ready[e.ID] = judged
		}
		x.state.Endpoints[e.Ifindex] = out
	}
	return nil
}

// subject is what the policy in force says of the endpoint's identity, if it is
// new enough to know it.
func (x *build) subject(e Endpoint) (rule.Subject, Judged, bool) {
	for _, j := range []Judged{{e.Next, e.NextEntered}, {e.Identity, e.Entered}} {
		if s, ok := x.in.Subjects[j.Identity]; ok && x.known(j.Identity, j.Entered) {
			return s, j, true
		}
	}
	return rule.Subject{}, Judged{}, false
}

// known says whether the policy in force is at least as new as the identity.
func (x *build) known(id rule.IdentityHash, entered Position) bool {
	return id != (rule.IdentityHash{}) && x.in.Index != nil && !x.in.At.Before(entered)
}

func (x *build) row(s rule.Subject, d rule.Direction) (plan.Row, error) {
	key := merge.RowKey{Subjects: s.Selectors, Direction: d}
	if x.in.Index.Open(key) {
		return plan.RowOpen, nil
	}
	text := []byte{byte(d)}
	for _, id := range s.Selectors {
		text = append(text, id[:]...)
	}
	known := x.builder.rows.named[string(text)]
	n, err := x.builder.rows.of(string(text))
	if err != nil {
		return plan.RowClosed, fmt.Errorf("rows: %w", err)
	}
	if row := plan.Row(n); !known {
		x.rows = append(x.rows, numberedRow{row, key, string(text), x.in.Index.PeerSelectors(key)})
		x.explain.row(row, key, x.in.Rules)
	}
	return plan.Row(n), nil
}

// cellCache keeps what was judged under one index: an address or endpoint that
// comes and goes judges nothing anew.
type cellCache struct {
	index *merge.Index
	cells map[string]judged
}

type judged struct {
	ports       merge.PortMap
	attribution merge.Attribution
}

func (c *cellCache) begin(index *merge.Index) {
	if c.index != index || c.cells == nil {
		c.index, c.cells = index, map[string]judged{}
	}
}

// judge is the cell of a row and the peers that matched match.
func (x *build) judge(r numberedRow, matched []rule.ID, entity rule.Entity) judged {
	key := append([]byte(r.text), 0, byte(entity))
	var relevant []rule.ID
	for _, id := range matched {
		if _, ok := slices.BinarySearchFunc(r.peers, id, rule.ID.Compare); ok {
			relevant = append(relevant, id)
			key = append(key, id[:]...)
		}
	}
	if j, ok := x.builder.cells.cells[string(key)]; ok {
		return j
	}
	var j judged
	j.ports, j.attribution = x.in.Index.Judge(r.RowKey, relevant, entity)
	x.builder.cells.cells[string(key)] = j
	return j
}

// cells fills the cells of every row: the default is that of a peer that no
// selector matches, and a class has a cell of its own only if it differs.
func (x *build) cells() error {
	for _, r := range x.rows {
		fallback, err := x.portMap(x.judge(r, nil, rule.World).ports)
		if err != nil {
			return err
		}
		x.state.Cells[plan.CellKey{Row: r.number, Class: plan.DefaultClass}] = fallback
		for _, c := range x.classes {
			j := x.judge(r, c.matched, c.entity)
			ports, err := x.portMap(j.ports)
			if err != nil {
				return err
			}
			key := plan.CellKey{Row: r.number, Class: c.number}
			x.explain.cells[key] = j.attribution
			if !slices.Equal(ports, fallback) {
				x.state.Cells[key] = ports
			}
		}
	}
	return nil
}

// portMap turns rule set IDs into this node's numbers.
func (x *build) portMap(m merge.PortMap) (plan.PortMap, error) {
	out := make(plan.PortMap, len(m))
	for i, r := range m {
		out[i].Start = r.Start
		switch r.Verdict.Kind {
		case merge.Allow:
			out[i].Verdict = rule.Allowed
		case merge.HTTP:
			n, err := x.builder.ruleSets.of([]rule.ID{r.Verdict.RuleSet})
			if err != nil {
				return nil, err
			}
			out[i].Verdict = n
		default:
			out[i].Verdict = rule.Denied
		}
	}
	return out, nil
}
