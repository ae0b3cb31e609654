package tests

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir.dev/weir/bpf/datapath"
)

var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

// node is a namespace that routes between pods, with the programs attached and
// the proxy's two namespaces.
type node struct {
	*kernel
	*namespace
	in, out *namespace
}

// pod is a namespace behind a veth.
type pod struct {
	*namespace
	host    string // the node's end
	ifindex uint32
	v4, v6  netip.Addr
	mac     net.HardwareAddr
	hostMAC net.HardwareAddr
}

func newNode(t testing.TB) *node {
	t.Helper()
	n := &node{kernel: load(t, small), namespace: newNamespace(t)}
	n.sysctl(t, "ipv4/ip_forward", "1")
	n.sysctl(t, "ipv6/conf/all/forwarding", "1")
	n.in = n.proxyNamespace(t, "weir-in", datapath.FromProxyIn, datapath.SteerIn)
	n.out = n.proxyNamespace(t, "weir-out", datapath.FromProxyOut, datapath.SteerOut)
	n.put(datapath.MapConfig, uint32(0), datapath.WeirConfig{
		InIfindex:  uint32(n.link(t, "weir-in").Attrs().Index),
		OutIfindex: uint32(n.link(t, "weir-out").Attrs().Index),
		InNsid:     n.nsid(t, n.in), OutNsid: n.nsid(t, n.out),
	})
	return n
}

// nsid is the number by which the node knows another namespace.
func (n *node) nsid(t testing.TB, of *namespace) int32 {
	t.Helper()
	id, err := n.nl.GetNetNsIdByFd(int(of.fd))
	if err == nil && id < 0 {
		if err = n.nl.SetNetNsIdByFd(int(of.fd), -1); err == nil {
			id, err = n.nl.GetNetNsIdByFd(int(of.fd))
		}
	}
	if err != nil || id < 0 {
		t.Fatalf("number the namespace: %d, %v", id, err)
	}
	return int32(id)
}

func (n *node) attach(t testing.TB, ns *namespace, ifname, program string, at ebpf.AttachType) {
	t.Helper()
	index := ns.link(t, ifname).Attrs().Index
	err := ns.do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: n.Programs[program], Attach: at})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatalf("attach %s to %s: %v", program, ifname, err)
	}
}

// proxyNamespace makes weir-in or weir-out and joins it to the node.
func (n *node) proxyNamespace(t testing.TB, name, program, steer string) *namespace {
	t.Helper()
	ns := newNamespace(t)
	n.veth(t, name, ns, "eth0")
	for _, key := range []string{"all/rp_filter", "default/rp_filter", "eth0/rp_filter"} {
		ns.sysctl(t, "ipv4/conf/"+key, "0")
	}
	ns.sysctl(t, "ipv4/conf/eth0/accept_local", "1")
	ns.sysctl(t, "ipv4/ip_unprivileged_port_start", "0")
	if err := ns.nl.LinkSetARPOff(ns.link(t, "eth0")); err != nil {
		t.Fatal(err)
	}
	ns.up(t, "eth0")
	n.up(t, name)
	for _, a := range []netip.Addr{gateway4, gateway6} {
		ns.route(t, "eth0", anyNet(a), netip.Addr{})
		family := netlink.FAMILY_V4
		if a.Is6() {
			family = netlink.FAMILY_V6
		}
		rule := netlink.NewRule()
		rule.IifName, rule.Table, rule.Family = "eth0", 100, family
		if err := ns.nl.RuleAdd(rule); err != nil {
			t.Fatal(err)
		}
		local := &netlink.Route{
			LinkIndex: ns.link(t, "lo").Attrs().Index, Dst: anyNet(a), Table: 100,
			Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
		}
		if err := ns.nl.RouteAdd(local); err != nil {
			t.Fatal(err)
		}
	}
	n.attach(t, n.namespace, name, program, ebpf.AttachTCXIngress)
	n.attach(t, ns, "eth0", datapath.ProxyArrival, ebpf.AttachTCXIngress)
	l, err := link.AttachNetNs(int(ns.fd), n.Programs[steer])
	if err != nil {
		t.Fatalf("attach %s: %v", steer, err)
	}
	t.Cleanup(func() { l.Close() })
	return ns
}

// pod makes the pod number i, without an endpoint in the maps.
func (n *node) pod(t testing.TB, i int) *pod {
	t.Helper()
	p := &pod{
		namespace: newNamespace(t), host: fmt.Sprintf("pod%d", i),
		v4: netip.AddrFrom4([4]byte{10, 244, 1, byte(i)}),
		v6: netip.MustParseAddr(fmt.Sprintf("fd00:244:1::%x", i)),
	}
	n.veth(t, p.host, p.namespace, "eth0")
	n.up(t, p.host)
	p.up(t, "eth0")
	host := n.link(t, p.host).Attrs()
	p.ifindex, p.hostMAC = uint32(host.Index), host.HardwareAddr
	p.mac = p.link(t, "eth0").Attrs().HardwareAddr
	for _, a := range []struct{ own, gateway netip.Addr }{{p.v4, gateway4}, {p.v6, gateway6}} {
		p.address(t, "eth0", a.own)
		p.neighbour(t, "eth0", a.gateway, p.hostMAC)
		p.route(t, "eth0", anyNet(a.own), a.gateway)
		n.neighbour(t, p.host, a.own, p.mac)
		n.route(t, p.host, hostNet(a.own), netip.Addr{})
	}
	n.attach(t, n.namespace, p.host, datapath.FromPod, ebpf.AttachTCXIngress)
	n.attach(t, n.namespace, p.host, datapath.ToPod, ebpf.AttachTCXEgress)
	return p
}

// rows gives the pod's endpoint its rows; its peer number is the interface's
// index within the test's.
func (n *node) rows(p *pod, peer, egress, ingress uint32) {
	n.Helper()
	n.endpoint(endpoint{
		ifindex: p.ifindex, egress: egress, ingress: ingress,
		podMAC: [6]byte(p.mac), hostMAC: [6]byte(p.hostMAC), addrs: []netip.Addr{p.v4, p.v6},
	})
	n.peer(p.v4, peer, 0)
	n.peer(p.v6, peer, 0)
}

func (p *pod) addr(v6 bool) netip.Addr {
	if v6 {
		return p.v6
	}
	return p.v4
}

// control sets a socket option before bind.
func control(level, option int) func(string, string, syscall.RawConn) error {
	return func(network, _ string, c syscall.RawConn) error {
		var err error
		if network == "tcp6" && level == unix.SOL_IP {
			level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		}
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) })
		if cerr != nil {
			return cerr
		}
		return err
	}
}

func (ns *namespace) listen(t testing.TB, addr netip.AddrPort, transparent bool) *net.TCPListener {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // a SOCKMAP takes plain TCP only
	if transparent {
		lc.Control = control(unix.SOL_IP, unix.IP_TRANSPARENT)
	}
	network := "tcp4"
	if addr.Addr().Is6() {
		network = "tcp6"
	}
	var l net.Listener
	err := ns.do(func() (err error) {
		l, err = lc.Listen(context.Background(), network, addr.String())
		return err
	})
	if err != nil {
		t.Fatalf("listen on %s: %v", addr, err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// dial connects from an address of the namespace, or of anybody if transparent.
func (ns *namespace) dial(from, to netip.AddrPort, transparent bool, limit time.Duration) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: limit, LocalAddr: net.TCPAddrFromAddrPort(from)}
	d.Control = control(unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if transparent {
		d.Control = control(unix.SOL_IP, unix.IP_TRANSPARENT)
	}
	network := "tcp4"
	if to.Addr().Is6() {
		network = "tcp6"
	}
	var c net.Conn
	err := ns.do(func() (err error) {
		c, err = d.Dial(network, to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}
