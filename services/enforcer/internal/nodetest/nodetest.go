// Package nodetest gives a test a node of its own: a network namespace with a
// BPF file system that nothing else sees, and pods joined to it by veths, as a
// CNI leaves them. All of it goes when the test's goroutine ends. For tests only.
package nodetest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Gateways of all pods; neighbours are fixed, so neither ARP nor ND is needed.
var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

// Node is a node of a test.
type Node struct {
	BPFFS string
	n     int
}

// Pod is a pod of a Node.
type Pod struct {
	Ifindex uint32 // of the host's end of its veth
	Host    string // that interface's name
	HostMAC [6]byte
	PodMAC  [6]byte
	Addrs   []netip.Addr
	ns      netns.NsHandle
}

// New moves the test's goroutine into the namespaces of a new node. The thread
// is never given back, so the namespaces end with the test.
func New(t *testing.T) *Node {
	t.Helper()
	runtime.LockOSThread()
	must(t, "unshare", unix.Unshare(unix.CLONE_NEWNET|unix.CLONE_NEWNS))
	must(t, "make mounts private", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	dir := t.TempDir()
	must(t, "mount bpffs", unix.Mount("bpf", dir, "bpf", 0, "mode=0700"))
	t.Cleanup(func() { must(t, "unmount bpffs", unix.Unmount(dir, unix.MNT_DETACH)) })
	must(t, "mount sysfs", unix.Mount("sysfs", "/sys", "sysfs", 0, ""))
	up(t, "lo")
	sysctl(t, "net/ipv4/ip_forward", "1")
	sysctl(t, "net/ipv4/conf/all/rp_filter", "0")
	sysctl(t, "net/ipv6/conf/all/forwarding", "1")
	return &Node{BPFFS: dir}
}

// Pod adds a pod with these addresses.
func (n *Node) Pod(t *testing.T, addrs ...string) *Pod {
	t.Helper()
	n.n++
	p := &Pod{Host: fmt.Sprintf("host%d", n.n), ns: newNetNS(t)}
	t.Cleanup(func() { must(t, "close namespace", p.ns.Close()) })
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: p.Host}, PeerName: "eth0", PeerNamespace: netlink.NsFd(p.ns)}
	must(t, "add veth", netlink.LinkAdd(veth))
	host := up(t, p.Host)
	p.Ifindex, p.HostMAC = uint32(host.Attrs().Index), [6]byte(host.Attrs().HardwareAddr)
	for _, a := range addrs {
		p.Addrs = append(p.Addrs, netip.MustParseAddr(a))
	}
	h, err := netlink.NewHandleAt(p.ns)
	must(t, "open netlink in the pod", err)
	defer h.Close()
	lo, err := h.LinkByName("lo")
	must(t, "find lo", err)
	must(t, "set lo up", h.LinkSetUp(lo))
	eth0, err := h.LinkByName("eth0")
	must(t, "find eth0", err)
	p.PodMAC = [6]byte(eth0.Attrs().HardwareAddr)
	must(t, "set eth0 up", h.LinkSetUp(eth0))
	for _, a := range p.Addrs {
		p.join(t, h, eth0, host, a)
	}
	return p
}

// join gives the pod an address and both ends their routes.
func (p *Pod) join(t *testing.T, h *netlink.Handle, eth0, host netlink.Link, a netip.Addr) {
	t.Helper()
	gateway := gateway4
	if a.Is6() {
		gateway = gateway6
	}
	must(t, "add address", h.AddrAdd(eth0, &netlink.Addr{IPNet: full(a), Flags: unix.IFA_F_NODAD}))
	must(t, "add route to the gateway", h.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: full(gateway), Scope: netlink.SCOPE_LINK}))
	must(t, "add default route", h.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gateway.AsSlice(), Dst: everything(a)}))
	must(t, "add gateway's neighbour", h.NeighSet(permanent(eth0, gateway, p.HostMAC)))
	must(t, "add route to the pod", netlink.RouteReplace(&netlink.Route{LinkIndex: host.Attrs().Index, Dst: full(a), Scope: netlink.SCOPE_LINK}))
	must(t, "add pod's neighbour", netlink.NeighSet(permanent(host, a, p.PodMAC)))
}

// Do runs f in the pod's network namespace. Sockets made there stay there.
func (p *Pod) Do(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never back: the thread ends
		err := netns.Set(p.ns)
		if err == nil {
			f()
		}
		done <- err
	}()
	must(t, "enter the pod", <-done)
}

// NetNS is the pod's network namespace, a file that the pod owns.
func (p *Pod) NetNS() int { return int(p.ns) }

// Remove takes the pod's interface away.
func (p *Pod) Remove(t *testing.T) {
	t.Helper()
	l, err := netlink.LinkByName(p.Host)
	must(t, "find "+p.Host, err)
	must(t, "delete "+p.Host, netlink.LinkDel(l))
}

func newNetNS(t *testing.T) netns.NsHandle {
	t.Helper()
	type result struct {
		ns  netns.NsHandle
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{netns.None(), err}
			return
		}
		ns, err := netns.Get()
		made <- result{ns, err}
	}()
	r := <-made
	must(t, "make a network namespace", r.err)
	return r.ns
}

func up(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, "find "+name, err)
	must(t, "set "+name+" up", netlink.LinkSetUp(l))
	return l
}

func full(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func everything(a netip.Addr) *net.IPNet {
	if a.Is4() {
		return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

func permanent(l netlink.Link, a netip.Addr, mac [6]byte) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: l.Attrs().Index, IP: a.AsSlice(), HardwareAddr: mac[:], State: netlink.NUD_PERMANENT}
}

func sysctl(t *testing.T, name, value string) {
	t.Helper()
	must(t, "set "+name, os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644))
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}
