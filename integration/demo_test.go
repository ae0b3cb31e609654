package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"

	enforcerv1 "weir.dev/weir/proto/weir/enforcer/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// What the demo's server and the proxy answer.
const (
	publicBody  = "{ 'val': 'this is public' }"
	privateBody = "{ 'val': 'this is private' }"
	deniedBody  = "Access denied"
)

// soon is how long something may take that should happen at once.
const soon = 10 * time.Second

// demo is one running demo.
type demo struct {
	name string
	dir  string
	last map[string]uint64 // revision of each policy when it was last applied
}

// at is a demo of this process alone: tests may run twice at the same time.
func at(name string) *demo {
	name += "-" + strconv.Itoa(os.Getpid())
	return &demo{name: name, dir: "/run/weir/demo/" + name, last: map[string]uint64{}}
}

// up brings a demo up, and takes it down after the test.
func up(t *testing.T, name string) *demo {
	t.Helper()
	d := at(name)
	t.Cleanup(func() {
		if t.Failed() {
			for _, part := range []string{"demo", "enforcer-n1", "enforcer-n2", "policy-0", "identity-0"} {
				log, err := exec.Command("tail", "-n", "15", filepath.Join(d.dir, "parts", part, "log")).CombinedOutput()
				t.Logf("%s: %v\n%s", part, err, log)
			}
		}
		d.weir(t, 0, "demo", "down", "--name", d.name)
	})
	d.weir(t, 0, "demo", "up", "--name", d.name)
	return d
}

// command is the weir command on this demo.
func (d *demo) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(the.bin, "weir"), args...)
	cmd.Env = append(cmd.Environ(), "WEIR_DEMO="+d.name)
	cmd.Dir = the.root
	cmd.WaitDelay = time.Second
	return cmd
}

// weir runs the weir command and wants its exit code.
func (d *demo) weir(t *testing.T, want int, args ...string) string {
	t.Helper()
	out, code := d.try(t, "", args...)
	if code != want {
		t.Fatalf("weir %s: exit code %d, want %d\n%s", strings.Join(args, " "), code, want, out)
	}
	return out
}

// try runs the weir command with that stdin.
func (d *demo) try(t *testing.T, stdin string, args ...string) (out string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	defer cancel()
	cmd := d.command(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return text.String(), exit.ExitCode()
	}
	if err != nil {
		t.Errorf("weir %s: %v\n%s", strings.Join(args, " "), err, text.String())
		return text.String(), -1
	}
	return text.String(), 0
}

// apply writes objects.
func (d *demo) apply(t *testing.T, text string) {
	t.Helper()
	if out, code := d.try(t, text, "apply", "-f", "-"); code != 0 {
		t.Fatalf("apply: exit code %d\n%s\n%s", code, out, text)
	}
}

// tutorial writes the tutorial's pods and waits until they run.
func (d *demo) tutorial(t *testing.T) {
	t.Helper()
	d.weir(t, 0, "apply", "-f", "examples/tutorial/demo.yaml")
	d.running(t, 4)
}

// running waits until so many pods are there and run.
func (d *demo) running(t *testing.T, want int) []corev1.Pod {
	t.Helper()
	var pods corev1.PodList
	d.await(t, "the pods run", func() bool {
		pods = corev1.PodList{} // decoding leaves what the text does not name
		if err := json.Unmarshal([]byte(d.weir(t, 0, "get", "pods", "-o", "json")), &pods); err != nil {
			t.Fatal(err)
		}
		running := 0
		for _, p := range pods.Items {
			if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
				running++
			}
		}
		return running == want && len(pods.Items) == want
	})
	return pods.Items
}

// podOf is the first pod with that label id, on that node if one is named.
func podOf(t *testing.T, pods []corev1.Pod, id, node string) corev1.Pod {
	t.Helper()
	for _, p := range pods {
		if p.Labels["id"] == id && (node == "" || p.Spec.NodeName == node) {
			return p
		}
	}
	t.Fatalf("no pod with id=%s on node %q", id, node)
	return corev1.Pod{}
}

// await waits until f says yes.
func (d *demo) await(t *testing.T, what string, f func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*soon)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s\n%s", what, d.weir(t, 0, "get", "pods", "-o", "wide"))
		}
	}
}

// answer is what a client got.
type answer struct {
	code   int // curl's; 28 is a time-out
	status int
	body   string
}

func served(path string) answer {
	if path == "/private" {
		return answer{0, 200, privateBody}
	}
	return answer{0, 200, publicBody}
}

func denied() answer   { return answer{0, 403, deniedBody} }
func timedOut() answer { return answer{28, 0, ""} }

// curl asks once; connect is how many seconds it waits for a connection.
func (d *demo) curl(t *testing.T, client, url, connect string) answer {
	t.Helper()
	out, code := d.try(t, "", "exec", client, "--", "curl", "-s", "--connect-timeout", connect, "--max-time", "5", "-w", `\n%{http_code}`, url)
	got := answer{code: code}
	i := strings.LastIndexByte(out, '\n')
	if i < 0 {
		t.Errorf("curl %s: exit code %d: %s", url, code, out)
		return got
	}
	got.body = out[:i]
	got.status, _ = strconv.Atoi(out[i+1:])
	return got
}

// want asks once and wants that answer.
func (d *demo) want(t *testing.T, client, url string, want answer) {
	t.Helper()
	connect := "3"
	if want == timedOut() {
		connect = "0.6"
	}
	if got := d.curl(t, client, url, connect); got != want {
		t.Errorf("%s asks %s: got %+v, want %+v", client, url, got, want)
	}
}

// wantAll asks all URLs at once and wants those answers.
func (d *demo) wantAll(t *testing.T, client string, asks map[string]answer) {
	t.Helper()
	var g sync.WaitGroup
	for url, want := range asks {
		g.Go(func() { d.want(t, client, url, want) })
	}
	g.Wait()
}

// dial connects to a part's unix socket.
func (d *demo) dial(t *testing.T, part string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+filepath.Join(d.dir, "sock", part+".sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (d *demo) policies(t *testing.T, part string) *policyv1.ListPoliciesResponse {
	t.Helper()
	resp, err := policyv1.NewPolicyServiceClient(d.dial(t, part)).ListPolicies(t.Context(), &policyv1.ListPoliciesRequest{})
	if err != nil {
		t.Fatalf("list policies: %v", err)
	}
	return resp
}

// policy applies one policy and waits until it is in force on every node.
func (d *demo) policy(t *testing.T, name, text string) {
	t.Helper()
	out, code := d.try(t, text, "apply", "-f", "-")
	if code != 0 {
		t.Fatalf("apply: exit code %d\n%s\n%s", code, out, text)
	}
	changed := !strings.HasSuffix(strings.TrimSpace(out), "unchanged")
	d.await(t, "policy "+name+" in force", func() bool {
		for _, p := range d.policies(t, "policy-0").GetPolicies() {
			if p.GetOrigin().GetName() != name || p.GetNodes() == 0 || p.GetEnforced() != p.GetNodes() {
				continue
			}
			if changed && p.GetRevision() <= d.last[name] {
				continue
			}
			d.last[name] = p.GetRevision()
			return true
		}
		return false
	})
}

// remove deletes an object and waits until every node has what the log says.
func (d *demo) remove(t *testing.T, kind, name string) {
	t.Helper()
	d.weir(t, 0, "delete", kind, name)
	d.await(t, name+" gone", func() bool {
		resp := d.policies(t, "policy-0")
		for _, p := range resp.GetPolicies() {
			if p.GetOrigin().GetName() == name {
				return false
			}
		}
		for _, n := range []string{"n1", "n2", "n3"} {
			if d.enforcer(t, n).GetRevision() < resp.GetRevision() {
				return false
			}
		}
		return true
	})
}

func (d *demo) enforcer(t *testing.T, node string) *enforcerv1.GetStatusResponse {
	t.Helper()
	resp, err := enforcerv1.NewEnforcerServiceClient(d.dial(t, "enforcer-"+node)).GetStatus(t.Context(), &enforcerv1.GetStatusRequest{})
	if err != nil {
		t.Fatalf("ask the enforcer of %s: %v", node, err)
	}
	return resp
}
