//go:build faults

package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// traffic is one stream that weir-demo-app load makes in a pod.
type traffic struct {
	name string
	kind string // alive, fresh, dial or hold
	url  string
	want string // what all answers must be
	// What is zero is load's own choice.
	conns       int
	pace, limit time.Duration
	port        int
}

func (f traffic) String() string {
	text := fmt.Sprintf("name=%s,kind=%s,url=%s,want=%s", f.name, f.kind, f.url, f.want)
	if f.conns > 0 {
		text += fmt.Sprintf(",conns=%d", f.conns)
	}
	if f.pace > 0 {
		text += ",pace=" + f.pace.String()
	}
	if f.limit > 0 {
		text += ",limit=" + f.limit.String()
	}
	if f.port > 0 {
		text += fmt.Sprintf(",port=%d", f.port)
	}
	return text
}

// event is an answer that was not the wanted one.
type event struct {
	Stream string        `json:"stream"`
	At     time.Time     `json:"at"`
	Took   time.Duration `json:"took"`
	Got    string        `json:"got"`
	Reused bool          `json:"reused"`
	Client string        `json:"client"`
}

// counts are answers by stream and kind.
type counts map[string]map[string]int

func (c counts) all(stream string) (n int) {
	for _, v := range c[stream] {
		n += v
	}
	return n
}

// program is a command of weir-demo-app in a pod, which tells in lines of JSON
// what happens, and ends with its stdin.
type program struct {
	name  string
	stdin io.Closer
	ended chan error
	said  bytes.Buffer // on stderr; read it after ended
	// mayDie: its pod may end before it.
	mayDie bool
}

// run starts a program in a pod; it gets each line, one at a time.
func (d *demo) run(t *testing.T, pod string, line func([]byte), args ...string) *program {
	t.Helper()
	p := &program{name: args[0] + " in " + pod, ended: make(chan error, 1)}
	cmd := d.command(t.Context(), append([]string{"exec", pod, "--", filepath.Join(the.bin, "weir-demo-app")}, args...)...)
	cmd.Stderr = &p.said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 64<<20)
		for lines.Scan() {
			line(lines.Bytes())
		}
		p.ended <- errors.Join(lines.Err(), cmd.Wait())
	}()
	t.Cleanup(func() { p.stop(t) })
	return p
}

// stop ends the program and waits until all that it said was read.
func (p *program) stop(t *testing.T) {
	t.Helper()
	_ = p.stdin.Close() // twice is no harm
	err, ok := <-p.ended
	if !ok {
		return
	}
	close(p.ended)
	if err != nil && !p.mayDie && t.Context().Err() == nil {
		t.Errorf("%s: %v\n%s", p.name, err, p.said.String())
	}
}

// load is traffic under way.
type load struct {
	*program
	mu     sync.Mutex
	counts counts
	events []event
}

// load starts traffic in a pod.
func (d *demo) load(t *testing.T, pod string, streams []traffic) *load {
	t.Helper()
	l := &load{}
	args := []string{"load"}
	for _, s := range streams {
		args = append(args, s.String())
	}
	l.program = d.run(t, pod, func(line []byte) {
		var r struct {
			Answers counts  `json:"answers"`
			Events  []event `json:"events"`
		}
		if err := json.Unmarshal(line, &r); err != nil {
			t.Errorf("load in %s says %q: %v", pod, line, err)
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.counts = r.Answers
		l.events = append(l.events, r.Events...)
	}, args...)
	return l
}

func (l *load) now() (counts, []event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts, slices.Clone(l.events)
}

// goesOn waits until each of these streams has got that many more answers, all
// of them what it wants.
func (l *load) goesOn(t *testing.T, d *demo, streams []traffic, more int) {
	t.Helper()
	from, _ := l.now()
	for _, s := range streams {
		d.await(t, fmt.Sprintf("%s gets %q %d times more", s.name, s.want, more), func() bool {
			now, _ := l.now()
			return now[s.name][s.want] >= from[s.name][s.want]+more
		})
	}
}

// window is a time in which streams may get something else.
type window struct {
	why         string
	from, until time.Time
	stream      func(name string) bool
	got         []string
}

// excuses tells whether the answer came, or was waited for, in the window.
func (w window) excuses(e event) bool {
	return w.stream(e.Stream) && slices.Contains(w.got, e.Got) && e.At.After(w.from) && e.At.Add(-e.Took).Before(w.until)
}

// judge wants every answer to be the wanted one, but in windows.
func (l *load) judge(t *testing.T, windows []window) {
	t.Helper()
	counts, events := l.now()
	bad := 0
	for _, e := range events {
		if slices.ContainsFunc(windows, func(w window) bool { return w.excuses(e) }) {
			continue
		}
		if bad++; bad <= 20 {
			near := ""
			for _, w := range windows {
				if e.At.After(w.from) {
					near = fmt.Sprintf("%v after the begin of %q, which took %v", e.At.Sub(w.from), w.why, w.until.Sub(w.from))
				}
			}
			t.Errorf("%s: %s got %q after %v (reused %v), %s", e.At.UTC().Format("15:04:05.000"), e.Stream, e.Got, e.Took, e.Reused, near)
		}
	}
	total, wanted := 0, 0
	for name := range counts {
		total += counts.all(name)
	}
	wanted = total - len(events)
	t.Logf("%s: %d answers, %d of them as always, %d excused, %d wrong", l.name, total, wanted, len(events)-bad, bad)
}

// loadPods are an allowed client and a stranger on n1, and servers on n1 and n2.
const loadPods = `
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {id: client}}
spec:
  nodeName: n1
  containers: [{name: app, image: weir-demo-client:v1}]
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, labels: {id: stranger}}
spec:
  nodeName: n1
  containers: [{name: app, image: weir-demo-client:v1}]
---
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {id: server, at: near}}
spec:
  nodeName: n1
  containers: [{name: app, image: weir-demo-httpd:v1, ports: [{containerPort: 80}, {containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {id: server, at: far}}
spec:
  nodeName: n2
  containers: [{name: app, image: weir-demo-httpd:v1, ports: [{containerPort: 80}, {containerPort: 8080}]}]
`

// loadPolicy lets the client use port 8080, and GET /public on port 80.
const loadPolicy = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server}
spec:
  endpointSelector: {matchLabels: {id: server}}
  ingress:
    - fromEndpoints: [{matchLabels: {id: client}}]
      toPorts:
        - ports: [{port: "8080", protocol: TCP}]
        - ports: [{port: "80", protocol: TCP}]
          rules: {http: [{method: GET, path: /public}]}
`

// dialLimit is how long a forbidden client waits for a connection that must not
// come.
const dialLimit = 300 * time.Millisecond

// servers are the addresses of the servers, as near-4, near-6, far-4 and far-6.
func servers(pods []corev1.Pod) map[string]string {
	out := map[string]string{}
	for _, p := range pods {
		if p.Labels["id"] != "server" {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			family := "4"
			if strings.Contains(ip.IP, ":") {
				family = "6"
			}
			out[p.Name+"-"+family] = ip.IP
		}
	}
	return out
}

func url(ip string, port int, path string) string {
	return "http://" + net.JoinHostPort(ip, fmt.Sprint(port)) + path
}

// steady is what the client is allowed, in every way, and what the stranger is
// not.
func steady(pods []corev1.Pod) (client, stranger []traffic) {
	for at, ip := range servers(pods) {
		client = append(client,
			traffic{name: "plain-" + at, kind: "alive", url: url(ip, 8080, "/private"), want: "200"},
			traffic{name: "plainnew-" + at, kind: "fresh", url: url(ip, 8080, "/private"), want: "200"},
			traffic{name: "web-" + at, kind: "alive", url: url(ip, 80, "/public"), want: "200"},
			traffic{name: "webnew-" + at, kind: "fresh", url: url(ip, 80, "/public"), want: "200"},
			traffic{name: "webno-" + at, kind: "alive", url: url(ip, 80, "/private"), want: "403"},
		)
		for _, port := range []int{80, 8080} {
			stranger = append(stranger, traffic{
				name: fmt.Sprintf("x%d-%s", port, at), kind: "dial", url: url(ip, port, "/"), want: "timeout", limit: dialLimit,
			})
		}
	}
	for i := range client {
		client[i].pace = 30 * time.Millisecond
	}
	return client, stranger
}

// only keeps the streams with one of these prefixes.
func only(streams []traffic, prefixes ...string) (out []traffic) {
	for _, s := range streams {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s.name, p) }) {
			out = append(out, s)
		}
	}
	return out
}
