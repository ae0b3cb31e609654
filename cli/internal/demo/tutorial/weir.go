package tutorial

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"weir.dev/weir/cli/internal/observe"
	flowv1 "weir.dev/weir/proto/weir/flow/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// otherPort is one that the server listens on and the policy does not name.
const otherPort = "8080"

// Limits of one request of a client.
const (
	connectLimit = "1"
	requestLimit = "3"
)

// ports gives every request a client port of its own, so that its flows and the
// server's log lines are told from all others. The range is below the kernel's
// own.
type ports struct{ last atomic.Uint32 }

func (p *ports) next() int { return 20000 + int(p.last.Add(1)%12000) }

// pod is what the tutorial needs to know of one.
type pod struct {
	name      string
	node      string
	addresses []string // IPv4, IPv6
}

// result is what a command came back with.
type result struct {
	command string // as a reader would type it
	out     string
	code    int
}

// weir runs the weir command.
func (r *runner) weir(ctx context.Context, args ...string) result {
	cmd := exec.CommandContext(ctx, r.cfg.Exe, args...)
	cmd.Env = append(cmd.Environ(), "WEIR_DEMO="+r.cfg.Demo)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	res := result{command: "weir " + strings.Join(args, " "), out: out.String()}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		res.code = exit.ExitCode()
	case err != nil:
		res.code, res.out = -1, res.out+err.Error()+"\n"
	}
	return res
}

// response is what a client's curl came back with.
type response struct {
	result
	client  string
	address string // asked for
	port    int    // of the client
	status  int    // 0: no answer
	body    string
}

// curl asks as the client, from a port of its own.
func (r *runner) curl(ctx context.Context, client, address, port, path string) response {
	out := response{client: client, address: address, port: r.ports.next()}
	host := address
	if strings.Contains(address, ":") {
		host = "[" + address + "]"
	}
	args := []string{
		"exec", "deploy/" + client, "--", "curl", "-s", "--connect-timeout", connectLimit, "--max-time", requestLimit,
		"--local-port", strconv.Itoa(out.port), "-w", `\n%{http_code}`, "http://" + host + ":" + port + path,
	}
	out.result = r.weir(ctx, args...)
	out.command = "weir exec deploy/" + client + " -- curl -s http://" + strings.TrimSuffix(host+":"+port, ":80") + path
	i := strings.LastIndexByte(out.out, '\n')
	if i < 0 {
		return out
	}
	out.body = out.out[:i]
	if n, err := strconv.Atoi(strings.TrimSpace(out.out[i+1:])); err == nil {
		out.status = n
	}
	return out
}

// opened tells whether the server's own answer came, to the letter.
func (g response) opened(path string) bool {
	want := publicBody
	if path == "/private" {
		want = privateBody
	}
	return g.code == 0 && g.status == 200 && g.body == want
}

// denied tells whether the proxy's refusal came.
func (g response) denied() bool {
	return g.code == 0 && g.status == 403 && strings.TrimSpace(g.body) == deniedBody
}

// timedOut tells whether there was no connection at all; 28 is curl's time-out.
func (g response) timedOut() bool { return g.code == 28 && g.status == 0 }

func (g response) String() string {
	switch {
	case g.status != 0:
		return fmt.Sprintf("%d %s", g.status, g.body)
	case g.code == 28:
		return "time-out"
	}
	return fmt.Sprintf("no answer (curl: %d) %s", g.code, strings.TrimSpace(g.body))
}

// findPods learns where everything is; it is an error until all of it runs.
func (r *runner) findPods(ctx context.Context) error {
	var pods corev1.PodList
	if err := r.get(ctx, &pods, "pods"); err != nil {
		return err
	}
	r.app1 = nil
	for _, p := range pods.Items {
		if p.Status.Phase != corev1.PodRunning {
			return fmt.Errorf("pod %s is %s: %s %s", p.Name, p.Status.Phase, p.Status.Reason, p.Status.Message)
		}
		found := pod{name: p.Name, node: p.Spec.NodeName}
		for _, ip := range p.Status.PodIPs {
			found.addresses = append(found.addresses, ip.IP)
		}
		if id := p.Labels["id"]; id == "app1" {
			r.app1 = append(r.app1, found)
		} else {
			r.clients[id] = found
		}
	}
	var services corev1.ServiceList
	if err := r.get(ctx, &services, "svc"); err != nil {
		return err
	}
	if len(services.Items) != 1 || len(services.Items[0].Spec.ClusterIPs) != 2 {
		return errors.New("app1-service has not two addresses")
	}
	r.service = services.Items[0].Spec.ClusterIPs
	if len(pods.Items) != 4 || len(r.app1) != 2 || len(r.clients) != 2 {
		return fmt.Errorf("there are %d pods", len(pods.Items))
	}
	if r.app1[0].node == r.app1[1].node {
		return fmt.Errorf("both pods of app1 are on %s", r.app1[0].node)
	}
	return nil
}

func (r *runner) get(ctx context.Context, out any, kind string) error {
	res := r.weir(ctx, "get", kind, "-o", "json")
	if res.code != 0 {
		return errors.New(strings.TrimSpace(res.out))
	}
	if err := json.Unmarshal([]byte(res.out), out); err != nil {
		return fmt.Errorf("read what %s says: %w", res.command, err)
	}
	return nil
}

// served tells whether the pod's log has the request of this very client.
func (r *runner) served(ctx context.Context, p pod, g response, path string) bool {
	client := r.clients[g.client].addresses[0] + ":" + strconv.Itoa(g.port)
	if strings.Contains(g.address, ":") {
		client = "[" + r.clients[g.client].addresses[1] + "]:" + strconv.Itoa(g.port)
	}
	log := r.weir(ctx, "logs", p.name)
	for line := range strings.Lines(log.out) {
		fields := strings.Fields(line)
		if slices.Contains(fields, "client="+client) && slices.Contains(fields, "path="+path) {
			return true
		}
	}
	return false
}

// enforced asks the policy service whether rule1 is in force on every node.
func (r *runner) enforced(ctx context.Context) (ok bool, said string) {
	conn, err := r.demo.Dial("policy-0")
	if err != nil {
		return false, err.Error()
	}
	defer conn.Close()
	resp, err := policyv1.NewPolicyServiceClient(conn).ListPolicies(ctx, &policyv1.ListPoliciesRequest{})
	if err != nil {
		return false, err.Error()
	}
	for _, p := range resp.GetPolicies() {
		if p.GetOrigin().GetName() == "rule1" {
			return p.GetNodes() > 0 && p.GetEnforced() == p.GetNodes(), fmt.Sprintf("%d/%d", p.GetEnforced(), p.GetNodes())
		}
	}
	return false, "not known"
}

// Printing.

func (r *runner) title(text string) { fmt.Fprintf(r.cfg.Out, "\n%s\n", text) }

func (r *runner) show(res result) {
	fmt.Fprintf(r.cfg.Out, "  $ %s\n", shortened(res.command))
	for line := range strings.Lines(res.out) {
		fmt.Fprintf(r.cfg.Out, "  %s\n", strings.TrimRight(line, "\n"))
	}
}

// shortened leaves out what a reader need not type.
func shortened(command string) string {
	words := strings.Fields(command)
	for i, w := range words {
		if w == "--bin" {
			words = slices.Delete(words, i, i+2)
			break
		}
	}
	for i, w := range words {
		if rest, err := filepath.Rel(".", w); err == nil && filepath.IsAbs(w) && !strings.HasPrefix(rest, "..") {
			words[i] = rest
		}
	}
	return strings.Join(words, " ")
}

func (r *runner) request(g response) {
	fmt.Fprintf(r.cfg.Out, "  $ %s\n  %s\n", g.command, g)
}

func (r *runner) reason(f *flowv1.Flow, ok bool) {
	if !ok {
		fmt.Fprintf(r.cfg.Out, "  no flow tells of it\n")
		return
	}
	fmt.Fprintf(r.cfg.Out, "  %s\n", observe.Line(f))
}

func (r *runner) check(ok bool, format string, args ...any) {
	mark := "✓"
	if !ok {
		mark = "✗"
		r.failed++
	}
	fmt.Fprintf(r.cfg.Out, "  %s %s\n", mark, fmt.Sprintf(format, args...))
}
