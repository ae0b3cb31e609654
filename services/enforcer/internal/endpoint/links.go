package endpoint

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// NodeLinks reads the interfaces of the namespace that the enforcer runs in.
type NodeLinks struct{}

// Veth is the index and MAC of a veth.
func (NodeLinks) Veth(name string) (uint32, [6]byte, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, [6]byte{}, fmt.Errorf("look up interface %s: %w", name, err)
	}
	if l.Type() != "veth" {
		return 0, [6]byte{}, fmt.Errorf("interface %s is a %s: Weir needs a CNI that gives each pod a veth", name, l.Type())
	}
	attrs := l.Attrs()
	if len(attrs.HardwareAddr) != 6 {
		return 0, [6]byte{}, fmt.Errorf("interface %s has no MAC of 6 bytes", name)
	}
	return uint32(attrs.Index), [6]byte(attrs.HardwareAddr), nil
}
