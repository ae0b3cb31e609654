//go:build faults

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// pod is the pod of that name, or one without a UID.
func (d *demo) pod(t *testing.T, name string) (p corev1.Pod) {
	t.Helper()
	out, code := d.try(t, "", "get", "pod", name, "-o", "json")
	if code == 0 {
		if err := json.Unmarshal([]byte(out), &p); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// promptly is less than a dropped SYN costs.
const promptly = 950 * time.Millisecond

// TestReusedAddress gives one address to pods of changing labels, one after the
// other, while the last one's connections are open and with the same ports: no
// pod is judged as the one before it, from its first instant.
func TestReusedAddress(t *testing.T) {
	t.Parallel()
	d := up(t, "it-reuse")
	d.apply(t, loadPods)
	to := servers(d.running(t, 4))
	d.policy(t, "server", loadPolicy)
	var last corev1.Pod
	for round := range 4 {
		id := []string{"client", "stranger"}[round%2]
		d.apply(t, fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: reused, labels: {id: %s}, annotations: {demo.weir.dev/number: "77"}},
  spec: {nodeName: n1, containers: [{name: app, image: weir-demo-client:v1}]}}`, id))
		d.await(t, "the next pod begins", func() bool {
			p := d.pod(t, "reused")
			if p.UID == last.UID || p.Labels["id"] != id {
				return false
			}
			if _, code := d.try(t, "", "exec", "reused", "--", "true"); code != 0 {
				return false // not made yet
			}
			last = p
			return true
		})
		if last.Status.PodIP != "10.244.1.77" {
			t.Fatalf("the pod has address %s, want the one that it asks for", last.Status.PodIP)
		}
		var streams []traffic
		port := 40000
		for at, ip := range to {
			s := traffic{name: at, kind: "hold", url: url(ip, 8080, "/private"), want: "200", port: port}
			if id == "stranger" {
				s.kind, s.want, s.limit = "dial", "timeout", dialLimit
			}
			streams = append(streams, s)
			port++
		}
		if id == "stranger" { // from its first instant
			l := d.load(t, "reused", streams)
			d.await(t, "the stranger runs", func() bool { return d.status(t, "reused") == "Running" })
			l.goesOn(t, d, streams, 3)
			l.stop(t)
			for name, got := range l.counts {
				if got["open"] > 0 {
					t.Errorf("round %d: the stranger connected to %s %d times with the address of a client: %v", round, name, got["open"], got)
				}
			}
			continue
		}
		d.await(t, "the client runs", func() bool { return d.status(t, "reused") == "Running" })
		var prompt []traffic
		for at, ip := range to {
			prompt = append(prompt, traffic{name: "prompt-" + at, kind: "fresh", url: url(ip, 8080, "/private"), want: "200", limit: promptly})
		}
		l := d.load(t, "reused", prompt)
		l.goesOn(t, d, prompt, 3)
		l.stop(t)
		l.judge(t, nil)
		// These stay open until the pod is gone.
		l = d.load(t, "reused", streams)
		l.mayDie = true
		d.await(t, "connections are open", func() bool {
			now, _ := l.now()
			open := 0
			for _, s := range streams {
				open += now[s.name]["200"]
			}
			return open == len(streams)
		})
	}
}

// metrics are a part's, without labels' order or comments.
func (d *demo) metrics(t *testing.T, part string) map[string]float64 {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", filepath.Join(d.dir, "sock", part+".http.sock"))
		},
	}}
	resp, err := client.Get("http://part/metrics")
	if err != nil {
		t.Fatalf("metrics of %s: %v", part, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("metrics of %s: %v", part, err)
	}
	out := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if f, err := strconv.ParseFloat(value, 64); err == nil && !strings.HasPrefix(name, "#") {
			out[name] = f
		}
	}
	return out
}

// held is what a part holds that pods come and go in: maps, endpoints,
// addresses, goroutines, files. Conntrack forgets in its own time.
func (d *demo) held(t *testing.T) map[string]float64 {
	t.Helper()
	out := map[string]float64{}
	for _, part := range []string{"identity-0", "identity-1", "policy-0", "policy-1", "enforcer-n1", "enforcer-n2", "enforcer-n3"} {
		for name, value := range d.metrics(t, part) {
			switch {
			case strings.Contains(name, "map_entries") && !strings.Contains(name, "ct_"),
				strings.Contains(name, "enforcer_endpoints"), name == "weir_identity_addresses",
				name == "go_goroutines", name == "process_open_fds":
				out[part+" "+name] = value
			}
		}
	}
	return out
}

// TestShortLivedPods starts dozens of pods that ask as soon as they run, and
// ends them: each is judged as itself, and nothing of them is left.
func TestShortLivedPods(t *testing.T) {
	t.Parallel()
	d := up(t, "it-short")
	d.apply(t, loadPods)
	to := servers(d.running(t, 4))
	d.policy(t, "server", loadPolicy)
	var before map[string]float64
	const rounds, pods = 3, 12
	for round := range rounds {
		if round == 1 { // the first round made what stays
			before = d.held(t)
		}
		manifests := ""
		ids := map[string]string{}
		for i := range pods {
			name := fmt.Sprintf("short-%d-%d", round, i)
			ids[name] = []string{"client", "stranger"}[i%2]
			manifests += fmt.Sprintf("---\n{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {id: %s}}, spec: {nodeName: n%d, containers: [{name: app, image: weir-demo-client:v1}]}}\n", name, ids[name], i%3+1)
		}
		d.apply(t, manifests)
		var g sync.WaitGroup
		for name, id := range ids {
			g.Go(func() { d.probe(t, name, id, to) })
		}
		g.Wait()
		if out, code := d.try(t, manifests, "delete", "-f", "-"); code != 0 {
			t.Fatalf("delete: %s", out)
		}
		d.running(t, 4)
	}
	var after map[string]float64
	settled := func() (more []string) {
		after = d.held(t)
		for name, was := range before {
			slack := 0.0
			if strings.HasSuffix(name, "go_goroutines") || strings.HasSuffix(name, "process_open_fds") {
				slack = 8 // what is under way
			}
			if after[name] > was+slack {
				more = append(more, fmt.Sprintf("%s was %v, is %v", name, was, after[name]))
			}
		}
		return more
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for len(settled()) > 0 && ctx.Err() == nil {
		<-tick.C
	}
	if more := settled(); len(more) > 0 {
		t.Errorf("after %d pods: %s", rounds*pods, strings.Join(more, "; "))
	}
	t.Logf("%d pods; %d numbers compared", rounds*pods, len(before))
}

// probe asks from a pod as soon as it runs.
func (d *demo) probe(t *testing.T, pod, id string, to map[string]string) {
	d.await(t, pod+" runs", func() bool { return d.status(t, pod) == "Running" })
	var streams []traffic
	for at, ip := range to {
		if id == "client" {
			streams = append(streams,
				traffic{name: "plain-" + at, kind: "fresh", url: url(ip, 8080, "/private"), want: "200", limit: promptly},
				traffic{name: "web-" + at, kind: "fresh", url: url(ip, 80, "/private"), want: "403"})
			continue
		}
		streams = append(streams, traffic{name: "x-" + at, kind: "dial", url: url(ip, 8080, "/"), want: "timeout", limit: dialLimit})
	}
	l := d.load(t, pod, streams)
	l.goesOn(t, d, streams, 2)
	l.stop(t)
	l.judge(t, nil)
}
