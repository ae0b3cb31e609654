//go:build faults

package integration

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// swapped forbids the client port 8080 of the server far, at the client's side
// or at the server's, and says nothing at the other.
func swapped(atServer bool) string {
	egress, ingress := "1", "8080"
	if atServer {
		egress, ingress = "8080", "1"
	}
	return fmt.Sprintf(`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: client}
spec:
  endpointSelector: {matchLabels: {id: client}}
  egress:
    - toEndpoints: [{matchLabels: {at: far}}]
      toPorts: [{ports: [{port: "%s", protocol: TCP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server}
spec:
  endpointSelector: {matchLabels: {at: far}}
  ingress:
    - fromEndpoints: [{matchLabels: {id: client}}]
      toPorts: [{ports: [{port: "%s", protocol: TCP}]}]
`, egress, ingress)
}

// TestWhatIsForbiddenOnTheOtherSide moves a prohibition from one end of a flow to
// the other, on another node, again and again. Between the two nodes nothing is
// atomic, so a connection may come about meanwhile; none outlives the later
// change by more than cutWithin.
func TestWhatIsForbiddenOnTheOtherSide(t *testing.T) {
	t.Parallel()
	d := up(t, "it-swap")
	d.apply(t, loadPods)
	to := servers(d.running(t, 4))
	both := func(atServer bool) (inForce time.Time) {
		from := d.policies(t, "policy-0").GetRevision()
		d.apply(t, swapped(atServer))
		d.await(t, "both policies are in force", func() bool {
			newer := 0
			for _, p := range d.policies(t, "policy-0").GetPolicies() {
				if p.GetRevision() > from && p.GetNodes() == 3 && p.GetEnforced() == 3 {
					newer++
				}
			}
			return newer == 2
		})
		return time.Now()
	}
	both(false)
	var streams []traffic
	for _, at := range []string{"far-4", "far-6"} {
		for _, kind := range []string{"fresh", "alive"} {
			streams = append(streams, traffic{
				name: kind + "-" + at, kind: kind, conns: 4, pace: 5 * time.Millisecond,
				url: url(to[at], 8080, "/private"), want: "timeout", limit: 100 * time.Millisecond,
			})
		}
	}
	l := d.load(t, "client", streams)
	l.goesOn(t, d, streams, 2)
	const swaps = 10
	begun, calm := make([]time.Time, swaps), make([]time.Time, swaps)
	for i := range swaps {
		begun[i] = time.Now()
		calm[i] = both(i%2 == 0)
		l.goesOn(t, d, streams, 8)
	}
	l.stop(t)
	_, events := l.now()
	through, longest := 0, time.Duration(0)
	for _, e := range events {
		if e.Got != "200" {
			continue // a reset, or what a connection that ended says
		}
		through++
		i := slices.IndexFunc(begun, func(b time.Time) bool { return b.After(e.At) }) - 1
		if i == -2 {
			i = swaps - 1
		}
		if i < 0 {
			t.Errorf("%s got through before anything changed", e.Stream)
			continue
		}
		longest = max(longest, e.At.Sub(calm[i]))
		if e.At.After(calm[i].Add(cutWithin)) {
			t.Errorf("%s got through %v after change %d was in force on all nodes", e.Stream, e.At.Sub(calm[i]), i)
		}
	}
	t.Logf("%d swaps: %d answers came through while they were under way, the last %v after one was in force", swaps, through, longest)
}
