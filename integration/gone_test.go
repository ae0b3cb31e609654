package integration

import (
	"strings"
	"testing"

	enforcerv1 "weir.dev/weir/proto/weir/enforcer/v1"
)

// newPod is a pod of an identity that the cluster has not seen yet.
func newPod(name string) string {
	return "{apiVersion: v1, kind: Pod, metadata: {name: " + name + ", labels: {id: " + name + "}}, spec: {nodeName: n3, containers: [{name: app, image: weir-demo-client:v1}]}}"
}

// status is the pod's phase, as get tells it.
func (d *demo) status(t *testing.T, pod string) string {
	t.Helper()
	out, _ := d.try(t, "", "get", "pod", pod)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	fields := strings.Fields(lines[len(lines)-1])
	if len(fields) < 3 {
		return out
	}
	return fields[2]
}

// holds asks all that the tutorial's policy says.
func (d *demo) holds(t *testing.T) {
	t.Helper()
	d.want(t, "deploy/app2", "http://app1-service/public", served("/public"))
	d.want(t, "deploy/app2", "http://app1-service/private", denied())
	d.want(t, "deploy/app3", "http://app1-service/public", timedOut())
}

// TestWhenAPartIsGone does what the design's table promises, one part after the
// other: what is in force stays, what needs the part waits, and goes on when it
// is back.
func TestWhenAPartIsGone(t *testing.T) {
	d := up(t, "it-gone")
	d.tutorial(t)
	policy := tutorialPolicy(t)
	d.policy(t, "rule1", policy)
	d.holds(t)

	t.Run("policy", func(t *testing.T) {
		d.weir(t, 0, "demo", "kill", "policy-0")
		d.holds(t)
		d.weir(t, 0, "demo", "kill", "policy-1")
		d.holds(t)
		d.apply(t, newPod("late-policy"))
		d.await(t, "the pod waits", func() bool { return d.status(t, "late-policy") == "ContainerCreating" })
		d.holds(t)
		d.weir(t, 0, "demo", "start", "policy-0")
		d.weir(t, 0, "demo", "start", "policy-1")
		d.await(t, "the pod runs", func() bool { return d.status(t, "late-policy") == "Running" })
		d.holds(t)
	})

	t.Run("identity and NATS", func(t *testing.T) {
		for _, part := range []string{"identity-0", "identity-1", "nats"} {
			d.weir(t, 0, "demo", "kill", part)
		}
		d.holds(t)
		d.apply(t, newPod("late-identity"))
		d.await(t, "the pod waits", func() bool { return d.status(t, "late-identity") == "ContainerCreating" })
		d.holds(t)
		for _, part := range []string{"nats", "identity-0", "identity-1"} {
			d.weir(t, 0, "demo", "start", part)
		}
		d.await(t, "the pod runs", func() bool { return d.status(t, "late-identity") == "Running" })
		d.holds(t)
	})

	t.Run("proxy", func(t *testing.T) {
		for _, n := range []string{"n1", "n2"} {
			d.weir(t, 0, "demo", "kill", "l7proxy-"+n)
		}
		d.await(t, "503 at once", func() bool {
			got := d.curl(t, "deploy/app2", "http://app1-service/public", "3")
			return got.code == 0 && got.status == 503
		})
		d.want(t, "deploy/app3", "http://app1-service/public", timedOut())
		for _, n := range []string{"n1", "n2"} {
			d.weir(t, 0, "demo", "start", "l7proxy-"+n)
		}
		d.await(t, "HTTP again", func() bool {
			return d.curl(t, "deploy/app2", "http://app1-service/public", "3") == served("/public")
		})
		d.holds(t)
	})

	t.Run("enforcer", func(t *testing.T) {
		for _, n := range []string{"n1", "n2"} {
			d.weir(t, 0, "demo", "kill", "enforcer-"+n)
		}
		d.holds(t)
		for _, n := range []string{"n1", "n2"} {
			d.weir(t, 0, "demo", "start", "enforcer-"+n)
		}
		d.holds(t)
		d.remove(t, "cnp", "rule1")
		d.want(t, "deploy/app3", "http://app1-service/private", served("/private"))
		d.policy(t, "rule1", policy)
		d.holds(t)
	})
}

// TestAnotherReplicaTellsTheDifferenceOnly moves an enforcer from one policy
// replica to the other: no state is sent again, none is older, and no verdict
// changes.
func TestAnotherReplicaTellsTheDifferenceOnly(t *testing.T) {
	d := up(t, "it-move")
	d.tutorial(t)
	d.policy(t, "rule1", tutorialPolicy(t))
	d.holds(t)
	before := d.enforcer(t, "n1")
	first := "policy-0"
	if strings.HasSuffix(before.GetPolicyReplica(), ":7012") {
		first = "policy-1"
	}
	whole := before.GetWatchBytes()
	d.weir(t, 0, "demo", "kill", first)
	var after *enforcerv1.GetStatusResponse
	d.await(t, "the other replica", func() bool {
		after = d.enforcer(t, "n1")
		return after.GetPolicyReplica() != "" && after.GetPolicyReplica() != before.GetPolicyReplica() && after.GetWatchBytes() > whole
	})
	moved := after.GetWatchBytes() - whole
	t.Logf("%d bytes before, %d by the move", whole, moved)
	if moved*3 > whole {
		t.Errorf("the move cost %d bytes; the whole state and its changes had cost %d", moved, whole)
	}
	if after.GetRevision() < before.GetRevision() || after.GetWord() != before.GetWord() {
		t.Errorf("revision %d and word %d before, %d and %d after: want none older, and no flip",
			before.GetRevision(), before.GetWord(), after.GetRevision(), after.GetWord())
	}
	d.holds(t)
}
