package tests

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// namespace is an unnamed network namespace of this test.
type namespace struct {
	fd netns.NsHandle
	nl *netlink.Handle
}

// newNamespace makes a network namespace with lo up.
func newNamespace(t testing.TB) *namespace {
	t.Helper()
	var ns namespace
	err := onThread(func() error {
		fd, err := netns.New()
		ns.fd = fd
		return err
	})
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { ns.fd.Close() })
	ns.nl, err = netlink.NewHandleAt(ns.fd)
	if err != nil {
		t.Fatalf("open netlink: %v", err)
	}
	t.Cleanup(ns.nl.Close)
	ns.up(t, "lo")
	return &ns
}

// onThread runs f on a thread that ends with it, so that no namespace leaks.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// do runs f inside the namespace. Sockets made there stay there.
func (ns *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns.fd); err != nil {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		return f()
	})
}

func (ns *namespace) sysctl(t testing.TB, key, value string) {
	t.Helper()
	err := ns.do(func() error { return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0) })
	if err != nil {
		t.Fatalf("set %s: %v", key, err)
	}
}

func (ns *namespace) link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := ns.nl.LinkByName(name)
	if err != nil {
		t.Fatalf("find link %s: %v", name, err)
	}
	return l
}

func (ns *namespace) up(t testing.TB, name string) {
	t.Helper()
	if err := ns.nl.LinkSetUp(ns.link(t, name)); err != nil {
		t.Fatalf("set %s up: %v", name, err)
	}
}

// veth joins name in ns with peerName in peer. Both are down.
func (ns *namespace) veth(t testing.TB, name string, peer *namespace, peerName string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: peerName, PeerNamespace: netlink.NsFd(peer.fd)}
	if err := ns.nl.LinkAdd(v); err != nil {
		t.Fatalf("make veth %s: %v", name, err)
	}
}

func (ns *namespace) address(t testing.TB, name string, addr netip.Addr) {
	t.Helper()
	a := &netlink.Addr{IPNet: hostNet(addr), Flags: 0x02 /* IFA_F_NODAD */}
	if err := ns.nl.AddrAdd(ns.link(t, name), a); err != nil {
		t.Fatalf("add address %s to %s: %v", addr, name, err)
	}
}

func (ns *namespace) route(t testing.TB, name string, dst *net.IPNet, gateway netip.Addr) {
	t.Helper()
	r := &netlink.Route{LinkIndex: ns.link(t, name).Attrs().Index, Dst: dst}
	if gateway.IsValid() {
		r.Gw = gateway.AsSlice()
		r.Flags = int(netlink.FLAG_ONLINK)
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := ns.nl.RouteAdd(r); err != nil {
		t.Fatalf("add route %v by %s: %v", dst, name, err)
	}
}

func (ns *namespace) neighbour(t testing.TB, name string, addr netip.Addr, mac net.HardwareAddr) {
	t.Helper()
	n := &netlink.Neigh{
		LinkIndex: ns.link(t, name).Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: addr.AsSlice(), HardwareAddr: mac,
	}
	if err := ns.nl.NeighSet(n); err != nil {
		t.Fatalf("add neighbour %s to %s: %v", addr, name, err)
	}
}

func hostNet(addr netip.Addr) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
}

func anyNet(addr netip.Addr) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, addr.BitLen()/8), Mask: net.CIDRMask(0, addr.BitLen())}
}
