package policytest

import (
	"fmt"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/engine/spec"
)

// Failure is one answer that is not the recorded one.
type Failure struct {
	Scenario string `json:"scenario"`
	Query    string `json:"query,omitempty"`   // empty: the scenario as a whole
	By       string `json:"by,omitempty"`      // engine or specification
	Side     string `json:"side,omitempty"`    // egress, ingress or both
	Request  string `json:"request,omitempty"` // of HTTP
	Want     string `json:"want"`
	Got      string `json:"got"`
}

func (f Failure) String() string {
	text := f.Scenario + ": "
	if f.Query != "" {
		text += f.Query + ": "
	}
	if f.Request != "" {
		text += f.Request + ": "
	}
	if f.By != "" {
		text += f.By + ", "
	}
	if f.Side != "" {
		text += f.Side + ": "
	}
	return text + fmt.Sprintf("want %s, got %s", f.Want, f.Got)
}

// Skip is a scenario that was left out, and why.
type Skip struct {
	Scenario string `json:"scenario"`
	Reason   string `json:"reason"`
}

// Report is the outcome of a run. Passed and Failed count scenarios, and so do
// the Skipped; Questions, Requests and NotAsked what the others asked.
type Report struct {
	Passed    int       `json:"passed"`
	Failed    int       `json:"failed"`
	Skipped   []Skip    `json:"skipped"`
	Questions int       `json:"questions"`
	Requests  int       `json:"requests"`
	NotAsked  int       `json:"not_asked"` // of entities that Weir does not have
	Failures  []Failure `json:"failures"`
}

// Summary is the report in one line.
func (r Report) Summary() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped (%d questions, %d HTTP requests; %d questions not asked)",
		r.Passed, r.Failed, len(r.Skipped), r.Questions, r.Requests, r.NotAsked)
}

// Options of a run.
type Options struct {
	// OnlySupported leaves out scenarios with objects that Weir refuses as not
	// supported; without it they fail.
	OnlySupported bool
	// CIDRSelectsPods says whether a NetworkPolicy's ipBlock may match pods.
	// Nil: as the scenario was recorded.
	CIDRSelectsPods *bool
}

func (o Options) run(scenarios []scenario) Report {
	r := Report{Skipped: []Skip{}, Failures: []Failure{}}
	for _, s := range scenarios {
		o.scenario(&r, s)
	}
	return r
}

func (o Options) scenario(r *Report, s scenario) {
	cidrs := !s.fromCilium
	if o.CIDRSelectsPods != nil {
		cidrs = *o.CIDRSelectsPods
	}
	w := newWorld(s, cidrs)
	x := run{report: r, scenario: s, world: w}
	if unsupported := x.refusals(); unsupported != "" {
		if o.OnlySupported {
			r.Skipped = append(r.Skipped, Skip{s.name, unsupported})
			return
		}
		x.fail(Failure{Want: "accepted", Got: unsupported})
	} else {
		x.judges()
	}
	if x.failed {
		r.Failed++
	} else {
		r.Passed++
	}
}

// run is one scenario under way.
type run struct {
	report   *Report
	scenario scenario
	world    world
	failed   bool
}

func (x *run) fail(f Failure) {
	f.Scenario = x.scenario.name
	x.failed = true
	x.report.Failures = append(x.report.Failures, f)
}

// refusals compares what is refused with what must be. It returns why the
// scenario is not supported, if it is not.
func (x *run) refusals() string {
	refused := map[string]bool{}
	for _, ref := range x.world.refused {
		refused[ref.Key()] = true
		_, expected := x.scenario.expect.Rejected[ref.Key()]
		switch {
		case expected:
		case ref.Unsupported():
			return ref.Error()
		default:
			x.fail(Failure{Want: "accepted", Got: ref.Error()})
		}
	}
	for _, k := range sortedKeys(x.scenario.expect.Rejected) {
		if !refused[k] {
			x.fail(Failure{Want: k + " refused: " + x.scenario.expect.Rejected[k], Got: "accepted"})
		}
	}
	return ""
}

func (x *run) judges() {
	eng, err := newEngine(x.world)
	if err != nil {
		x.fail(Failure{By: "engine", Want: "answers", Got: err.Error()})
		return
	}
	all := []struct {
		name string
		judge
	}{
		{"engine", eng},
		{"specification", naive{spec.Cluster{Namespaces: x.world.namespaces, Policies: x.world.policies}}},
	}
	for _, q := range x.scenario.expect.Queries {
		f, ok, err := x.world.flow(q)
		if err != nil {
			x.fail(Failure{Query: q.String(), Want: "an answer", Got: err.Error()})
			continue
		}
		if !ok {
			x.report.NotAsked++
			continue
		}
		x.report.Questions++
		x.report.Requests += len(q.Requests)
		for _, j := range all {
			if err := x.ask(j.name, j.judge, q, f); err != nil {
				x.fail(Failure{Query: q.String(), By: j.name, Want: "an answer", Got: err.Error()})
			}
		}
	}
}

func (x *run) ask(by string, j judge, q query, f spec.Flow) error {
	egress, err := j.judge(rule.Egress, f)
	if err != nil {
		return err
	}
	ingress, err := j.judge(rule.Ingress, f)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		side, want string
		got        spec.Kind
	}{
		{"egress", q.Egress, egress.kind},
		{"ingress", q.Ingress, ingress.kind},
		{"both", q.Verdict, both(egress.kind, ingress.kind)},
	} {
		if c.want != "" && !agrees(c.want, c.got, q.HTTPAll) {
			x.fail(Failure{Query: q.String(), By: by, Side: c.side, Want: c.want, Got: c.got.String()})
		}
	}
	for _, r := range q.Requests {
		if got := egress.permits(r) && ingress.permits(r); got != r.Allow {
			x.fail(Failure{Query: q.String(), By: by, Request: r.String(), Want: word(r.Allow), Got: word(got)})
		}
	}
	return nil
}

// both is what becomes of a flow that is judged on two sides.
func both(a, b spec.Kind) spec.Kind {
	for _, k := range []spec.Kind{spec.Deny, spec.HTTP, spec.Allow} {
		if a == k || b == k {
			return k
		}
	}
	return spec.NotJudged
}

// agrees compares a verdict with a recorded one. Where every request passes
// "l7" and "allow" are equal; where nothing is judged some recordings say allow.
func agrees(want string, got spec.Kind, httpAll bool) bool {
	switch {
	case want == got.String():
		return true
	case httpAll:
		return want == spec.HTTP.String() && got == spec.Allow
	case got == spec.NotJudged:
		return want == spec.Allow.String()
	}
	return false
}

func word(allow bool) string {
	if allow {
		return spec.Allow.String()
	}
	return spec.Deny.String()
}
