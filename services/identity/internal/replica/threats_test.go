package replica_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"weir.dev/weir/internal/bus"
	"weir.dev/weir/internal/statelog"
	"weir.dev/weir/internal/tlsconf"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
)

func TestS8LateReleaseDoesNotRemoveTheNewOwner(t *testing.T) {
	c := newCluster(t)
	c.pod("a", "ua", "n1", "id: a")
	r := c.start("identity-0").ready()
	n1, n2 := r.as(tlsconf.Node, "n1"), r.as(tlsconf.Node, "n2")
	if _, err := n1.Register(c.ctx(), register("a", "ua", "10.244.1.5")); err != nil {
		t.Fatal(err)
	}
	// a is gone without a release; b gets its address on another node.
	c.remove("a")
	c.pod("b", "ub", "n2", "id: b")
	started := time.Now()
	r.eventually("b gets the address", func() error {
		_, err := n2.Register(c.ctx(), register("b", "ub", "10.244.1.5"))
		return err
	})
	if took := time.Since(started); took < time.Second {
		t.Errorf("the address means b %v after it meant a, want a second at least", took)
	}
	resp, err := n1.Release(c.ctx(), &identityv1.ReleaseRequest{Namespace: "default", Name: "a", PodUid: "ua"})
	if err != nil || resp.GetReleased() != 0 {
		t.Errorf("a's late release: %v, %v, want nothing released", resp, err)
	}
	look, err := n1.Lookup(c.ctx(), &identityv1.LookupRequest{Address: addr("10.244.1.5")})
	if err != nil || look.GetRecord().GetPodUid() != "ub" {
		t.Errorf("after a's late release: %v, %v, want b's record", look, err)
	}
	if resp, err := n2.Release(c.ctx(), &identityv1.ReleaseRequest{Namespace: "default", Name: "b", PodUid: "ub"}); err != nil || resp.GetReleased() != 1 {
		t.Errorf("b's own release: %v, %v, want 1 released", resp, err)
	}
}

func TestS9NodeSpeaksOnlyForItself(t *testing.T) {
	c := newCluster(t)
	c.node("n1", "10.244.1.0/24", "10.200.0.1")
	c.node("n2", "10.244.2.0/24", "10.200.0.2")
	c.pod("app1", "u1", "n2", "id: app1")
	c.pod("app3", "u3", "n1", "id: app3")
	r := c.start("identity-0").ready()
	n1, n2 := r.as(tlsconf.Node, "n1"), r.as(tlsconf.Node, "n2")
	if _, err := n2.Register(c.ctx(), register("app1", "u1", "10.244.2.2")); err != nil {
		t.Fatal(err)
	}
	if err := registerNode(c, n2, "10.200.0.2"); err != nil {
		t.Fatal(err)
	}
	_, err := n1.Register(c.ctx(), register("app1", "u1", "10.244.1.9"))
	wantCode(t, "n1 registers a pod of n2", err, codes.FailedPrecondition)
	_, err = n1.Register(c.ctx(), register("app3", "u3", "10.244.2.2"))
	wantCode(t, "n1 claims the address of n2's pod for its own", err, codes.AlreadyExists)
	_, err = n1.Register(c.ctx(), register("app3", "u3", "10.200.0.2"))
	wantCode(t, "n1 claims n2's address for a pod", err, codes.AlreadyExists)
	_, err = n1.Register(c.ctx(), register("app3", "old", "10.244.1.3"))
	wantCode(t, "n1 registers a pod that was", err, codes.FailedPrecondition)
	_, err = n1.Register(c.ctx(), register("ghost", "u9", "10.244.1.3"))
	wantCode(t, "n1 registers a pod that nobody knows", err, codes.FailedPrecondition)
	c.write("lost", "apiVersion: v1\nkind: Pod\nmetadata: {name: lost, namespace: nowhere, uid: u5}\nspec: {nodeName: n1, containers: [{name: c, image: i}]}\n")
	_, err = n1.Register(c.ctx(), &identityv1.RegisterRequest{Namespace: "nowhere", Name: "lost", PodUid: "u5", Addresses: [][]byte{addr("10.244.1.3")}})
	wantCode(t, "a pod in a namespace that nobody declares", err, codes.FailedPrecondition)
	_, err = n1.Register(c.ctx(), register("app3", "u3"))
	wantCode(t, "a pod without addresses", err, codes.InvalidArgument)
	wantCode(t, "n1 says what it has, and n2's own address", registerNode(c, n1, "10.200.0.2", "10.200.0.1"), codes.OK)
	look, err := n1.Lookup(c.ctx(), &identityv1.LookupRequest{Address: addr("10.200.0.2")})
	if err != nil || look.GetRecord().GetNode() != "n2" {
		t.Errorf("n2 lost its address to n1: %v, %v", look, err)
	}
	look, err = n1.Lookup(c.ctx(), &identityv1.LookupRequest{Address: addr("10.200.0.1")})
	if err != nil || look.GetRecord().GetNode() != "n1" || !look.GetRecord().GetNodeAddress() {
		t.Errorf("n1 did not get what it may have: %v, %v", look, err)
	}
	resp, err := n1.Release(c.ctx(), &identityv1.ReleaseRequest{Namespace: "default", Name: "app1", PodUid: "u1"})
	if err != nil || resp.GetReleased() != 0 {
		t.Errorf("n1 releases a pod of n2: %v, %v, want nothing released", resp, err)
	}
	for role, client := range map[string]identityv1.IdentityServiceClient{
		"policy": r.as(tlsconf.Policy, "policy-0"), "the operator": r.operator(),
	} {
		_, err := client.Register(c.ctx(), register("app3", "u3", "10.244.1.3"))
		wantCode(t, role+" registers a pod", err, codes.PermissionDenied)
	}
	_, err = n1.ListIdentities(c.ctx(), &identityv1.ListIdentitiesRequest{})
	wantCode(t, "a node lists identities", err, codes.PermissionDenied)
	_, err = n1.ListServices(c.ctx(), &identityv1.ListServicesRequest{})
	wantCode(t, "a node lists Services", err, codes.PermissionDenied)
}

func TestS11SnapshotWaitsForTheReplay(t *testing.T) {
	c := newCluster(t)
	c.nats.Stop()
	r := c.start("identity-0")
	node := r.as(tlsconf.Node, "n1")
	stream, err := node.Snapshot(c.ctx(), &identityv1.SnapshotRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, "snapshot of a replica that has replayed nothing", err, codes.Unavailable)
	_, err = node.Lookup(c.ctx(), &identityv1.LookupRequest{Address: addr("10.244.1.1")})
	wantCode(t, "lookup likewise", err, codes.Unavailable)
	c.nats.Restart(t)
	r.ready()
}

func (c *cluster) heads() (state, addresses uint64) {
	c.t.Helper()
	js := c.nats.JetStream(c.t, tlsconf.Identity, "test")
	for bucket, to := range map[string]*uint64{bus.StateBucket: &state, bus.AddressBucket: &addresses} {
		kv, err := js.KeyValue(c.ctx(), bucket)
		if err != nil {
			c.t.Fatal(err)
		}
		head, err := bus.HeadOf(c.ctx(), kv)
		if err != nil {
			c.t.Fatal(err)
		}
		*to = head.Sequence
	}
	return state, addresses
}

func TestS13NamespaceRelabelIsOneRevision(t *testing.T) {
	c := newCluster(t)
	c.write("ns", "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {team: a}}\n")
	const pods = 2000
	var all strings.Builder
	for i := range pods {
		fmt.Fprintf(&all, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p%d, uid: u%d, labels: {id: app}}\nspec: {nodeName: n1, containers: [{name: c, image: i}]}\n", i, i)
	}
	c.write("pods", "%s", all.String())
	r := c.start("identity-0").ready()
	n1 := r.as(tlsconf.Node, "n1")
	var g errgroup.Group
	g.SetLimit(16)
	for i := range pods {
		g.Go(func() error {
			ip := fmt.Sprintf("10.244.%d.%d", i/250, i%250+2)
			_, err := n1.Register(c.ctx(), register(fmt.Sprintf("p%d", i), fmt.Sprintf("u%d", i), ip))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	kv := c.state()
	labels := func(want string) func() error {
		return func() error {
			e, err := kv.Get(c.ctx(), string(statelog.NamespaceKey("default")))
			if err != nil {
				return err
			}
			ns := &identityv1.Namespace{}
			if err := proto.Unmarshal(e.Value(), ns); err != nil {
				return err
			}
			if !slices.ContainsFunc(ns.GetLabels(), func(l *identityv1.Label) bool { return l.GetKey() == "team" && l.GetValue() == want }) {
				return fmt.Errorf("namespace %v", ns)
			}
			return nil
		}
	}
	r.eventually("the namespace is in the log", labels("a"))
	stateBefore, addressesBefore := c.heads()
	c.write("ns", "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {team: b}}\n")
	r.eventually("the relabelled namespace is in the log", labels("b"))
	state, addresses := c.heads()
	if state != stateBefore+1 || addresses != addressesBefore {
		t.Errorf("relabelling a namespace of %d pods: %d revisions and %d address writes, want 1 and 0",
			pods, state-stateBefore, addresses-addressesBefore)
	}
}

func TestS12RestWritesNothing(t *testing.T) {
	c := newCluster(t)
	c.write("ns", "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, resourceVersion: '5'}\n")
	c.write("svc", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}\n")
	c.pod("app", "u", "n1", "id: app")
	r := c.start("identity-0").ready()
	if _, err := r.as(tlsconf.Node, "n1").Register(c.ctx(), register("app", "u", "10.244.1.2")); err != nil {
		t.Fatal(err)
	}
	kv := c.state()
	r.eventually("all is in the log", func() error {
		_, err := kv.Get(c.ctx(), "service.default.s")
		return err
	})
	state, addresses := c.heads()
	c.write("ns", "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, resourceVersion: '6'}\nstatus: {phase: Active}\n")
	r.stop()
	again := c.start("identity-0").ready()
	again.eventually("the new replica leads", func() error {
		st, err := again.operator().GetStatus(c.ctx(), &identityv1.GetStatusRequest{})
		if err == nil && !st.GetLeader() {
			err = errors.New("not the leader")
		}
		return err
	})
	// The next write shows that those before it were looked at.
	c.write("ns2", "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n")
	again.eventually("the other namespace is in the log", func() error {
		_, err := kv.Get(c.ctx(), "namespace.other")
		return err
	})
	stateAfter, addressesAfter := c.heads()
	if stateAfter != state+1 || addressesAfter != addresses {
		t.Errorf("a restart and a status write: %d log writes and %d address writes beyond the one wanted",
			stateAfter-state-1, addressesAfter-addresses)
	}
}
