package integration

import (
	"fmt"
	"net/netip"
	"testing"
)

// pairsPods are a client on n1 and two servers, one on each of two nodes, each
// behind a Service.
const pairsPods = `
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {id: client}}
spec:
  nodeName: n1
  containers: [{name: app, image: weir-demo-client:v1}]
---
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {id: server, at: near}}
spec:
  nodeName: n1
  containers: [{name: app, image: weir-demo-httpd:v1, ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {id: server, at: far}}
spec:
  nodeName: n2
  containers: [{name: app, image: weir-demo-httpd:v1, ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec: {selector: {at: near}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {selector: {at: far}, ports: [{port: 80}]}
`

// side is what one side of a flow says of it.
type side int

const (
	deny side = iota
	allow
	byHTTP
)

func (s side) String() string { return [...]string{"deny", "allow", "HTTP"}[s] }

// policyOf is a policy of one side; peers are selected by their label.
func (s side) policyOf(name, subject, direction, peers, peer string) string {
	if s == deny {
		peer = "nobody"
	}
	rules := ""
	if s == byHTTP {
		rules = "\n          rules: {http: [{method: GET, path: /public}]}"
	}
	return fmt.Sprintf(`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: %s}
spec:
  endpointSelector: {matchLabels: {id: %s}}
  %s:
    - %s: [{matchLabels: {id: %s}}]
      toPorts:
        - ports: [{port: "80", protocol: TCP}]%s
`, name, subject, direction, peers, peer, rules)
}

// TestNinePairs holds threat P5, and more: egress and ingress are judged each by
// its own side, on one node and on two, by pod address and by Service.
func TestNinePairs(t *testing.T) {
	d := up(t, "it-pairs")
	d.apply(t, pairsPods)
	pods := d.running(t, 3)
	for _, egress := range []side{deny, allow, byHTTP} {
		d.policy(t, "egress", egress.policyOf("egress", "client", "egress", "toEndpoints", "server"))
		for _, ingress := range []side{deny, allow, byHTTP} {
			d.policy(t, "ingress", ingress.policyOf("ingress", "server", "ingress", "fromEndpoints", "client"))
			for _, server := range []string{"near", "far"} {
				t.Run(fmt.Sprintf("%v egress, %v ingress, %s", egress, ingress, server), func(t *testing.T) {
					var urls []string
					for _, p := range pods {
						if p.Name != server {
							continue
						}
						for _, ip := range p.Status.PodIPs {
							urls = append(urls, "http://"+netip.AddrPortFrom(netip.MustParseAddr(ip.IP), 80).String())
						}
					}
					urls = append(urls, "http://"+server)
					asks := map[string]answer{}
					for _, url := range urls {
						for _, path := range []string{"/public", "/private"} {
							asks[url+path] = expected(egress, ingress, path)
						}
					}
					d.wantAll(t, "client", asks)
				})
			}
		}
	}
}

// expected is what both sides together let through.
func expected(egress, ingress side, path string) answer {
	switch {
	case egress == deny || ingress == deny:
		return timedOut()
	case path == "/private" && (egress == byHTTP || ingress == byHTTP):
		return denied()
	}
	return served(path)
}
