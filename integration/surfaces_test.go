package integration

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"golang.org/x/sys/unix"
)

// get asks a part on its HTTP socket.
func (d *demo) get(t *testing.T, part, path string) (status int, body []byte) {
	t.Helper()
	client := &http.Client{Timeout: soon, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", filepath.Join(d.dir, "sock", part+".http.sock"))
		},
	}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://part"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s%s: %v", part, path, err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

var allParts = []string{
	"nats", "identity-0", "identity-1", "policy-0", "policy-1",
	"enforcer-n1", "enforcer-n2", "enforcer-n3", "l7proxy-n1", "l7proxy-n2", "l7proxy-n3",
}

// TestEveryPartTellsHowItIs asks each part as Prometheus and a kubelet would.
func TestEveryPartTellsHowItIs(t *testing.T) {
	d := up(t, "it-surface")
	d.use(t)
	for _, part := range allParts {
		for _, path := range []string{"/livez", "/readyz", "/readyz?verbose"} {
			if code, body := d.get(t, part, path); code != http.StatusOK {
				t.Errorf("%s%s: %d %s", part, path, code, body)
			}
		}
		code, body := d.get(t, part, "/metrics")
		if code != http.StatusOK {
			t.Errorf("%s/metrics: %d %s", part, code, body)
		}
		problems, err := promlint.New(bytes.NewReader(body)).Lint()
		if err != nil {
			t.Errorf("%s/metrics: %v", part, err)
		}
		for _, p := range problems {
			t.Errorf("%s/metrics: %s: %s", part, p.Metric, p.Text)
		}
		for _, kind := range []string{".sock", ".http.sock"} {
			info, err := os.Stat(filepath.Join(d.dir, "sock", part+kind))
			if part == "nats" && kind == ".sock" {
				continue // NATS has no gRPC
			}
			if err != nil {
				t.Error(err)
			} else if info.Mode().Perm() != 0o600 {
				t.Errorf("%s is %v, want 0600", info.Name(), info.Mode().Perm())
			}
		}
	}
}

// TestTheParserHasNothing reads the status of the process that parses what
// strangers send, in a running demo: no capability, no way to a new one, a
// filter on its calls, no bpffs in its mounts, no certificate that it could read.
func TestTheParserHasNothing(t *testing.T) {
	d := up(t, "it-parser")
	found := 0
	for pid := range processes(t) {
		comm, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil || strings.TrimSpace(string(comm)) != "weir-l7proxy" || !d.inNode(t, pid) {
			continue
		}
		status := fields(t, pid)
		if status["Uid"] == "0" {
			continue // the parent, which parses nothing
		}
		found++
		for name, want := range map[string]string{
			"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
			"CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
		} {
			if status[name] != want {
				t.Errorf("%s of the parser is %s, want %s", name, status[name], want)
			}
		}
		mounts, err := os.ReadFile("/proc/" + pid + "/mounts")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(mounts), " bpf ") {
			t.Errorf("the parser sees a bpf file system:\n%s", mounts)
		}
		uid, err := strconv.Atoi(status["Uid"])
		if err != nil {
			t.Fatal(err)
		}
		wantUnreadable(t, uid, filepath.Join(d.dir, "pki"))
	}
	if found != 3 {
		t.Errorf("%d parsers, want one a node", found)
	}
}

// inNode tells whether the process came from this demo.
func (d *demo) inNode(t *testing.T, pid string) bool {
	t.Helper()
	for seen := 0; pid != "0" && pid != "1" && seen < 5; seen++ {
		env, err := os.ReadFile("/proc/" + pid + "/environ")
		if err != nil {
			return false
		}
		if bytes.Contains(env, []byte(d.dir)) {
			return true
		}
		pid = fields(t, pid)["PPid"]
	}
	return false
}

// fields is /proc/PID/status, with the first word of each value.
func fields(t *testing.T, pid string) map[string]string {
	t.Helper()
	text, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return nil // ended meanwhile
	}
	out := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if words := strings.Fields(value); len(words) > 0 {
			out[name] = words[0]
		}
	}
	return out
}

// wantUnreadable makes sure that others than the owner get no further than dir.
func wantUnreadable(t *testing.T, uid int, dir string) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	if int(st.Uid) == uid || st.Mode&0o077 != 0 {
		t.Errorf("%s has mode %o and owner %d: user %d may read it", dir, st.Mode&0o777, st.Uid, uid)
	}
}

// TestRefusedObjectsAreTold wants of what cannot be that it is refused where it
// is given, told by status with file and line, and takes nothing else with it.
func TestRefusedObjectsAreTold(t *testing.T) {
	d := up(t, "it-refused")
	d.tutorial(t)
	const image = "{apiVersion: v1, kind: Pod, metadata: {name: stranger}, spec: {containers: [{name: app, image: 'nginx:1.29'}]}}\n"
	if out, code := d.try(t, image, "apply", "-f", "-"); code != 1 || !strings.Contains(out, `"nginx:1.29"`) {
		t.Errorf("apply of an unknown image: exit code %d\n%s", code, out)
	}
	const unsupported = "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: kafka}, spec: {endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: '9092'}], rules: {kafka: [{topic: a}]}}]}]}}\n"
	if out, code := d.try(t, unsupported, "apply", "-f", "-"); code != 1 || !strings.Contains(out, "kafka") {
		t.Errorf("apply of an unsupported policy: exit code %d\n%s", code, out)
	}

	// A file that somebody puts there: its good document counts, its bad ones
	// are told, and the object that is there already stays as it is.
	file := filepath.Join(d.dir, "manifests", "mine.yaml")
	text := strings.Join([]string{
		"{apiVersion: v1, kind: Pod, metadata: {name: good}, spec: {containers: [{name: app, image: weir-demo-client:v1}]}}\n",
		image, unsupported,
		"{apiVersion: apps/v1, kind: Deployment, metadata: {name: app2}, spec: {replicas: 0, selector: {matchLabels: {id: app2}}, template: {metadata: {labels: {id: app2}}, spec: {containers: [{name: app, image: weir-demo-client:v1}]}}}}\n",
	}, "---\n")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d.running(t, 5)
	var out string
	d.await(t, "status tells all three", func() bool {
		out, _ = d.try(t, "", "status")
		return strings.Contains(out, file+":3") && strings.Contains(out, file+":5") && strings.Contains(out, file+":7")
	})
	for _, want := range []string{"nginx:1.29", "kafka", "deployment.default.app2.yaml"} {
		if !strings.Contains(out, want) {
			t.Errorf("status does not tell %q:\n%s", want, out)
		}
	}
	d.want(t, "deploy/app2", "http://app1-service/public", served("/public"))
}

// TestExitCodes holds what scripts rely on.
func TestExitCodes(t *testing.T) {
	nobody := at("it-nobody")
	for _, c := range []struct {
		want int
		args []string
	}{
		{3, []string{"get", "pods"}}, {3, []string{"status"}}, {3, []string{"demo", "ps"}}, {0, []string{"demo", "down", "--name", nobody.name}},
		{2, []string{"demo", "up", "--parts", "some"}}, {2, []string{"get", "pods", "--nonsense"}},
	} {
		if out, code := nobody.try(t, "", c.args...); code != c.want {
			t.Errorf("no demo: weir %s: exit code %d, want %d\n%s", strings.Join(c.args, " "), code, c.want, out)
		}
	}
	d := up(t, "it-codes")
	d.tutorial(t)
	for _, c := range []struct {
		want int
		args []string
	}{
		{0, []string{"get", "pods"}}, {1, []string{"get", "pod", "nobody"}}, {2, []string{"get", "configmaps"}},
		{1, []string{"delete", "cnp", "nobody"}}, {1, []string{"create", "-f", "examples/tutorial/demo.yaml"}},
		{0, []string{"apply", "-f", "examples/tutorial/demo.yaml"}}, {2, []string{"get"}},
		{7, []string{"exec", "deploy/app2", "--", "sh", "-c", "exit 7"}}, {127, []string{"exec", "deploy/app2", "--", "no-such-command"}},
		{2, []string{"exec", "deploy/app2"}}, {1, []string{"exec", "deploy/nobody", "--", "true"}},
		{1, []string{"demo", "kill", "nobody"}}, {0, []string{"status"}}, {1, []string{"why", "nobody", "app1", "80/TCP"}},
	} {
		if out, code := d.try(t, "", c.args...); code != c.want {
			t.Errorf("weir %s: exit code %d, want %d\n%s", strings.Join(c.args, " "), code, c.want, out)
		}
	}
	begun := time.Now()
	old := d.running(t, 4)
	d.weir(t, 0, "delete", "pod", podOf(t, old, "app2", "").Name)
	d.await(t, "another pod takes its place", func() bool {
		pods := d.running(t, 4)
		return podOf(t, pods, "app2", "").Name != podOf(t, old, "app2", "").Name
	})
	t.Logf("another pod runs after %v", time.Since(begun))
	d.want(t, "deploy/app2", "http://app1-service/public", served("/public"))
}
