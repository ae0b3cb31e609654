package integration

import (
	"testing"
)

// TestTwoDemos runs two demos side by side: the same names and addresses, and
// neither knows of the other.
func TestTwoDemos(t *testing.T) {
	left, right := up(t, "it-left"), up(t, "it-right")
	left.tutorial(t)
	right.tutorial(t)
	left.policy(t, "rule1", tutorialPolicy(t))
	left.want(t, "deploy/app2", "http://app1-service/private", denied())
	left.want(t, "deploy/app3", "http://app1-service/public", timedOut())
	right.want(t, "deploy/app2", "http://app1-service/private", served("/private"))
	right.want(t, "deploy/app3", "http://app1-service/public", served("/public"))

	if out, code := left.try(t, "", "demo", "up", "--name", left.name); code != 1 {
		t.Errorf("up of a demo that is up: exit code %d, want 1\n%s", code, out)
	}
	left.want(t, "deploy/app2", "http://app1-service/public", served("/public"))

	left.weir(t, 0, "demo", "down", "--name", left.name)
	right.policy(t, "rule1", tutorialPolicy(t))
	right.want(t, "deploy/app2", "http://app1-service/public", served("/public"))
	right.want(t, "deploy/app2", "http://app1-service/private", denied())
	right.want(t, "deploy/app3", "http://app1-service/public", timedOut())
}
