// Package observe is weir observe: the flows of all nodes, live, each with its
// reason and the rule that decided. It imports the parts' finder and protos.
package observe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"weir.dev/weir/cli/internal/exit"
	"weir.dev/weir/cli/internal/parts"
	flowv1 "weir.dev/weir/proto/weir/flow/v1"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

type options struct {
	last       uint32
	once       bool
	output     string
	nodes      []string
	pods       []string
	namespaces []string
	verdicts   []string
	reasons    []string
	ports      []uint
	path       string
}

// New is the command.
func New() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "observe",
		Short: "Watch what is dropped, refused and newly allowed, and why",
		Example: `  weir observe
  weir observe --verdict deny --pod deploy/app3
  weir observe --once --last 100 --path /private -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, err := cmd.Flags().GetString("demo")
			if err != nil {
				return err
			}
			req, err := o.request()
			if err != nil {
				return exit.With(exit.Usage, err)
			}
			d, err := parts.Find(name)
			if err != nil {
				return exit.With(exit.Unreachable, err)
			}
			return run(cmd.Context(), d, o, req, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.Uint32Var(&o.last, "last", 20, "start with at most so many flows of each node that have happened already")
	f.BoolVar(&o.once, "once", false, "end with what has happened already")
	f.StringVarP(&o.output, "output", "o", "text", "text or json (one object a line)")
	f.StringSliceVar(&o.nodes, "node", nil, "only these nodes")
	f.StringSliceVar(&o.pods, "pod", nil, "only flows of these pods (POD, NAMESPACE/POD, or a workload: app3, deploy/app3)")
	f.StringSliceVarP(&o.namespaces, "namespace", "n", nil, "only flows of pods of these namespaces")
	f.StringSliceVar(&o.verdicts, "verdict", nil, "only these verdicts: deny, allow, http")
	f.StringSliceVar(&o.reasons, "reason", nil, "only these reasons: no-rule, denied, pending, http-denied, …")
	f.UintSliceVar(&o.ports, "port", nil, "only these ports, on either side")
	f.StringVar(&o.path, "path", "", "only HTTP requests whose path starts so")
	return cmd
}

func (o options) request() (*flowv1.ObserveRequest, error) {
	req := &flowv1.ObserveRequest{
		Follow: !o.once, Last: o.last, Namespaces: o.namespaces,
		Reasons: o.reasons, PathPrefix: o.path,
	}
	for _, p := range o.pods {
		for _, kind := range []string{"deploy/", "deployment/", "pod/", "po/"} {
			p = strings.TrimPrefix(p, kind)
		}
		req.Pods = append(req.Pods, p)
	}
	if o.output != "text" && o.output != "json" {
		return nil, fmt.Errorf("output %q: want text or json", o.output)
	}
	for _, p := range o.ports {
		if p == 0 || p > 65535 {
			return nil, fmt.Errorf("port %d: want 1 to 65535", p)
		}
		req.Ports = append(req.Ports, uint32(p))
	}
	for _, v := range o.verdicts {
		switch strings.ToLower(v) {
		case "deny":
			req.Verdicts = append(req.Verdicts, policyv1.Verdict_VERDICT_DENY)
		case "allow":
			req.Verdicts = append(req.Verdicts, policyv1.Verdict_VERDICT_ALLOW)
		case "http":
			req.Verdicts = append(req.Verdicts, policyv1.Verdict_VERDICT_HTTP)
		default:
			return nil, fmt.Errorf("verdict %q: want deny, allow or http", v)
		}
	}
	return req, nil
}

func run(ctx context.Context, d parts.Demo, o options, req *flowv1.ObserveRequest, out, errOut io.Writer) error {
	enforcers, err := enforcersOf(d, o.nodes)
	if err != nil {
		return err
	}
	p := &printer{out: out, errOut: errOut, json: o.output == "json", sort: o.once}
	n := &names{now: time.Now, list: func(ctx context.Context) ([]*identityv1.Service, error) { return Services(ctx, d) }}
	var g errgroup.Group
	reached := make([]bool, len(enforcers))
	for i, name := range enforcers {
		g.Go(func() error {
			err := follow(ctx, d, name, req, n, p, &reached[i])
			if status.Code(err) == codes.InvalidArgument {
				return exit.With(exit.Usage, errors.New(status.Convert(err).Message()))
			}
			if err != nil && ctx.Err() == nil {
				p.complain(name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	p.flush()
	for _, ok := range reached {
		if ok || ctx.Err() != nil {
			return p.err
		}
	}
	return exit.With(exit.Unreachable, errors.New("no enforcer can be reached; weir demo ps tells which parts live"))
}

func enforcersOf(d parts.Demo, nodes []string) ([]string, error) {
	if len(nodes) == 0 {
		return d.Parts("enforcer")
	}
	known, err := d.Nodes()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, n := range nodes {
		found := false
		for _, k := range known {
			found = found || k == n
		}
		if !found {
			return nil, exit.With(exit.Usage, fmt.Errorf("node %q: there is %s", n, strings.Join(known, ", ")))
		}
		out = append(out, "enforcer-"+n)
	}
	return out, nil
}

// follow prints one enforcer's flows until its stream ends.
func follow(ctx context.Context, d parts.Demo, name string, req *flowv1.ObserveRequest, n *names, p *printer, reached *bool) error {
	conn, err := d.Dial(name)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := flowv1.NewFlowServiceClient(conn).Observe(ctx, req)
	if err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			*reached = true
			return nil
		}
		if err != nil {
			if status.Code(err) == codes.Canceled {
				return nil
			}
			return err
		}
		*reached = true
		if f := r.GetFlow(); f != nil {
			n.name(ctx, f)
		}
		p.print(name, r)
	}
}

// printer writes whole lines; several goroutines use it.
type printer struct {
	out, errOut io.Writer
	json        bool
	sort        bool // by time, when all are there; else each at once

	mu   sync.Mutex
	kept []*flowv1.Flow
	err  error // of the first write that went wrong
}

func (p *printer) print(enforcer string, r *flowv1.ObserveResponse) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := r.GetLost(); n > 0 {
		fmt.Fprintf(p.errOut, "%s: %d flows were lost here\n", enforcer, n)
		return
	}
	f := r.GetFlow()
	switch {
	case f == nil:
	case p.sort:
		p.kept = append(p.kept, f)
	default:
		p.write(f)
	}
}

// flush prints what was kept, the newest last.
func (p *printer) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.SortStableFunc(p.kept, func(a, b *flowv1.Flow) int { return a.GetTime().AsTime().Compare(b.GetTime().AsTime()) })
	for _, f := range p.kept {
		p.write(f)
	}
}

func (p *printer) write(f *flowv1.Flow) {
	line := Line(f)
	if p.json {
		b, err := protojson.Marshal(f)
		if err != nil {
			p.err = errors.Join(p.err, err)
			return
		}
		line = string(b)
	}
	if _, err := fmt.Fprintln(p.out, line); err != nil && p.err == nil {
		p.err = err
	}
}

func (p *printer) complain(enforcer string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.errOut, "%s: %s\n", enforcer, status.Convert(err).Message())
}
