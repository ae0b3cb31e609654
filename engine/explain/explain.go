// Package explain judges one flow on both of its sides and says what decided,
// as values and in a sentence. It asks package merge, so its verdicts are those
// that a node enforces.
//
// It is pure and imports engine/httprule, engine/merge, engine/resolve,
// engine/rule and the standard library.
package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weir.dev/weir/engine/httprule"
	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/resolve"
	"weir.dev/weir/engine/rule"
)

// Party is one end of a flow.
type Party struct {
	// Identity of a pod. Zero: not a pod.
	Identity rule.IdentityHash
	// Entity of what is not a pod: World, Host (the node of the other end) or
	// RemoteNode.
	Entity rule.Entity
	// Addr is looked up in prefixes, if it is valid.
	Addr netip.Addr
	// Names are the DNS names that led to Addr, sorted.
	Names []string
}

// Flow is what is asked about.
type Flow struct {
	From, To Party
	Protocol uint8
	Port     uint16 // of To; of ICMP the type
	Request  *httprule.Request
}

// Verdict of one side. The zero Verdict denies.
type Verdict uint8

// Verdicts.
const (
	Deny Verdict = iota
	Allow
	HTTP      // requests are judged one by one
	NotJudged // not a pod
)

// Judgement is one side's verdict and why.
type Judgement struct {
	Verdict Verdict
	// Request is the verdict of the request, if one was asked: Deny or Allow, or
	// NotJudged if this side is not judged.
	Request Verdict
	// DecidedBy is where the rule stands that decided, of a request that passes
	// the HTTP rule. Nil: no rule decided.
	DecidedBy *rule.Origin
	// SelectedBy are the policies that close the pod in this direction, if none of
	// their rules allows the flow or the request. Sorted.
	SelectedBy []rule.Origin
	Reason     string // a sentence
}

// Explanation is both sides' judgement.
type Explanation struct {
	Egress, Ingress Judgement
}

// Allowed says that the flow, and the request if one was asked, pass both sides.
func (e Explanation) Allowed() bool { return e.Egress.passes() && e.Ingress.passes() }

func (j Judgement) passes() bool {
	switch j.Verdict {
	case Allow, NotJudged:
		return true
	case HTTP:
		return j.Request == Allow
	}
	return false
}

// Explain judges a flow by the state.
func Explain(state *resolve.State, f Flow) (Explanation, error) {
	var pods []rule.IdentityHash
	for _, p := range []Party{f.From, f.To} {
		if p.isPod() {
			pods = append(pods, p.Identity)
		}
	}
	return ByNode(state.Node(pods), f)
}

// ByNode judges a flow by what one node holds. A pod that the node state has no
// subject of is pending.
func ByNode(node resolve.NodeState, f Flow) (Explanation, error) {
	index, err := merge.New(merge.Policy{Selectors: node.Selectors, Rules: node.Rules, RuleSets: node.RuleSets})
	if err != nil {
		return Explanation{}, fmt.Errorf("explain: %w", err)
	}
	j := judge{
		index:    index,
		subjects: make(map[rule.IdentityHash]rule.Subject),
		origins:  make(map[rule.ID]rule.Origin),
		flow:     f,
	}
	for _, s := range node.Subjects {
		j.subjects[s.Identity] = s
	}
	for _, r := range node.Rules {
		j.origins[r.ID] = r.Origin
	}
	var e Explanation
	if e.Egress, err = j.side(rule.Egress, f.From, f.To); err != nil {
		return Explanation{}, err
	}
	if e.Ingress, err = j.side(rule.Ingress, f.To, f.From); err != nil {
		return Explanation{}, err
	}
	return e, nil
}

func (p Party) isPod() bool { return p.Identity != rule.IdentityHash{} }

type judge struct {
	index    *merge.Index
	subjects map[rule.IdentityHash]rule.Subject
	origins  map[rule.ID]rule.Origin
	flow     Flow
}

// side judges at the endpoint of subject.
func (j *judge) side(d rule.Direction, subject, peer Party) (Judgement, error) {
	if !subject.isPod() {
		return Judgement{Verdict: NotJudged, Request: j.asked(NotJudged), Reason: "no pod is on this side, so no policy is judged here"}, nil
	}
	s, known := j.subjects[subject.Identity]
	if !known {
		return Judgement{Reason: "the pod's identity is not resolved yet, so all is dropped"}, nil
	}
	desc, known := j.describe(peer)
	if !known {
		return Judgement{Reason: "the peer's identity is not resolved yet, so it is dropped as pending"}, nil
	}
	row := merge.RowKey{Subjects: s.Selectors, Direction: d}
	ports, attribution := j.index.Judge(row, j.index.Matches(desc), desc.Entity)
	verdict := ports.Verdict(j.flow.Protocol, j.flow.Port)
	by := attribution.At(j.flow.Protocol, j.flow.Port)
	var out Judgement
	if origin, ok := j.origins[by.Rule]; ok {
		out.DecidedBy = &origin
	}
	switch verdict.Kind {
	case merge.Allow:
		out.Verdict, out.Request = Allow, j.asked(Allow)
		out.Reason = j.allowReason(row, desc, out.DecidedBy)
	case merge.HTTP:
		out.Verdict = HTTP
		return out, j.request(&out, row, verdict.RuleSet)
	default:
		out.SelectedBy = j.policies(by.Isolated)
		out.Reason = denyReason(d, out)
	}
	return out, nil
}

// asked is v if a request was asked.
func (j *judge) asked(v Verdict) Verdict {
	if j.flow.Request == nil {
		return Deny
	}
	return v
}

func (j *judge) describe(p Party) (merge.PeerDesc, bool) {
	d := merge.PeerDesc{Entity: p.Entity, Names: p.Names}
	if p.Addr.IsValid() {
		addr := p.Addr.Unmap().WithZone("")
		d.Prefix = netip.PrefixFrom(addr, addr.BitLen())
	}
	if p.isPod() {
		s, known := j.subjects[p.Identity]
		d.Identity, d.Entity = s.Revision, rule.Endpoints
		return d, known
	}
	return d, true
}

// request judges the flow's request by a rule set.
func (j *judge) request(out *Judgement, row merge.RowKey, id rule.ID) error {
	port := describeRule(out.DecidedBy)
	if j.flow.Request == nil {
		out.Reason = "requests that match an HTTP rule pass, by " + port
		return nil
	}
	set, ok := j.index.RuleSet(id)
	if !ok {
		return fmt.Errorf("explain: rule set %s is not there", id)
	}
	guard, err := httprule.NewGuard(set.Rules)
	if err != nil {
		return fmt.Errorf("explain: rule set %s: %w", id, err)
	}
	what := j.flow.Request.Method + " " + j.flow.Request.Path
	n, ok, ambiguous := guard.Match(*j.flow.Request)
	if !ok {
		out.Request = Deny
		out.SelectedBy = j.isolating(row)
		out.Reason = fmt.Sprintf("no HTTP rule lets %s pass; the connection is opened by %s", what, port)
		if ambiguous {
			out.Reason = fmt.Sprintf("servers read the path of %s in several ways, so no pattern lets it pass; the connection is opened by %s", what, port)
		}
		return nil
	}
	out.Request = Allow
	if origin := set.Rules[n].Origin; origin != (rule.Origin{}) {
		out.DecidedBy = &origin
	}
	out.Reason = fmt.Sprintf("%s passes by %s", what, describeRule(out.DecidedBy))
	return nil
}

// isolating are the policies that close the row.
func (j *judge) isolating(row merge.RowKey) []rule.Origin {
	// A peer that no selector matches meets isolation alone.
	_, attribution := j.index.Judge(row, nil, rule.World)
	return j.policies(attribution.At(j.flow.Protocol, j.flow.Port).Isolated)
}

// policies are the policies that rules stand in, each once.
func (j *judge) policies(rules []rule.ID) []rule.Origin {
	var origins []rule.Origin
	for _, id := range rules {
		o := j.origins[id]
		o.Path = ""
		origins = append(origins, o)
	}
	slices.SortFunc(origins, rule.CompareOrigin)
	return slices.CompactFunc(origins, func(a, b rule.Origin) bool {
		return a.Kind == b.Kind && a.Namespace == b.Namespace && a.Name == b.Name
	})
}

func (j *judge) allowReason(row merge.RowKey, peer merge.PeerDesc, by *rule.Origin) string {
	direction := map[rule.Direction]string{rule.Ingress: "ingress", rule.Egress: "egress"}[row.Direction]
	switch {
	case by != nil:
		return "allowed by " + describeRule(by)
	case j.index.Open(row):
		return "no policy selects the pod for " + direction + ", so everything is allowed"
	case peer.Entity == rule.Host && row.Direction == rule.Ingress:
		return "a node may always reach its own pods, unless a rule denies it"
	}
	return "no policy isolates the pod for " + direction + ", and no rule denies this"
}

func denyReason(d rule.Direction, j Judgement) string {
	switch {
	case j.DecidedBy != nil:
		return "denied by " + describeRule(j.DecidedBy)
	case len(j.SelectedBy) == 0:
		return "the peer is neither a pod, a node nor outside of the cluster, so it is dropped"
	}
	direction := map[rule.Direction]string{rule.Ingress: "ingress", rule.Egress: "egress"}[d]
	var names []string
	for _, o := range j.SelectedBy {
		names = append(names, describePolicy(o))
	}
	return fmt.Sprintf("the pod is selected for %s by %s, and no rule allows this", direction, strings.Join(names, ", "))
}

func describePolicy(o rule.Origin) string {
	name := o.Kind + " " + o.Name
	if o.Namespace != "" {
		name = o.Kind + " " + o.Namespace + "/" + o.Name
	}
	switch {
	case o.File != "" && o.Line > 0:
		name += fmt.Sprintf(" (%s:%d)", o.File, o.Line)
	case o.File != "":
		name += " (" + o.File + ")"
	}
	return name
}

func describeRule(o *rule.Origin) string {
	if o == nil {
		return "a rule that is not known"
	}
	if o.Path == "" {
		return describePolicy(*o)
	}
	return o.Path + " of " + describePolicy(*o)
}
