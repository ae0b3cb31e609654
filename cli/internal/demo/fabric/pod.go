package fabric

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"weir.dev/weir/cli/internal/demo/layout"
	"weir.dev/weir/internal/netns"
)

// PodSpec says what a pod's namespaces look like.
type PodSpec struct {
	Node      layout.Node
	Hostname  string
	HostLink  string // the veth's end in the node; at most 15 letters
	Addresses []netip.Addr
	Hosts     string // the file that is /etc/hosts in the pod
	Resolv    string // and /etc/resolv.conf
}

// Pod is a pod's namespaces, with its link down until Up.
type Pod struct {
	*netns.Space
	spec PodSpec
	node *netns.Space
}

// NewPod makes a pod's namespaces and its veth, both ends down, with addresses
// on the pod's end.
func (f *Fabric) NewPod(ctx context.Context, spec PodSpec) (*Pod, error) {
	node := f.nodes[spec.Node.Name]
	if node == nil {
		return nil, fmt.Errorf("node %q is not one of the demo's", spec.Node.Name)
	}
	space, err := netns.Start(ctx, f.exe, f.env, netns.Setup{
		Hostname: spec.Hostname, Mount: true, Sysfs: true, Sysctls: quiet(),
		Binds: map[string]string{"/etc/hosts": spec.Hosts, "/etc/resolv.conf": spec.Resolv},
	})
	if err != nil {
		return nil, fmt.Errorf("make the pod's namespaces: %w", err)
	}
	p := &Pod{Space: space, spec: spec, node: node}
	if err := p.link(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Pod) link() error {
	if err := netns.Pair(netns.End{Space: p.Space, Name: layout.PodLink}, netns.End{Space: p.node, Name: p.spec.HostLink}, layout.MTU); err != nil {
		return err
	}
	for _, a := range p.spec.Addresses {
		if err := p.Address(layout.PodLink, host(a)); err != nil {
			return err
		}
	}
	for _, gw := range p.spec.Node.Gateways() {
		if err := p.node.Address(p.spec.HostLink, host(gw)); err != nil {
			return err
		}
	}
	return p.Space.Up("lo")
}

// Up brings the pod's link up, with its routes on both sides.
func (p *Pod) Up() error {
	if err := p.node.Up(p.spec.HostLink); err != nil {
		return err
	}
	if err := p.Space.Up(layout.PodLink); err != nil {
		return err
	}
	for _, gw := range p.spec.Node.Gateways() {
		any := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if gw.Is4() {
			any = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		if err := p.Routes(
			netns.Route{To: host(gw), Link: layout.PodLink},
			netns.Route{To: any, Via: gw, Link: layout.PodLink},
		); err != nil {
			return err
		}
	}
	for _, a := range p.spec.Addresses {
		if err := p.node.Routes(netns.Route{To: host(a), Link: p.spec.HostLink}); err != nil {
			return err
		}
	}
	return nil
}

// MACs are the hardware addresses of the veth's ends in the node and the pod.
func (p *Pod) MACs() (node, pod net.HardwareAddr, err error) {
	if node, err = p.node.MAC(p.spec.HostLink); err != nil {
		return nil, nil, err
	}
	pod, err = p.MAC(layout.PodLink)
	return node, pod, err
}

// Close removes the pod's link and ends its namespaces.
func (p *Pod) Close() error {
	return errors.Join(p.node.Remove(p.spec.HostLink), p.Space.Close())
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
