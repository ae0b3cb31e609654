//go:build faults

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// otherPolicy says otherwise what loadPolicy says of the client and the
// stranger: another selector, port ranges, other rules with the same answers.
const otherPolicy = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server}
spec:
  endpointSelector: {matchLabels: {id: server}}
  ingress:
    - fromEndpoints: [{matchExpressions: [{key: id, operator: In, values: [client, nobody]}]}]
      toPorts:
        - ports: [{port: "8000", endPort: 8100, protocol: TCP}]
    - fromEndpoints: [{matchLabels: {id: client}}]
      toPorts:
        - ports: [{port: "80", protocol: TCP}]
          rules: {http: [{method: "GET|HEAD", path: "/pub[a-z]+"}, {method: POST, path: /private}]}
  ingressDeny:
    - fromEndpoints: [{matchLabels: {id: stranger}}]
      toPorts:
        - ports: [{port: "8080", protocol: TCP}]
`

// changes is how often the policy changes under load.
const changes = 100

// TestChangesUnderLoad changes the policy again and again between two that
// forbid and allow the same: not one answer is another meanwhile.
func TestChangesUnderLoad(t *testing.T) {
	t.Parallel()
	u := startLoad(t, "it-change")
	client := policyv1.NewPolicyServiceClient(u.dial(t, "policy-0"))
	file := filepath.Join(u.dir, "manifests", "ciliumnetworkpolicy.default.server.yaml")
	if _, err := os.Stat(file); err != nil {
		t.Fatal(err)
	}
	begun, revision := time.Now(), u.last["server"]
	for i := range changes {
		text := otherPolicy
		if i%2 == 1 {
			text = loadPolicy
		}
		next := filepath.Join(u.dir, "next.yaml")
		if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, file); err != nil {
			t.Fatal(err)
		}
		u.await(t, "the policy is in force", func() bool {
			resp, err := client.ListPolicies(t.Context(), &policyv1.ListPoliciesRequest{})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range resp.GetPolicies() {
				if p.GetRevision() > revision && p.GetNodes() == 3 && p.GetEnforced() == 3 {
					revision = p.GetRevision()
					return true
				}
			}
			return false
		})
	}
	t.Logf("%d changes in force everywhere, one after the other, in %v", changes, time.Since(begun))
	u.all(t)
	u.end(t)
}

// open are the ports of TestOpenConnections, with what their connections have
// been allowed, and what they are when the policy arrives.
var open = []struct {
	port          int
	before, after side
	cut           bool
}{
	{port: 9000, before: allow, after: deny, cut: true},
	{port: 9001, before: byHTTP, after: deny, cut: true},
	{port: 9002, before: allow, after: byHTTP, cut: true}, // it cannot be judged from the middle
	{port: 9003, before: byHTTP, after: allow},
	{port: 9004, before: allow, after: allow},
	{port: 9005, before: byHTTP, after: byHTTP}, // by another rule set
}

// openPolicy is the policy before or after; its HTTP rules allow that path.
func openPolicy(path string, of func(i int) side) string {
	text := `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server}
spec:
  endpointSelector: {matchLabels: {id: server}}
  ingress:
    - fromEndpoints: [{matchLabels: {id: client}}]
      toPorts:
        - ports: [{port: "1", protocol: TCP}]
`
	for i, o := range open {
		if s := of(i); s != deny {
			text += fmt.Sprintf("        - ports: [{port: \"%d\", protocol: TCP}]\n", o.port)
			if s == byHTTP {
				allowed := path
				if o.port != 9005 {
					allowed = "/public"
				}
				text += fmt.Sprintf("          rules: {http: [{method: GET, path: %s}]}\n", allowed)
			}
		}
	}
	return text
}

// fate is what a server sees of one connection.
type fate struct {
	At     time.Time `json:"at"`
	Client string    `json:"client"`
	Listen string    `json:"listen"`
	Ended  string    `json:"ended"`
}

// fates are what the servers of a pod have seen.
type fates struct {
	mu  sync.Mutex
	all []fate
}

func (f *fates) now() []fate {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.all)
}

// sink runs a server in a pod that tells the fate of each connection.
func (d *demo) sink(t *testing.T, pod string, ports []string) *fates {
	t.Helper()
	f := &fates{}
	d.run(t, pod, func(line []byte) {
		var one fate
		if err := json.Unmarshal(line, &one); err != nil {
			t.Errorf("sink in %s says %q: %v", pod, line, err)
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.all = append(f.all, one)
	}, "sink", "-listen", strings.Join(ports, ","))
	d.await(t, "the server listens", func() bool { return len(f.now()) > 0 })
	return f
}

// cutWithin is how long a connection may live after the policy that forbids it
// is in force.
const cutWithin = time.Second

// TestOpenConnections has connections open when a policy arrives: those that it
// forbids, or that it cannot judge from the middle, are reset at both ends, idle
// ones too; the others live on, and their next request is judged by it.
func TestOpenConnections(t *testing.T) {
	t.Parallel()
	d := up(t, "it-open")
	d.apply(t, loadPods)
	pods := d.running(t, 4)
	d.policy(t, "server", openPolicy("/public", func(i int) side { return open[i].before }))
	var ports []string
	for _, o := range open {
		ports = append(ports, fmt.Sprintf(":%d", o.port))
	}
	sinks := map[string]*fates{"near": d.sink(t, "near", ports), "far": d.sink(t, "far", ports)}
	var idle, busy []traffic
	for at, ip := range servers(pods) {
		for _, o := range open {
			name := fmt.Sprintf("%d-%s", o.port, at)
			idle = append(idle, traffic{name: "idle-" + name, kind: "hold", url: url(ip, o.port, "/public"), want: "200"})
			busy = append(busy, traffic{name: "busy-" + name, kind: "alive", url: url(ip, o.port, "/public"), want: "200"})
		}
	}
	l := d.load(t, "client", slices.Concat(idle, busy))
	l.goesOn(t, d, busy, 3)
	d.await(t, "idle connections are there", func() bool {
		now, _ := l.now()
		return !slices.ContainsFunc(idle, func(s traffic) bool { return now[s.name]["200"] != 1 })
	})
	if _, events := l.now(); len(events) > 0 {
		t.Fatalf("before the change: %+v", events)
	}

	d.policy(t, "server", openPolicy("/private", func(i int) side { return open[i].after }))
	inForce := time.Now()
	first := func(stream string) *event {
		_, events := l.now()
		if i := slices.IndexFunc(events, func(e event) bool { return e.Stream == stream }); i >= 0 {
			return &events[i]
		}
		return nil
	}
	for _, o := range open {
		for at := range servers(pods) {
			for _, kind := range []string{"idle", "busy"} {
				stream := fmt.Sprintf("%s-%d-%s", kind, o.port, at)
				switch {
				case o.cut:
					d.await(t, stream+" is cut", func() bool { return first(stream) != nil })
					if e := first(stream); e.Got != "reset" || !e.Reused || e.At.After(inForce.Add(cutWithin)) {
						t.Errorf("%s got %q (reused %v) %v after the policy was in force, want a reset", stream, e.Got, e.Reused, e.At.Sub(inForce))
					}
				case o.port == 9005 && kind == "busy":
					d.await(t, stream+" is judged anew", func() bool { return first(stream) != nil })
					if e := first(stream); e.Got != "403" || !e.Reused {
						t.Errorf("%s got %q (reused %v), want 403 on the same connection", stream, e.Got, e.Reused)
					}
				}
			}
		}
	}
	var living []traffic
	for _, s := range busy {
		if strings.Contains(s.name, "9003") || strings.Contains(s.name, "9004") {
			living = append(living, s)
		}
		if strings.Contains(s.name, "9002") { // connected again, by the proxy
			living = append(living, s)
		}
	}
	l.goesOn(t, d, living, 10)
	for _, s := range slices.Concat(idle, busy) {
		lives := strings.Contains(s.name, "9003") || strings.Contains(s.name, "9004") || strings.Contains(s.name, "idle-9005")
		if e := first(s.name); lives && e != nil {
			t.Errorf("%s got %q %v after the policy was in force, want it to live on", s.name, e.Got, e.At.Sub(inForce))
		}
	}
	for name, sink := range sinks {
		sink.wantCuts(t, d, name, inForce)
	}
}

// wantCuts wants the servers' ends of the connections that the policy forbids
// reset, and the others open.
func (f *fates) wantCuts(t *testing.T, d *demo, name string, inForce time.Time) {
	t.Helper()
	for _, o := range open {
		listen := fmt.Sprintf(":%d", o.port)
		if !o.cut {
			if i := slices.IndexFunc(f.now(), func(f fate) bool { return f.Listen == listen && f.Ended != "" }); i >= 0 {
				t.Errorf("%s, port %d: a connection ended with %q, want it to live on", name, o.port, f.now()[i].Ended)
			}
			continue
		}
		const connections = 4 // idle and busy, IPv4 and IPv6
		ends := func() (out []fate) {
			for _, f := range f.now() {
				if f.Listen == listen && f.Ended != "" {
					out = append(out, f)
				}
			}
			return out
		}
		d.await(t, fmt.Sprintf("%s, port %d: all connections are cut", name, o.port), func() bool { return len(ends()) >= connections })
		for _, f := range ends()[:connections] {
			if f.Ended != "reset" || f.At.After(inForce.Add(cutWithin)) {
				t.Errorf("%s, port %d: %s ended with %q %v after the policy was in force, want a reset", name, o.port, f.Client, f.Ended, f.At.Sub(inForce))
			}
		}
	}
}
