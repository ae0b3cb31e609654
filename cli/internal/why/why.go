// Package why is weir why: it judges one flow on both sides with the policy
// that is in force now, and names the rule, its file and line. It imports the
// parts' finder and protos.
package why

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"weir.dev/weir/cli/internal/exit"
	"weir.dev/weir/cli/internal/observe"
	"weir.dev/weir/cli/internal/parts"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

type options struct {
	namespace string
	output    string
	host      string
	headers   []string
}

// New is the command.
func New() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "why FROM TO PORT/PROTOCOL [METHOD PATH]",
		Short: "Tell whether a flow is allowed, and by which rule on which side",
		Long: `Tell whether a flow is allowed, and by which rule on which side.

FROM and TO are a pod, deploy/NAME, NAMESPACE/POD, an address, or one of world,
host, remote-node. TO may be a Service, by name (svc/NAME) or address: then it is
told of each backend. The exit code is 0 if the flow is allowed and 1 if not.`,
		Example: `  weir why app2 app1 80/TCP GET /private
  weir why app2 svc/app1-service 80/TCP GET /public
  weir why shop/web 203.0.113.7 443/TCP`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 3 && len(args) != 5 {
				return exit.With(exit.Usage, fmt.Errorf("accepts FROM TO PORT/PROTOCOL, and METHOD PATH or neither; got %d arguments", len(args)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := cmd.Flags().GetString("demo")
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), name, args, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "default", "namespace of names without one")
	f.StringVarP(&o.output, "output", "o", "text", "text or json")
	f.StringVar(&o.host, "host", "", "the request's Host header; the server's name if not given")
	f.StringArrayVarP(&o.headers, "header", "H", nil, "a header of the request, 'Name: value'")
	return cmd
}

func (o options) run(ctx context.Context, demo string, args []string, out io.Writer) error {
	req, err := o.question(args)
	if err != nil {
		return exit.With(exit.Usage, err)
	}
	d, err := parts.Find(demo)
	if err != nil {
		return exit.With(exit.Unreachable, err)
	}
	records, err := addresses(ctx, d)
	if err != nil {
		return exit.With(exit.Unreachable, err)
	}
	from, err := find(args[0], o.namespace, records)
	if err != nil {
		return err
	}
	services, err := observe.Services(ctx, d)
	if err != nil {
		return exit.With(exit.Unreachable, err)
	}
	to, err := targets(args[1], o.namespace, req.GetPort(), req.GetProtocol(), records, services)
	if err != nil {
		return err
	}
	if req.Http != nil && req.Http.Host == "" {
		req.Http.Host = args[1][strings.LastIndex(args[1], "/")+1:]
	}
	every := true
	for _, t := range to {
		req.From, req.To, req.Port = from.seenFrom(t.party).msg, t.seenFrom(from).msg, t.port
		answer, err := explain(ctx, d, req)
		if err != nil {
			return exit.With(exit.Unreachable, err)
		}
		if err := o.print(out, from.name, t, args, answer); err != nil {
			return err
		}
		every = every && allowed(answer)
	}
	if !every {
		return exit.Silent(exit.Failed)
	}
	return nil
}

// question is everything of the request that the command line says itself.
func (o options) question(args []string) (*policyv1.ExplainRequest, error) {
	if o.output != "text" && o.output != "json" {
		return nil, fmt.Errorf("output %q: want text or json", o.output)
	}
	port, protocol, err := parsePort(args[2])
	if err != nil {
		return nil, err
	}
	req := &policyv1.ExplainRequest{Port: port, Protocol: protocol}
	if len(args) == 5 {
		req.Http = &policyv1.HTTPRequest{Method: args[3], Path: args[4], Host: o.host}
		for _, h := range o.headers {
			name, value, ok := strings.Cut(h, ":")
			if !ok {
				return nil, fmt.Errorf("header %q: want 'Name: value'", h)
			}
			req.Http.Headers = append(req.Http.Headers, &policyv1.Header{Name: strings.ToLower(strings.TrimSpace(name)), Value: strings.TrimSpace(value)})
		}
	}
	return req, nil
}

func parsePort(text string) (port, protocol uint32, err error) {
	number, name, ok := strings.Cut(text, "/")
	if !ok {
		name = "TCP"
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return 0, 0, fmt.Errorf("port %q: want a number up to 65535 and a protocol, as in 80/TCP", text)
	}
	switch strings.ToUpper(name) {
	case "TCP":
		protocol = 6
	case "UDP":
		protocol = 17
	case "SCTP":
		protocol = 132
	case "ICMP":
		protocol = 1
	case "ICMPV6":
		protocol = 58
	default:
		return 0, 0, fmt.Errorf("protocol %q: want TCP, UDP, SCTP, ICMP or ICMPv6", name)
	}
	return uint32(n), protocol, nil
}

func addresses(ctx context.Context, d parts.Demo) ([]*identityv1.AddressRecord, error) {
	var out []*identityv1.AddressRecord
	err := d.Any("identity", func(part string) error {
		conn, err := d.Dial(part)
		if err != nil {
			return err
		}
		defer conn.Close()
		r, err := identityv1.NewIdentityServiceClient(conn).ListAddresses(ctx, &identityv1.ListAddressesRequest{})
		if err != nil {
			return fmt.Errorf("%s: %s", part, status.Convert(err).Message())
		}
		out = r.GetRecords()
		return nil
	})
	return out, err
}

func explain(ctx context.Context, d parts.Demo, req *policyv1.ExplainRequest) (*policyv1.ExplainResponse, error) {
	var out *policyv1.ExplainResponse
	err := d.Any("policy", func(part string) error {
		conn, err := d.Dial(part)
		if err != nil {
			return err
		}
		defer conn.Close()
		if out, err = policyv1.NewPolicyServiceClient(conn).Explain(ctx, req); err != nil {
			return fmt.Errorf("%s: %s", part, status.Convert(err).Message())
		}
		return nil
	})
	return out, err
}

// allowed: both sides, each side's request too where one was asked. What is not
// known denies.
func allowed(r *policyv1.ExplainResponse) bool {
	return sideAllows(r.GetEgress()) && sideAllows(r.GetIngress())
}

func sideAllows(j *policyv1.Judgement) bool {
	switch j.GetVerdict() {
	case policyv1.Verdict_VERDICT_ALLOW, policyv1.Verdict_VERDICT_NOT_JUDGED:
		return true
	case policyv1.Verdict_VERDICT_HTTP:
		// Without a request the connection is let through to the proxy.
		return j.GetRequest() != policyv1.Verdict_VERDICT_DENY
	}
	return false
}

func (o options) print(out io.Writer, from string, to target, args []string, r *policyv1.ExplainResponse) error {
	_, protocol, ok := strings.Cut(args[2], "/")
	if !ok {
		protocol = "TCP"
	}
	port := fmt.Sprintf("%d/%s", to.port, strings.ToUpper(protocol))
	if o.output == "json" {
		return printJSON(out, from, to.name, port, r)
	}
	word := "DENIED"
	if allowed(r) {
		word = "ALLOWED"
	}
	_, err := fmt.Fprintf(out, "%s → %s %s: %s (revision %d)\n  egress  of %s: %s\n  ingress of %s: %s\n",
		from, to.name, strings.Join(append([]string{port}, args[3:]...), " "), word, r.GetRevision(),
		from, side(r.GetEgress()), to.name, side(r.GetIngress()))
	return err
}

// printJSON prints the answer with what was asked and whether it is allowed.
func printJSON(out io.Writer, from, to, port string, r *policyv1.ExplainResponse) error {
	answer, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(r)
	if err != nil {
		return err
	}
	head, err := json.Marshal(map[string]any{"from": from, "to": to, "port": port, "allowed": allowed(r)})
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, slices.Concat(head[:len(head)-1], []byte(","), answer[1:]), "", "  "); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, b.String())
	return err
}

func side(j *policyv1.Judgement) string {
	var b strings.Builder
	b.WriteString(observe.Verdict(j.GetVerdict()))
	if j.GetVerdict() == policyv1.Verdict_VERDICT_HTTP && j.GetRequest() != policyv1.Verdict_VERDICT_UNSPECIFIED {
		fmt.Fprintf(&b, ", request %s", observe.Verdict(j.GetRequest()))
	}
	if j.GetReason() != "" {
		fmt.Fprintf(&b, ": %s", j.GetReason())
	}
	if o := j.GetDecidedBy(); o != nil {
		fmt.Fprintf(&b, "\n      by %s", observe.Origin(o))
	}
	for _, o := range j.GetSelectedBy() {
		fmt.Fprintf(&b, "\n      selected by %s", observe.Origin(o))
	}
	return b.String()
}
