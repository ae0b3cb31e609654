package node

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"

	"weir.dev/weir/internal/logkey"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
)

// nodeAddrs are the node's own addresses, and all that it hears.
func nodeAddrs() (own, heard []netip.Addr, err error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, fmt.Errorf("list the addresses of this node: %w", err)
	}
	own = ownAddrs(list)
	return own, heardBy(own, list), nil
}

// ownAddrs are all addresses that interfaces of this node have, sorted: bridges
// and overlay devices speak to pods too. Without loopback, and without IPv6's
// link-local ones, which each veth has and which name no node.
func ownAddrs(list []netlink.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		addr, ok := netip.AddrFromSlice(a.IP)
		if addr = addr.Unmap(); !ok || addr.IsLoopback() || addr.Is6() && addr.IsLinkLocalUnicast() {
			continue
		}
		out = append(out, addr)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// heardBy adds to own what the node listens to as well: the broadcast addresses
// of its links, also from a pod behind another link, and that of every link.
func heardBy(own []netip.Addr, list []netlink.Addr) []netip.Addr {
	out := append(slices.Clone(own), netip.AddrFrom4([4]byte{255, 255, 255, 255}))
	for _, a := range list {
		ip := a.IP.To4()
		if ip == nil || ip.IsLoopback() {
			continue
		}
		if b, ok := netip.AddrFromSlice(a.Broadcast.To4()); ok && !b.IsUnspecified() {
			out = append(out, b)
		}
		if ones, bits := a.Mask.Size(); bits == 32 && ones < 31 { // the kernel makes it unasked
			var b [4]byte
			for i := range b {
				b[i] = ip[i] | ^a.Mask[i]
			}
			out = append(out, netip.AddrFrom4(b))
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// registrar keeps weir-identity told of the node's own addresses.
type registrar struct {
	identities identityv1.IdentityServiceClient
	known      func(a netip.Addr, podUID string) bool // by the address stream
	changed    func([]netip.Addr)
	log        *slog.Logger
	refused    []netip.Addr // by identity, when it was last asked
}

const (
	// addrsEvery is how often addresses are compared in case a notice was lost, or
	// the stream that had them.
	addrsEvery = 5 * time.Second
	// registerAgain is the pause after an attempt that weir-identity did not take.
	registerAgain = time.Second
	registerTime  = 5 * time.Second
)

// run follows the node's addresses until ctx ends.
func (r *registrar) run(ctx context.Context) error {
	updates, err := subscribeAddrs(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTimer(0)
	defer tick.Stop()
	var registered []netip.Addr
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-updates:
			if !ok { // too many came at once; ask anew, and compare all
				if updates, err = subscribeAddrs(ctx); err != nil && ctx.Err() == nil {
					return err
				}
			}
		case <-tick.C:
		}
		addrs, heard, err := nodeAddrs()
		if err != nil {
			return err
		}
		r.changed(heard)
		next := addrsEvery
		lost := slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.IsGlobalUnicast() && !r.known(a, "") })
		if lost || !slices.Equal(addrs, registered) {
			if err := r.register(ctx, addrs); err != nil {
				r.log.Warn("node addresses not registered yet", logkey.Error, err)
				next = registerAgain
			} else {
				registered = addrs
			}
		}
		tick.Reset(next)
	}
}

func subscribeAddrs(ctx context.Context) (<-chan netlink.AddrUpdate, error) {
	updates := make(chan netlink.AddrUpdate, 64)
	if err := netlink.AddrSubscribe(updates, ctx.Done()); err != nil {
		return nil, fmt.Errorf("follow the addresses of this node: %w", err)
	}
	return updates, nil
}

// register tells the addresses that other nodes can see.
func (r *registrar) register(ctx context.Context, addrs []netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, registerTime)
	defer cancel()
	req := &identityv1.RegisterNodeRequest{}
	for _, a := range addrs {
		if a.IsGlobalUnicast() {
			req.Addresses = append(req.Addresses, a.AsSlice())
		}
	}
	resp, err := r.identities.RegisterNode(ctx, req, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	var refused []netip.Addr
	for _, b := range resp.GetRefused() {
		a, _ := netip.AddrFromSlice(b)
		refused = append(refused, a.Unmap())
	}
	if !slices.Equal(refused, r.refused) {
		r.refused = refused
		r.log.Info("addresses that the Node object does not vouch for are not told to other nodes", logkey.Address, refused)
	}
	return nil
}
