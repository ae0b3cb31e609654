package proxynet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Names of the namespaces, and of the node's ends of their veths.
const (
	inName  = "weir-in"
	outName = "weir-out"
	inside  = "eth0" // the other end
)

// arrivalTable is the routing table, inside, that takes every packet from the
// veth for the namespace's own.
const arrivalTable = 100

// A space is one of the two namespaces.
type space struct {
	name      string
	file      *os.File // the namespace
	ifindex   uint32   // of the node's end
	inIfindex int      // of eth0 inside
	nsid      int32
	listeners []*net.TCPListener // IPv4, IPv6
}

// openSpace makes or adopts a namespace and its link.
func openSpace(dir, name string, mtu int) (*space, error) {
	path := filepath.Join(dir, name)
	file, err := openNamespace(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	s := &space{name: name, file: file}
	if err := s.setUp(mtu); err != nil {
		return nil, errors.Join(fmt.Errorf("network namespace %s: %w", path, err), file.Close())
	}
	return s, nil
}

func (s *space) setUp(mtu int) error {
	if err := s.join(mtu); err != nil {
		return err
	}
	if err := s.do(s.configure); err != nil {
		return err
	}
	return s.number()
}

func (s *space) close() error {
	var errs []error
	for _, ln := range s.listeners {
		errs = append(errs, ln.Close())
	}
	return errors.Join(append(errs, s.file.Close())...)
}

// openNamespace opens the network namespace mounted at path; it makes one if
// there is none.
func openNamespace(path string) (*os.File, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err == nil && st.Type == unix.NSFS_MAGIC {
		return os.Open(path)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o400)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	err = elsewhere(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error {
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

// elsewhere calls f after enter has brought the thread into another network
// namespace, and comes back. If it cannot the goroutine stays on its thread, so
// that no other gets it, and the error must end the process.
func elsewhere(enter, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	err = enter()
	if err != nil {
		err = fmt.Errorf("enter network namespace: %w", err)
	} else {
		err = f()
	}
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("come back from a network namespace: %w", back), home.Close())
	}
	runtime.UnlockOSThread()
	return errors.Join(err, home.Close())
}

// do calls f inside of the namespace.
func (s *space) do(f func() error) error {
	return elsewhere(func() error { return unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET) }, f)
}

// mac is that of both ends: inside, no address is ever resolved.
func (s *space) mac() net.HardwareAddr {
	last := byte(1)
	if s.name == outName {
		last = 2
	}
	return net.HardwareAddr{0x02, 'w', 'e', 'i', 'r', last}
}

// join makes the veth, unless it is there and leads into this namespace.
func (s *space) join(mtu int) error {
	if l, err := netlink.LinkByName(s.name); err == nil {
		if _, err := s.insideLink(); err == nil {
			s.ifindex = uint32(l.Attrs().Index)
			return netlink.LinkSetMTU(l, mtu)
		}
		if err := netlink.LinkDel(l); err != nil {
			return fmt.Errorf("delete stale link %s: %w", s.name, err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = s.name, mtu, s.mac()
	err := netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: inside, PeerHardwareAddr: s.mac(), PeerNamespace: netlink.NsFd(int(s.file.Fd())),
		PeerMTU: uint32(mtu),
	})
	if err != nil {
		return fmt.Errorf("make link %s: %w", s.name, err)
	}
	l, err := netlink.LinkByName(s.name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", s.name, err)
	}
	s.ifindex = uint32(l.Attrs().Index)
	// The node's stack has nothing to say on this link.
	if err := writeSysctls(map[string]string{
		"net/ipv4/conf/" + s.name + "/rp_filter":    "0",
		"net/ipv6/conf/" + s.name + "/disable_ipv6": "1",
	}); err != nil {
		return err
	}
	if err := netlink.LinkSetARPOff(l); err != nil {
		return fmt.Errorf("set up link %s: %w", s.name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set up link %s: %w", s.name, err)
	}
	return nil
}

// insideLink finds the other end of the veth.
func (s *space) insideLink() (netlink.Link, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(int(s.file.Fd())))
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return h.LinkByName(inside)
}

// number finds the number by which the node's namespace knows this one.
func (s *space) number() error {
	id, err := netlink.GetNetNsIdByFd(int(s.file.Fd()))
	if err == nil && id < 0 {
		if err := netlink.SetNetNsIdByFd(int(s.file.Fd()), -1); err != nil {
			return fmt.Errorf("number: %w", err)
		}
		id, err = netlink.GetNetNsIdByFd(int(s.file.Fd()))
	}
	if err != nil {
		return fmt.Errorf("number: %w", err)
	}
	if id < 0 {
		return errors.New("number: the kernel gives none")
	}
	s.nsid = int32(id)
	return nil
}

// configure sets the namespace up from inside.
func (s *space) configure() error {
	conf := map[string]string{
		"net/ipv4/ip_unprivileged_port_start": "0", // a client may have any port, and so its transparent socket
		"net/ipv4/ip_local_port_range":        "1024 65535",
		"net/ipv4/tcp_tw_reuse":               "1",
		"net/ipv4/tcp_max_tw_buckets":         "0", // a client may use its port again at once
	}
	for _, i := range []string{"all", "default", inside} {
		conf["net/ipv4/conf/"+i+"/rp_filter"] = "0"
		conf["net/ipv4/conf/"+i+"/accept_local"] = "1"
		conf["net/ipv6/conf/"+i+"/accept_dad"] = "0"
		conf["net/ipv6/conf/"+i+"/accept_ra"] = "0"
		conf["net/ipv6/conf/"+i+"/addr_gen_mode"] = "1" // no link-local address, so nothing is said unasked
	}
	if err := writeSysctls(conf); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	eth, err := netlink.LinkByName(inside)
	if err != nil {
		return fmt.Errorf("find %s: %w", inside, err)
	}
	s.inIfindex = eth.Attrs().Index
	if err := errors.Join(netlink.LinkSetARPOff(eth), netlink.LinkSetUp(lo), netlink.LinkSetUp(eth)); err != nil {
		return fmt.Errorf("set up links: %w", err)
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		if err := route(family, lo.Attrs().Index, s.inIfindex); err != nil {
			return err
		}
	}
	return nil
}

// route sends everything out by eth0, and takes everything that comes from it.
func route(family, lo, eth int) error {
	everything := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	scope := netlink.SCOPE_LINK
	if family == unix.AF_INET6 {
		everything = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		scope = netlink.SCOPE_UNIVERSE
	}
	for _, r := range []*netlink.Route{
		{Family: family, LinkIndex: eth, Dst: everything, Scope: scope},
		{Family: family, LinkIndex: lo, Dst: everything, Table: arrivalTable, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST},
	} {
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("add route %v: %w", r, err)
		}
	}
	rule := netlink.NewRule()
	rule.Family, rule.IifName, rule.Table, rule.Priority = family, inside, arrivalTable, arrivalTable
	if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add rule: %w", err)
	}
	return nil
}

func writeSysctls(values map[string]string) error {
	for name, v := range values {
		if err := os.WriteFile("/proc/sys/"+name, []byte(v), 0o644); err != nil {
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	return nil
}
