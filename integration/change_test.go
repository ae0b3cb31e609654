package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"weir.dev/weir/internal/netns"
)

// tutorialPolicy is the text of the tutorial's policy.
func tutorialPolicy(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(the.root, "examples", "tutorial", "policy-v1.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// dialFrom connects as the pod does, and leaves the connection to the test.
func (d *demo) dialFrom(t *testing.T, pod corev1.Pod, addr string) *connection {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(d.dir, "pods", pod.Namespace+"_"+pod.Name, "holder"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	c := &connection{name: pod.Labels["id"] + " to " + addr}
	err = netns.Of(pid).Do(func() error {
		var dialer net.Dialer
		c.Conn, err = dialer.DialContext(ctx, "tcp", addr)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	c.in = bufio.NewReader(c)
	return c
}

// connection is one that a pod's client has open.
type connection struct {
	net.Conn
	name string
	in   *bufio.Reader
}

// ask sends a request and reads the answer, both on the connection.
func (c *connection) ask(path string) (answer, error) {
	if err := c.SetDeadline(time.Now().Add(soon)); err != nil {
		return answer{}, err
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: app1\r\n\r\n", path); err != nil {
		return answer{}, err
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{0, resp.StatusCode, strings.TrimSpace(string(body))}, err
}

func (c *connection) want(t *testing.T, path string, want answer) {
	t.Helper()
	if got, err := c.ask(path); err != nil || got != want {
		t.Errorf("%s, %s: got %+v, %v; want %+v", c.name, path, got, err, want)
	}
}

// wantCut wants the connection reset, without a word sent on it.
func (c *connection) wantCut(t *testing.T) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.in.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s: %v, want a reset", c.name, err)
	}
}

// TestForbiddenConnectionsAreCut opens connections while everything is open, and
// wants them reset when a policy comes that would not have let them be: those
// that are forbidden now, and those whose requests would have to be judged from
// the middle. What is still allowed lives on.
func TestForbiddenConnectionsAreCut(t *testing.T) {
	d := up(t, "it-cut")
	d.tutorial(t)
	d.apply(t, "{apiVersion: v1, kind: Pod, metadata: {name: other, labels: {id: other}}, spec: {nodeName: n2, containers: [{name: app, image: weir-demo-httpd:v1, ports: [{containerPort: 80}]}]}}")
	pods := d.running(t, 5)
	var cut, kept []*connection
	for _, id := range []string{"app2", "app3"} {
		client := podOf(t, pods, id, "")
		for _, node := range []string{"n1", "n2"} {
			for _, ip := range podOf(t, pods, "app1", node).Status.PodIPs {
				cut = append(cut, d.dialFrom(t, client, net.JoinHostPort(ip.IP, "80")))
			}
		}
		kept = append(kept, d.dialFrom(t, client, net.JoinHostPort(podOf(t, pods, "other", "").Status.PodIP, "80")))
	}
	for _, c := range append(cut, kept...) {
		c.want(t, "/private", served("/private"))
	}
	d.policy(t, "rule1", tutorialPolicy(t))
	for _, c := range cut {
		c.wantCut(t)
	}
	for _, c := range kept {
		c.want(t, "/private", served("/private"))
	}
}

// TestARequestIsJudgedByThePolicyOfItsTime keeps one connection open while the
// policy's HTTP rules change: each request is judged by those in force then, and
// a refused one does not end the connection.
func TestARequestIsJudgedByThePolicyOfItsTime(t *testing.T) {
	d := up(t, "it-rules")
	d.tutorial(t)
	d.policy(t, "rule1", tutorialPolicy(t))
	pods := d.running(t, 4)
	client := podOf(t, pods, "app2", "")
	for _, node := range []string{"n1", "n2"} {
		c := d.dialFrom(t, client, net.JoinHostPort(podOf(t, pods, "app1", node).Status.PodIP, "80"))
		c.want(t, "/public", served("/public"))
		c.want(t, "/private", denied())
		c.want(t, "/public", served("/public"))
		d.policy(t, "rule1", strings.Replace(tutorialPolicy(t), "'/public'", "'/private'", 1))
		c.want(t, "/private", served("/private"))
		c.want(t, "/public", denied())
		d.policy(t, "rule1", tutorialPolicy(t))
		c.want(t, "/public", served("/public"))
		c.want(t, "/private", denied())
	}
}

// teamA is a namespace with a server of three replicas behind a Service that
// changes the port, open to pods of namespaces that are friends.
const teamA = `
apiVersion: v1
kind: Namespace
metadata: {name: team-a}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: team-a}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: app, image: weir-demo-httpd:v1, ports: [{name: http, containerPort: 80}, {containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: team-a}
spec: {selector: {app: web}, ports: [{port: 8000, targetPort: http}]}
`

const friendsOnly = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends, namespace: team-a}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
    - from: [{namespaceSelector: {matchLabels: {friend: "yes"}}}]
      ports: [{port: http}]
`

// TestNamespacesNamedPortsAndScale changes what a policy depends on: the labels
// of a namespace, and how many pods there are.
func TestNamespacesNamedPortsAndScale(t *testing.T) {
	d := up(t, "it-spaces")
	d.tutorial(t)
	const url = "http://web.team-a:8000/public"
	d.apply(t, fmt.Sprintf(teamA, 3))
	d.await(t, "the servers run", func() bool { return strings.Contains(d.weir(t, 0, "get", "deploy", "-n", "team-a"), "3/3") })
	d.want(t, "deploy/app2", url, served("/public"))
	d.policy(t, "friends", friendsOnly)
	d.want(t, "deploy/app2", url, timedOut())

	d.apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: default, labels: {friend: 'yes'}}}")
	d.await(t, "a friend gets in", func() bool { return d.curl(t, "deploy/app2", url, "1") == served("/public") })

	d.apply(t, fmt.Sprintf(teamA, 6))
	d.await(t, "more servers run", func() bool { return strings.Contains(d.weir(t, 0, "get", "deploy", "-n", "team-a"), "6/6") })
	for range 12 {
		d.want(t, "deploy/app2", url, served("/public"))
	}
	d.apply(t, fmt.Sprintf(teamA, 1))
	d.await(t, "fewer servers run", func() bool {
		return strings.Count(d.weir(t, 0, "get", "pods", "-n", "team-a"), "web-") == 1
	})
	for range 6 {
		d.want(t, "deploy/app3", url, served("/public"))
	}

	d.apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: default}}")
	d.await(t, "no friend any more", func() bool { return d.curl(t, "deploy/app2", url, "0.6") == timedOut() })

	d.weir(t, 0, "delete", "ns", "team-a")
	d.await(t, "the namespace's pods are gone", func() bool {
		return !strings.Contains(d.weir(t, 0, "get", "pods", "-A"), "team-a")
	})
}

// TestANewPodIsJudgedFromItsFirstPacket starts pods while the policy is in force
// and asks as soon as they run.
func TestANewPodIsJudgedFromItsFirstPacket(t *testing.T) {
	d := up(t, "it-first")
	d.tutorial(t)
	d.policy(t, "rule1", tutorialPolicy(t))
	for i, c := range []struct {
		id   string
		want answer
	}{{"app2", served("/public")}, {"app3", timedOut()}, {"app4", timedOut()}, {"app2", served("/public")}, {"app3", timedOut()}} {
		name := fmt.Sprintf("new-%d", i)
		d.apply(t, fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {id: %s}}, spec: {nodeName: n%d, containers: [{name: app, image: weir-demo-client:v1}]}}", name, c.id, i%3+1))
		d.await(t, name+" runs", func() bool { return d.status(t, name) == "Running" })
		d.want(t, name, "http://app1-service/public", c.want)
		// Its addresses are the next pod's before long.
		d.weir(t, 0, "delete", "pod", name)
	}
}
