package replica_test

import (
	"os"
	"testing"

	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/statelog"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
)

// A node that has in force what the log has lost would wait for ever: the lease
// holder begins another generation, and the node gets the whole state.
func TestS7LogComesBackOlder(t *testing.T) {
	t.Run("a replica has seen its tail", func(t *testing.T) { logComesBackOlder(t, false) })
	t.Run("only nodes have", func(t *testing.T) { logComesBackOlder(t, true) })
}

func logComesBackOlder(t *testing.T, restart bool) {
	c := newCluster(t)
	app1, _ := c.identity("default", "app1")
	c.write("a", open("a", "app1", "app2"))
	r := c.start("policy-0")
	r.policies(1)
	c.nats.Stop()
	old := t.TempDir()
	if err := os.CopyFS(old, os.DirFS(c.nats.Store)); err != nil {
		t.Fatal(err)
	}
	c.nats.Restart(t)
	eventually(t, "the log is back", func() error {
		_, err := bus.HeadOf(c.ctx(), c.state)
		return err
	})
	for range 5 {
		c.put(statelog.NamespaceKey("x"), &identityv1.Namespace{Name: "x", Labels: []*identityv1.Label{{Key: "n", Value: string(rune('a' + c.head()%26))}}})
	}
	head := c.head()
	r.at(head)
	n1 := newNode(t, "n1", all, app1).watch(r)
	n1.until(head)
	before := n1.generation

	c.nats.Stop()
	c.nats.Store = old
	if restart {
		r.stop()
	}
	c.nats.Restart(t)
	if restart {
		n1.watch(c.start("policy-1").at(1))
	}
	for n1.generation == before {
		n1.next()
	}
	if !n1.full || n1.generation < before || len(n1.items) == 0 {
		t.Errorf("generation %d after %d: full %v, %d items; want the whole state of a later one",
			n1.generation, before, n1.full, len(n1.items))
	}
}

// A log that was made anew by a clock that is behind has a generation before the
// one that the nodes have in force, and they would refuse it for ever.
func TestS7GenerationBeforeTheNodesIsReplaced(t *testing.T) {
	c := newCluster(t)
	app1, _ := c.identity("default", "app1")
	c.write("a", open("a", "app1", "app2"))
	r := c.start("policy-0")
	r.policies(1)
	head := c.head()
	n1 := newNode(t, "n1", all, app1).watch(r.at(head))
	n1.until(head)
	before := n1.generation
	if _, err := c.state.Put(c.ctx(), string(statelog.GenerationKey), []byte("5")); err != nil {
		t.Fatal(err)
	}
	for n1.generation == before {
		n1.next()
	}
	if !n1.full || n1.generation < before || len(n1.items) == 0 {
		t.Errorf("generation %d after %d: full %v, %d items; want the whole state of a later one",
			n1.generation, before, n1.full, len(n1.items))
	}
}
