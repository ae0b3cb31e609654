package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a veth.
type End struct {
	Space *Space
	Name  string
}

// Pair makes a veth between two spaces. Both ends are down.
func Pair(a, b End, mtu int) error {
	bns, err := b.Space.Open()
	if err != nil {
		return err
	}
	defer bns.Close()
	h, err := a.Space.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	link := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: a.Name, MTU: mtu},
		PeerName:      b.Name,
		PeerNamespace: netlink.NsFd(bns.Fd()),
		PeerMTU:       uint32(mtu),
	}
	if err := h.LinkAdd(link); err != nil {
		return fmt.Errorf("add the veth %s–%s: %w", a.Name, b.Name, err)
	}
	return nil
}

// Bridge makes a bridge in the space, up.
func (s *Space) Bridge(name string) error {
	h, err := s.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := h.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add the bridge %s: %w", name, err)
	}
	return s.Up(name)
}

// Enslave makes link a port of bridge.
func (s *Space) Enslave(link, bridge string) error {
	h, err := s.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find %s: %w", link, err)
	}
	b, err := h.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find %s: %w", bridge, err)
	}
	if err := h.LinkSetMaster(l, b); err != nil {
		return fmt.Errorf("make %s a port of %s: %w", link, bridge, err)
	}
	return nil
}

// Up brings links up.
func (s *Space) Up(names ...string) error {
	h, err := s.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, name := range names {
		l, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if err := h.LinkSetUp(l); err != nil {
			return fmt.Errorf("bring %s up: %w", name, err)
		}
	}
	return nil
}

// Address gives the link addresses. IPv6 addresses are usable at once.
func (s *Space) Address(link string, addrs ...netip.Prefix) error {
	h, err := s.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find %s: %w", link, err)
	}
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("give %s the address %s: %w", link, a, err)
		}
	}
	return nil
}

// MAC is the link's hardware address.
func (s *Space) MAC(link string) (net.HardwareAddr, error) {
	h, err := s.Netlink()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	l, err := h.LinkByName(link)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", link, err)
	}
	return l.Attrs().HardwareAddr, nil
}

// Remove deletes the link. One that is not there is no error.
func (s *Space) Remove(link string) error {
	h, err := s.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(link)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", link, err)
	}
	if err := h.LinkDel(l); err != nil {
		return fmt.Errorf("delete %s: %w", link, err)
	}
	return nil
}

// Route is one route of a space. An invalid Via means that To is on the link.
type Route struct {
	To   netip.Prefix
	Via  netip.Addr
	Link string
}

// Routes adds routes; the links must be up.
func (s *Space) Routes(routes ...Route) error {
	h, err := s.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, r := range routes {
		l, err := h.LinkByName(r.Link)
		if err != nil {
			return fmt.Errorf("find %s: %w", r.Link, err)
		}
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(r.To)}
		if r.Via.IsValid() {
			route.Gw = r.Via.AsSlice()
		} else {
			route.Scope = netlink.SCOPE_LINK
		}
		if err := h.RouteReplace(route); err != nil {
			return fmt.Errorf("add the route to %s by %s: %w", r.To, r.Link, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
