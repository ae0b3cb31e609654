// Package layout is the plan of a demo: its nodes, their addresses, the parts
// and the flags each part is started with. It is pure: it knows paths and
// numbers and touches none of them.
package layout

import (
	"fmt"
	"net/netip"
	"path/filepath"

	"weir.dev/weir/cli/internal/parts"
)

// Nodes is how many nodes a demo has.
const Nodes = 3

// Names of links inside of the demo's namespaces.
const (
	Bridge   = "fabric" // in the fabric's namespace
	Uplink   = "eth0"   // to the fabric, in nodes and the control plane
	PodLink  = "eth0"   // inside of a pod
	MTU      = 1500
	BPFFS    = "/sys/fs/bpf"
	Cluster  = "demo"
	natsPort = 4222
)

// Ranges of the demo's addresses. The demo's namespaces have no way out, so two
// demos use the same ones.
var (
	fabricV4  = netip.MustParsePrefix("10.200.0.0/24")
	fabricV6  = netip.MustParsePrefix("fd00:200::/64")
	podsV4    = netip.MustParsePrefix("10.244.0.0/16")
	podsV6    = netip.MustParsePrefix("fd00:244::/32")
	serviceV4 = netip.MustParsePrefix("10.96.0.0/16")
	serviceV6 = netip.MustParsePrefix("fd00:96::/112")
	controlV4 = netip.MustParseAddr("10.200.0.100")
	controlV6 = netip.MustParseAddr("fd00:200::100")
)

// ServiceRanges are where cluster addresses of Services are taken from.
func ServiceRanges() (v4, v6 netip.Prefix) { return serviceV4, serviceV6 }

// PodRanges are where the pods of all nodes are.
func PodRanges() (v4, v6 netip.Prefix) { return podsV4, podsV6 }

// Control is the control plane's addresses on the fabric, with its length.
func Control() []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(controlV4, fabricV4.Bits()),
		netip.PrefixFrom(controlV6, fabricV6.Bits()),
	}
}

// Node is one node of the demo.
type Node struct {
	Name  string
	Index int // from 1
}

// AllNodes lists the demo's nodes.
func AllNodes() []Node {
	var out []Node
	for i := 1; i <= Nodes; i++ {
		out = append(out, Node{Name: fmt.Sprintf("n%d", i), Index: i})
	}
	return out
}

// Addresses are the node's own on the fabric, with their length: IPv4, IPv6.
func (n Node) Addresses() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.200.0.%d/24", n.Index)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:200::%x/64", n.Index)),
	}
}

// PodRanges are the ranges of the node's pods: IPv4, IPv6.
func (n Node) PodRanges() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", n.Index)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:244:%x::/64", n.Index)),
	}
}

// Gateways are what the node's pods send to: the same address on every pod's
// link in the node.
func (n Node) Gateways() []netip.Addr {
	return []netip.Addr{
		netip.MustParseAddr(fmt.Sprintf("10.244.%d.1", n.Index)),
		netip.MustParseAddr(fmt.Sprintf("fd00:244:%x::1", n.Index)),
	}
}

// Pod is the pair of addresses of the node's pod number i, from 2 to 254.
func (n Node) Pod(i int) []netip.Addr {
	return []netip.Addr{
		netip.MustParseAddr(fmt.Sprintf("10.244.%d.%d", n.Index, i)),
		netip.MustParseAddr(fmt.Sprintf("fd00:244:%x::%x", n.Index, i)),
	}
}

// Part is one process of Weir in the demo.
type Part struct {
	Name   string // identity-0
	Binary string // weir-identity, in the folder of binaries
	Args   []string
	Node   string // where it runs; empty: in the control plane's namespace
	Role   string // of its certificate; empty: it has none
	// CertName is the name in the certificate.
	CertName string
	// After lists parts that must be ready before this one is started.
	After []string
}

// AllParts lists the parts in the order in which they are started.
func AllParts(d parts.Demo) []Part {
	nats := fmt.Sprintf("tls://%s", netip.AddrPortFrom(controlV4, natsPort))
	out := []Part{{
		Name: "nats", Binary: "weir", Role: "nats", CertName: "nats",
		Args: []string{
			"demo", "nats", "--listen", netip.AddrPortFrom(controlV4, natsPort).String(),
			"--store", filepath.Join(d.Dir, "nats"), "--tls-dir", d.PKI("nats"), "--http", d.HTTPSocket("nats"),
		},
	}}
	var identities, policies string
	for i := range 2 {
		name, listen := fmt.Sprintf("identity-%d", i), fmt.Sprintf("%s:%d", controlV4, 7001+i)
		identities = join(identities, listen)
		out = append(out, Part{
			Name: name, Binary: "weir-identity", Role: "identity", CertName: name, After: []string{"nats"},
			Args: append([]string{
				"--name", name, "--listen", listen, "--nats", nats, "--cluster", Cluster,
				"--manifests", d.Cluster(),
			}, service(d, name)...),
		})
	}
	for i := range 2 {
		name, listen := fmt.Sprintf("policy-%d", i), fmt.Sprintf("%s:%d", controlV4, 7011+i)
		policies = join(policies, listen)
		out = append(out, Part{
			Name: name, Binary: "weir-policy", Role: "policy", CertName: name, After: []string{"nats"},
			Args: append([]string{
				"--name", name, "--listen", listen, "--nats", nats, "--cluster", Cluster,
				"--manifests", d.Manifests(),
			}, service(d, name)...),
		})
	}
	for _, n := range AllNodes() {
		out = append(out, nodeParts(d, n, nats, identities, policies)...)
	}
	return out
}

func nodeParts(d parts.Demo, n Node, nats, identities, policies string) []Part {
	enforcer, proxy := "enforcer-"+n.Name, "l7proxy-"+n.Name
	return []Part{{
		Name: enforcer, Binary: "weir-enforcer", Node: n.Name, Role: "node", CertName: n.Name,
		Args: append([]string{
			"--node", n.Name, "--nats", nats, "--identity", identities, "--policy", policies,
			"--cluster-cidr", podsV4.String(), "--cluster-cidr", podsV6.String(),
			"--bpffs", BPFFS, "--run-dir", d.Run(n.Name), "--proxy-socket", d.Socket(proxy),
		}, service(d, enforcer)...),
	}, {
		Name: proxy, Binary: "weir-l7proxy", Node: n.Name,
		Args: []string{
			"--node", n.Name, "--run-dir", d.Run(n.Name),
			"--socket", d.Socket(proxy), "--http", d.HTTPSocket(proxy),
		},
	}}
}

func service(d parts.Demo, name string) []string {
	return []string{"--tls-dir", d.PKI(name), "--socket", d.Socket(name), "--http", d.HTTPSocket(name)}
}

func join(list, item string) string {
	if list == "" {
		return item
	}
	return list + "," + item
}
