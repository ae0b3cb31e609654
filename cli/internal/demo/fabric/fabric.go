// Package fabric builds a demo's network: a bridge, the control plane, the
// nodes and the pods, each in namespaces of its own. It decides nothing: names
// and addresses come from layout.
package fabric

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"weir.dev/weir/cli/internal/demo/layout"
	"weir.dev/weir/internal/netns"
)

// Fabric is the running network.
type Fabric struct {
	exe     string
	env     []string
	bridge  *netns.Space
	Control *netns.Space
	nodes   map[string]*netns.Space
}

// Build makes the bridge, the control plane and the nodes. exe is the program
// that holds namespaces (see netns), env its environment. What was made before
// an error is closed again.
func Build(ctx context.Context, exe string, env []string) (*Fabric, error) {
	f := &Fabric{exe: exe, env: env, nodes: map[string]*netns.Space{}}
	if err := f.build(ctx); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *Fabric) build(ctx context.Context) error {
	var err error
	if f.bridge, err = netns.Start(ctx, f.exe, f.env, netns.Setup{Sysctls: quiet()}); err != nil {
		return fmt.Errorf("make the fabric: %w", err)
	}
	if err := f.bridge.Bridge(layout.Bridge); err != nil {
		return fmt.Errorf("make the fabric: %w", err)
	}
	if f.Control, err = netns.Start(ctx, f.exe, f.env, netns.Setup{Sysctls: quiet()}); err != nil {
		return fmt.Errorf("make the control plane's namespace: %w", err)
	}
	if err := f.join(f.Control, "control", layout.Control()); err != nil {
		return fmt.Errorf("join the control plane to the fabric: %w", err)
	}
	for _, n := range layout.AllNodes() {
		if err := f.node(ctx, n); err != nil {
			return fmt.Errorf("make the node %s: %w", n.Name, err)
		}
	}
	return nil
}

func (f *Fabric) node(ctx context.Context, n layout.Node) error {
	sysctls := quiet()
	sysctls["net.ipv4.ip_forward"] = "1"
	sysctls["net.ipv6.conf.all.forwarding"] = "1"
	space, err := netns.Start(ctx, f.exe, f.env, netns.Setup{
		Hostname: n.Name, Mount: true, BPFFS: layout.BPFFS, Sysctls: sysctls,
	})
	if err != nil {
		return err
	}
	f.nodes[n.Name] = space
	if err := f.join(space, n.Name, n.Addresses()); err != nil {
		return err
	}
	var routes []netns.Route
	for _, other := range layout.AllNodes() {
		if other.Index == n.Index {
			continue
		}
		for i, pods := range other.PodRanges() {
			routes = append(routes, netns.Route{To: pods, Via: other.Addresses()[i].Addr(), Link: layout.Uplink})
		}
	}
	return space.Routes(routes...)
}

// join gives the space an uplink to the bridge's port of that name.
func (f *Fabric) join(s *netns.Space, port string, addrs []netip.Prefix) error {
	if err := netns.Pair(netns.End{Space: s, Name: layout.Uplink}, netns.End{Space: f.bridge, Name: port}, layout.MTU); err != nil {
		return err
	}
	if err := f.bridge.Enslave(port, layout.Bridge); err != nil {
		return err
	}
	if err := f.bridge.Up(port); err != nil {
		return err
	}
	if err := s.Address(layout.Uplink, addrs...); err != nil {
		return err
	}
	return s.Up("lo", layout.Uplink)
}

// Node is the space of a node; nil if there is none of that name.
func (f *Fabric) Node(name string) *netns.Space { return f.nodes[name] }

// Close ends every namespace that Build made. Processes that still run in one
// keep it alive.
func (f *Fabric) Close() error {
	var errs []error
	for _, s := range f.nodes {
		errs = append(errs, s.Close())
	}
	for _, s := range []*netns.Space{f.Control, f.bridge} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}

// quiet lets IPv6 addresses be used at once and keeps routers and the machine's
// defaults out.
func quiet() map[string]string {
	out := map[string]string{}
	for _, which := range []string{"all", "default"} {
		out["net.ipv4.conf."+which+".rp_filter"] = "0"
		out["net.ipv6.conf."+which+".disable_ipv6"] = "0"
		out["net.ipv6.conf."+which+".accept_ra"] = "0"
		out["net.ipv6.conf."+which+".accept_dad"] = "0"
	}
	return out
}
