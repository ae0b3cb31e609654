package replica_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weir.dev/weir/internal/statelog"
	"weir.dev/weir/internal/tlsconf"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// tutorial is the policy of the tutorial in its 2017 form.
const tutorial = `apiVersion: cilium.io/v1
kind: CiliumNetworkPolicy
metadata:
  name: rule1
description: "Allow app2 to read the public pages of app1"
spec:
  endpointSelector:
    matchLabels:
      id: app1
  ingress:
  - fromEndpoints:
    - matchLabels:
        id: app2
  - toPorts:
    - ports:
      - port: "80"
        protocol: TCP
      rules:
        HTTP:
        - method: "GET"
          path: "/public"
`

// open is a policy that lets pods with one label reach those with another.
func open(name, to, from string) string {
	return fmt.Sprintf(`apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: %s}
spec:
  endpointSelector: {matchLabels: {id: %s}}
  ingress:
  - fromEndpoints: [{matchLabels: {id: %s}}]
`, name, to, from)
}

func explain(c *cluster, r *running, from, to []byte, path string) *policyv1.ExplainResponse {
	c.t.Helper()
	e, err := r.operator().Explain(c.ctx(), &policyv1.ExplainRequest{
		From:     &policyv1.Party{Party: &policyv1.Party_Identity{Identity: from}},
		To:       &policyv1.Party{Party: &policyv1.Party_Identity{Identity: to}},
		Protocol: 6, Port: 80, Http: &policyv1.HTTPRequest{Method: "GET", Path: path, Host: "app1-service"},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return e
}

func TestTutorial(t *testing.T) {
	c := newCluster(t)
	app1, _ := c.identity("default", "app1")
	app2, _ := c.identity("default", "app2")
	app3, at := c.identity("default", "app3")
	r := c.start("policy-0").at(at)
	n1 := newNode(t, "n1", all, app1, app2).watch(r)
	n1.next()
	if !n1.full || n1.count(policyv1.ItemKind_ITEM_KIND_SUBJECT) != 2 || len(n1.items) != 2 {
		t.Fatalf("before any policy: full %v, items %v, want two subjects", n1.full, n1.items)
	}
	c.write("policy-v1", tutorial)
	list := r.policies(1)
	n1.until(list.GetPolicies()[0].GetRevision())
	if n1.full || n1.count(policyv1.ItemKind_ITEM_KIND_RULE_SET) != 1 {
		t.Errorf("with the policy: full %v, items %v, want one rule set", n1.full, n1.items)
	}
	for _, want := range []struct {
		from            []byte
		path            string
		ingress, answer policyv1.Verdict
	}{
		{app2, "/public", policyv1.Verdict_VERDICT_HTTP, policyv1.Verdict_VERDICT_ALLOW},
		{app2, "/private", policyv1.Verdict_VERDICT_HTTP, policyv1.Verdict_VERDICT_DENY},
		{app3, "/public", policyv1.Verdict_VERDICT_DENY, policyv1.Verdict_VERDICT_DENY},
	} {
		got := explain(c, r, want.from, app1, want.path).GetIngress()
		if got.GetVerdict() != want.ingress || got.GetRequest() != want.answer || got.GetReason() == "" {
			t.Errorf("%x GET %s: got %v, want %v and %v", want.from[:4], want.path, got, want.ingress, want.answer)
		}
	}
	origin := list.GetPolicies()[0].GetOrigin()
	if origin.GetName() != "rule1" || origin.GetFile() != filepath.Join(c.dir, "policy-v1.yaml") || origin.GetLine() != 1 {
		t.Errorf("origin %v, want rule1 with file and line", origin)
	}
	eventually(t, "the policy is enforced on the node", func() error {
		if p := r.policies(1).GetPolicies()[0]; p.GetEnforced() != 1 || p.GetNodes() != 1 {
			return fmt.Errorf("enforced %d/%d", p.GetEnforced(), p.GetNodes())
		}
		return nil
	})
	c.remove("policy-v1")
	r.policies(0)
	n1.until(c.head())
	if len(n1.items) != 2 {
		t.Errorf("after the policy: items %v, want two subjects", n1.items)
	}
}

func TestBadNewVersionStaysInForce(t *testing.T) {
	c := newCluster(t)
	app1, _ := c.identity("default", "app1")
	app2, _ := c.identity("default", "app2")
	c.write("a", open("a", "app1", "app2"))
	r := c.start("policy-0")
	before := r.policies(1).GetPolicies()[0].GetRevision()
	c.write("a", strings.Replace(open("a", "app1", "app2"), "ingress:", "ingres:", 1))
	var refused *identityv1.RefusedObject
	eventually(t, "the bad version is told", func() error {
		list := r.policies(1)
		if len(list.GetRefused()) != 1 {
			return fmt.Errorf("refused %v", list.GetRefused())
		}
		refused = list.GetRefused()[0]
		return nil
	})
	if refused.GetFile() != filepath.Join(c.dir, "a.yaml") || refused.GetLine() == 0 || !strings.Contains(refused.GetReason(), "ingres") {
		t.Errorf("refused %v, want file, line and field", refused)
	}
	if got := r.policies(1).GetPolicies()[0].GetRevision(); got != before {
		t.Errorf("the policy is of revision %d, want %d as before", got, before)
	}
	// A new leader that has never seen the good version does not delete it.
	r.stop()
	r = c.start("policy-1")
	eventually(t, "the new replica leads", func() error {
		st, err := r.operator().GetStatus(c.ctx(), &policyv1.GetStatusRequest{})
		if err == nil && !st.GetLeader() {
			err = errors.New("not the leader")
		}
		return err
	})
	c.write("b", open("b", "app1", "app3"))
	r.policies(2)
	if got := explain(c, r, app2, app1, "/").GetIngress().GetVerdict(); got != policyv1.Verdict_VERDICT_ALLOW {
		t.Errorf("app2 to app1: %v, want what the good version allows", got)
	}
}

func get(t *testing.T, r *running, path string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", r.http)
		},
	}}
	var resp *http.Response
	eventually(t, "http answers", func() (err error) {
		resp, err = client.Get("http://replica" + path)
		return err
	})
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestReplicasAgreeAndAStreamMoves(t *testing.T) {
	c := newCluster(t)
	app1, _ := c.identity("default", "app1")
	app2, _ := c.identity("default", "app2")
	c.put(statelog.ServiceKey("default", "s"), &identityv1.Service{
		Namespace: "default", Name: "s", Addresses: [][]byte{{10, 96, 0, 1}},
		Ports: []*identityv1.ServicePort{{Protocol: 6, Port: 80, Backends: []*identityv1.Backend{{Address: []byte{10, 244, 1, 2}, Port: 8080}}}},
	})
	for i := range 40 {
		c.identity("default", fmt.Sprintf("peer%d", i))
		c.write(fmt.Sprintf("p%d", i), open(fmt.Sprintf("p%d", i), "app1", fmt.Sprintf("peer%d", i)))
	}
	c.write("egress", `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: default}
spec: {podSelector: {matchLabels: {id: app2}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}
`)
	a, b := c.start("policy-0"), c.start("policy-1")
	a.policies(41)
	head := c.head()
	b.at(head)
	one, two := newNode(t, "n1", all, app1, app2).watch(a), newNode(t, "n2", all, app1, app2).watch(b)
	one.until(head)
	two.until(head)
	if one.revision != two.revision || !bytes.Equal(one.digest, two.digest) {
		t.Errorf("at revisions %d and %d the digests are %x and %x", one.revision, two.revision, one.digest, two.digest)
	}
	if one.count(policyv1.ItemKind_ITEM_KIND_SERVICE) != 1 {
		t.Errorf("items %v, want the service that egress may go to", one.items)
	}
	whole := one.bytes

	// Moved with nothing changed: told so, in a few bytes.
	one.watch(b)
	one.next()
	if one.full || one.upserts+one.changes+one.removals != 0 || one.bytes > 100 {
		t.Errorf("moved at rest: full %v, %d items, %d bytes; want none and at most 100", one.full, one.upserts, one.bytes)
	}
	// Moved while one policy changed: that and no more.
	one.close()
	c.write("p7", open("p7", "app1", "peer8"))
	eventually(t, "the change is in the log", func() error {
		if c.head() == head {
			return errors.New("it is not")
		}
		return nil
	})
	a.at(c.head())
	one.watch(a)
	one.next()
	if one.full || one.upserts == 0 || one.upserts > 4 || one.bytes*5 > whole {
		t.Errorf("moved after one change: full %v, %d items, %d of %d bytes; want only what changed",
			one.full, one.upserts, one.bytes, whole)
	}
	two.until(c.head())
	if !bytes.Equal(one.digest, two.digest) {
		t.Errorf("digests differ after the change: %x and %x", one.digest, two.digest)
	}
	// Every replica knows of both nodes.
	for _, r := range []*running{a, b} {
		eventually(t, "both nodes are counted", func() error {
			for _, p := range r.policies(41).GetPolicies() {
				if p.GetEnforced() != 2 || p.GetNodes() != 2 {
					return fmt.Errorf("%s: %d/%d", p.GetOrigin().GetName(), p.GetEnforced(), p.GetNodes())
				}
			}
			return nil
		})
	}
}

func TestMembersAreToldAsADifference(t *testing.T) {
	c := newCluster(t)
	app1, _ := c.identity("default", "app1")
	for i := range 60 {
		c.identity("default", fmt.Sprintf("m%d", i))
	}
	c.write("np", `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: all, namespace: default}
spec: {podSelector: {matchLabels: {id: app1}}, ingress: [{from: [{podSelector: {}}]}]}
`)
	r := c.start("policy-0")
	r.policies(1)
	n1 := newNode(t, "n1", all, app1).watch(r)
	n1.until(c.head())
	_, at := c.identity("default", "newcomer")
	n1.until(at)
	if n1.changes != 1 || n1.upserts != 0 || n1.bytes > 120 {
		t.Errorf("a new member: %d changes, %d items, %d bytes; want one change in at most 120", n1.changes, n1.upserts, n1.bytes)
	}
	// A refused difference is not held, and all is sent anew.
	c.identity("default", "another")
	nonce := func() uint64 {
		before := n1.items
		defer func() { n1.items = before }()
		return n1.receive()
	}()
	n1.send(&policyv1.WatchPolicyRequest{Message: &policyv1.WatchPolicyRequest_Nack{Nack: &policyv1.Nack{
		Nonce: nonce, Revision: n1.revision, Reason: "no room",
	}}})
	n1.next()
	if !n1.full {
		t.Error("after a refusal the node got a difference, want the whole state")
	}
}

func TestEmptyCapabilitiesGetTheStricterForm(t *testing.T) {
	c := newCluster(t)
	app1, _ := c.identity("default", "app1")
	c.write("http", `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http}
spec:
  endpointSelector: {matchLabels: {id: app1}}
  ingress:
  - fromEndpoints: [{matchLabels: {id: app2}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}]
  - fromEndpoints: [{matchLabels: {id: app3}}]
`)
	r := c.start("policy-0")
	r.policies(1)
	full := newNode(t, "n1", all, app1).watch(r)
	full.until(c.head())
	bare := newNode(t, "n2", nil, app1).watch(r)
	bare.until(c.head())
	rules := func(n *node) (isolate, allow, http int) {
		for _, it := range n.items {
			switch p := it.GetRule(); {
			case p.GetAction() == policyv1.Action_ACTION_ISOLATE:
				isolate++
			case p.GetAction() == policyv1.Action_ACTION_ALLOW && p.RuleSet != nil:
				http++
			case p.GetAction() == policyv1.Action_ACTION_ALLOW:
				allow++
			}
		}
		return isolate, allow, http
	}
	if i, a, h := rules(full); i != 1 || a != 1 || h != 1 {
		t.Errorf("with every capability: %d isolate, %d allow, %d HTTP, want one of each", i, a, h)
	}
	if i, a, h := rules(bare); i != 1 || a != 1 || h != 0 || bare.count(policyv1.ItemKind_ITEM_KIND_RULE_SET) != 0 {
		t.Errorf("with none: %d isolate, %d allow, %d HTTP, want the HTTP rule left out", i, a, h)
	}
	c.write("deny", `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: deny}
spec:
  endpointSelector: {matchLabels: {id: app1}}
  ingressDeny:
  - fromEndpoints: [{matchLabels: {id: app3}}]
`)
	r.policies(2)
	bare.until(c.head())
	if i, a, h := rules(bare); i == 0 || a != 0 || h != 0 {
		t.Errorf("with a deny that it does not understand: %d isolate, %d allow, %d HTTP, want it closed", i, a, h)
	}
}

func TestOnlyNodesWatchAndOnlyOperatorsAsk(t *testing.T) {
	c := newCluster(t)
	c.identity("default", "app1")
	r := c.start("policy-0").at(1)
	for who, client := range map[string]policyv1.PolicyServiceClient{
		"identity": r.as(tlsconf.Identity, "identity-0"), "the operator": r.operator(),
	} {
		stream, err := client.WatchPolicy(c.ctx())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s watches: %v, want PermissionDenied", who, err)
		}
	}
	node := r.as(tlsconf.Node, "n1")
	_, err := node.ListPolicies(c.ctx(), &policyv1.ListPoliciesRequest{})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node lists policies: %v, want PermissionDenied", err)
	}
	_, err = node.GetStatus(c.ctx(), &policyv1.GetStatusRequest{})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node asks for the status: %v, want PermissionDenied", err)
	}
}

func TestMetrics(t *testing.T) {
	c := newCluster(t)
	app1, _ := c.identity("default", "app1")
	r := c.start("policy-0").at(1)
	n1 := newNode(t, "n1", all, app1).watch(r)
	n1.next()
	eventually(t, "the replica leads", func() error {
		if _, body := get(t, r, "/metrics"); !strings.Contains(body, "weir_policy_leader 1") {
			return errors.New("it does not")
		}
		return nil
	})
	c.write("a", open("a", "app1", "app2"))
	n1.until(r.policies(1).GetPolicies()[0].GetRevision())
	eventually(t, "the time to being in force is measured", func() error {
		if _, body := get(t, r, "/metrics"); !strings.Contains(body, "weir_policy_policy_in_force_seconds_count 1") {
			return errors.New("it is not")
		}
		return nil
	})
	_, body := get(t, r, "/metrics")
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "weir_") {
			t.Errorf("metric %s: %s", p.Metric, p.Text)
		}
	}
}

func TestNodeIsToldWhatItSubscribesTo(t *testing.T) {
	c := newCluster(t)
	app1, at := c.identity("default", "app1")
	app2, _ := c.identity("default", "app2")
	c.write("a", open("a", "app2", "app1"))
	r := c.start("policy-0").at(at)
	r.policies(1)
	n1 := newNode(t, "n1", all, app1).watch(r)
	n1.next()
	if len(n1.items) != 1 {
		t.Errorf("with app1, which no policy selects: %v, want its subject alone", n1.items)
	}
	n1.subscribe(app1, app2)
	n1.next()
	if n1.full || n1.count(policyv1.ItemKind_ITEM_KIND_SUBJECT) != 2 || n1.count(policyv1.ItemKind_ITEM_KIND_RULE) == 0 {
		t.Errorf("with app2: full %v, items %v, want its subject and rules", n1.full, n1.items)
	}
	// An identity that is not in the log yet has no subject: closed.
	later := bytes.Repeat([]byte{7}, 32)
	n1.subscribe(later)
	n1.next()
	if len(n1.items) != 0 {
		t.Errorf("with an identity that nobody knows: %v, want nothing", n1.items)
	}
	rev := c.put(statelog.IdentityKey(later), &identityv1.Identity{Cluster: "test", Namespace: "default"})
	n1.until(rev)
	if len(n1.items) != 1 {
		t.Errorf("when it has entered the log: %v, want its subject", n1.items)
	}
}
