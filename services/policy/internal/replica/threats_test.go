package replica_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weir.dev/weir/internal/statelog"
	"weir.dev/weir/internal/tlsconf"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

func TestS5LaggingReplicaNeverTakesBack(t *testing.T) {
	c := newCluster(t)
	app1, _ := c.identity("default", "app1")
	c.write("a", open("a", "app1", "app2"))
	ahead := c.start("policy-0")
	first := ahead.policies(1).GetRevision()

	release := make(chan struct{})
	behind := c.startWith("policy-1", func(ctx context.Context, b statelog.Batch) {
		if b.Revision > first {
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
	}).at(first)
	n1 := newNode(t, "n1", all, app1).watch(ahead)
	n1.until(first)
	c.write("a", open("a", "app1", "app3"))
	c.write("b", open("b", "app1", "app4"))
	ahead.policies(2)
	n1.until(c.head())
	held, revision := n1.digest, n1.revision

	n1.watch(behind)
	got := make(chan *policyv1.WatchPolicyResponse, 1)
	go func() {
		m, err := n1.stream.Recv()
		if err == nil {
			got <- m
		}
		close(got)
	}()
	select {
	case m := <-got:
		t.Fatalf("a replica at revision %d told a node at %d: %v", first, revision, m)
	case <-time.After(time.Second):
	}
	close(release)
	m, ok := <-got
	if !ok || m.GetRevision() < revision || m.GetFull() || len(m.GetUpserts()) != 0 || !bytes.Equal(m.GetDigest(), held) {
		t.Errorf("when it has caught up: %v, want an empty difference at revision %d at least", m, revision)
	}
}

func TestS6UnreadableFolderDeletesNothing(t *testing.T) {
	c := newCluster(t)
	c.write("a", open("a", "app1", "app2"))
	c.write("b", open("b", "app1", "app3"))
	r := c.start("policy-0")
	r.policies(2)
	before := c.head()
	if err := os.Rename(c.dir, c.dir+".away"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the folder is seen to be unreadable", func() error {
		st, err := r.operator().GetStatus(c.ctx(), &policyv1.GetStatusRequest{})
		if err == nil && len(st.GetUnsynced()) == 0 {
			err = errors.New("everything is synced")
		}
		return err
	})
	// A replica that starts now has never seen the folder.
	r.stop()
	r = c.start("policy-1")
	eventually(t, "the new replica leads", func() error {
		st, err := r.operator().GetStatus(c.ctx(), &policyv1.GetStatusRequest{})
		if err == nil && (!st.GetLeader() || len(st.GetUnsynced()) == 0) {
			err = fmt.Errorf("status %v", st)
		}
		return err
	})
	r.policies(2)
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c.write("a", open("a", "app1", "app2"))
	r.policies(1) // a complete list without b
	if got := c.head(); got != before+1 {
		t.Errorf("%d writes to the log, want the one removal", got-before)
	}
	if err := os.RemoveAll(c.dir + ".away"); err != nil {
		t.Fatal(err)
	}
}

func TestS11NotReplayedServesNothing(t *testing.T) {
	c := newCluster(t)
	c.nats.Stop()
	r := c.start("policy-0")
	stream, err := r.as(tlsconf.Node, "n1").WatchPolicy(c.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if _, err = stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("watch at a replica that has replayed nothing: %v, want Unavailable", err)
	}
	if code, _ := get(t, r, "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("readyz: %d, want 503", code)
	}
	c.nats.Restart(t)
	r.at(1)
	eventually(t, "it becomes ready", func() error {
		if code, body := get(t, r, "/readyz?verbose"); code != http.StatusOK {
			return fmt.Errorf("readyz: %d %s", code, body)
		}
		return nil
	})
}

func TestS12RestWritesNothing(t *testing.T) {
	c := newCluster(t)
	const n = 100
	for i := range n {
		c.write(fmt.Sprintf("p%d", i), open(fmt.Sprintf("p%d", i), "app1", fmt.Sprintf("app%d", i)))
	}
	r := c.start("policy-0")
	r.policies(n)
	before := c.head()
	for i := range n { // what a status write looks like to a source
		text := open(fmt.Sprintf("p%d", i), "app1", fmt.Sprintf("app%d", i))
		text = strings.Replace(text, "metadata: {", fmt.Sprintf("metadata: {resourceVersion: '%d', generation: 2, ", i+1000), 1)
		c.write(fmt.Sprintf("p%d", i), text+"status: {conditions: [{type: Valid, status: 'True'}]}\n")
	}
	r.stop()
	r = c.start("policy-1")
	c.write("last", open("last", "app1", "app2"))
	r.policies(n + 1) // what was written before it was looked at before it
	if got := c.head(); got != before+1 {
		t.Errorf("a status write of each of %d policies and a restart: %d log writes, want 0", n, got-before-1)
	}
}

func TestS13NamespaceRelabelIsOneRevision(t *testing.T) {
	c := newCluster(t)
	app1, _ := c.identity("default", "app1")
	ns := func(team string) *identityv1.Namespace {
		return &identityv1.Namespace{Name: "far", Labels: []*identityv1.Label{{Key: "team", Value: team}}}
	}
	c.put(statelog.NamespaceKey("far"), ns("a"))
	const members = 50
	for i := range members {
		c.identity("far", fmt.Sprintf("m%d", i))
	}
	c.write("np", `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: team-b, namespace: default}
spec:
  podSelector: {matchLabels: {id: app1}}
  ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]
`)
	r := c.start("policy-0")
	r.policies(1)
	n1 := newNode(t, "n1", all, app1).watch(r)
	n1.until(c.head())
	before := c.head()
	at := c.put(statelog.NamespaceKey("far"), ns("b"))
	n1.until(at)
	if at != before+1 || c.head() != at {
		t.Errorf("relabelling a namespace took %d revisions, want 1", c.head()-before)
	}
	// Far from empty, the change is told as one; back it is told as a difference.
	if n1.upserts+n1.changes != 1 {
		t.Errorf("the node was sent %d items and %d changes, want one of either", n1.upserts, n1.changes)
	}
	got := 0
	for _, it := range n1.items {
		got += len(it.GetSelector().GetIdentities())
	}
	if got != members {
		t.Errorf("the selector has %d members, want %d", got, members)
	}
}
