package status

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"weir.dev/weir/cli/internal/parts"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
)

func sprintf(format string, args ...any) string { return fmt.Sprintf(format, args...) }

// count is n things: 1 policy, 2 policies.
func count[N int | uint32 | uint64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func unsynced(p *Part, kinds []string) error {
	if len(kinds) > 0 {
		p.Detail += ", not synced: " + strings.Join(kinds, ", ")
	}
	return nil
}

// fill takes over what the parts said and finds what is wrong.
func (r *Report) fill(got *answers) {
	for _, p := range got.policies.GetPolicies() {
		o := p.GetOrigin()
		r.Policies = append(r.Policies, Policy{
			Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName(), File: o.GetFile(), Line: o.GetLine(),
			Enforced: p.GetEnforced(), Nodes: p.GetNodes(), Stale: p.GetStaleNodes(), Warnings: p.GetWarnings(),
		})
	}
	r.refusals(got.refused)
	for _, p := range r.Parts {
		if !p.Up {
			r.Problems = append(r.Problems, fmt.Sprintf("%s cannot be reached: %s: see weir demo ps and %s; weir demo start %s starts it",
				p.Name, p.Error, parts.At(r.Demo).Log(p.Name), p.Name))
		}
	}
	if got.policies == nil {
		r.Problems = append(r.Problems, "no policy replica tells which policies are in force")
	}
	for _, p := range r.Policies {
		if p.Enforced < p.Nodes || p.Nodes == 0 {
			r.Problems = append(r.Problems, fmt.Sprintf("%s %s/%s is in force on %d of %d nodes", p.Kind, p.Namespace, p.Name, p.Enforced, p.Nodes))
		}
	}
	for _, o := range r.Refused {
		r.Problems = append(r.Problems, fmt.Sprintf("%s:%d is refused: %s", o.File, o.Line, o.Reason))
	}
	r.Healthy = len(r.Problems) == 0
}

// refusals keeps one of each: replicas tell the same.
func (r *Report) refusals(all []*identityv1.RefusedObject) {
	for _, o := range all {
		one := Refused{Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName(), File: o.GetFile(), Line: o.GetLine(), Reason: o.GetReason()}
		if !slices.Contains(r.Refused, one) {
			r.Refused = append(r.Refused, one)
		}
	}
}

// Print tells the report to a person.
func (r *Report) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PART\tSTATE\tREVISION\tDETAIL")
	for _, p := range r.Parts {
		state, revision := "up", fmt.Sprint(p.Revision)
		switch {
		case !p.Up:
			state = "DOWN"
		case p.Leader:
			state = "up, leader"
		}
		if p.Revision == 0 {
			revision = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", p.Name, state, revision, p.Detail)
	}
	fmt.Fprintln(w)
	if len(r.Policies) == 0 {
		fmt.Fprintln(w, "No policies.")
	} else {
		fmt.Fprintln(w, "POLICY\tENFORCED\tFROM")
	}
	for _, p := range r.Policies {
		fmt.Fprintf(w, "%s %s/%s\t%d/%d\t%s:%d\n", p.Kind, p.Namespace, p.Name, p.Enforced, p.Nodes, p.File, p.Line)
		for _, warning := range p.Warnings {
			fmt.Fprintf(w, "  warning: %s\n", warning)
		}
		if len(p.Stale) > 0 {
			fmt.Fprintf(w, "  stale: %s\n", strings.Join(p.Stale, ", "))
		}
	}
	if len(r.Refused) > 0 {
		fmt.Fprintln(w, "\nREFUSED\tWHERE\tWHY")
	}
	for _, o := range r.Refused {
		name := strings.Trim(o.Namespace+"/"+o.Name, "/")
		fmt.Fprintf(w, "%s %s\t%s:%d\t%s\n", o.Kind, name, o.File, o.Line, o.Reason)
	}
	return w.Flush()
}
