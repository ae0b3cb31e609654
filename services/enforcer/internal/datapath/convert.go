package datapath

import (
	"math/bits"
	"net/netip"

	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/services/enforcer/internal/plan"
)

func toAddr(a netip.Addr) bpf.WeirAddr { return bpf.WeirAddr{A: a.As16()} }

func fromAddr(a bpf.WeirAddr) netip.Addr { return netip.AddrFrom16(a.A).Unmap() }

// toPrefix makes IPv4 prefixes 96 bits longer: addresses are mapped.
func toPrefix(p netip.Prefix) bpf.WeirPrefixKey {
	length := p.Bits()
	if p.Addr().Is4() {
		length += 96
	}
	return bpf.WeirPrefixKey{PrefixLen: uint32(length), Addr: toAddr(p.Addr())}
}

func fromPrefix(k bpf.WeirPrefixKey) netip.Prefix {
	a := netip.AddrFrom16(k.Addr.A)
	if a.Is4In6() && k.PrefixLen >= 96 {
		return netip.PrefixFrom(a.Unmap(), int(k.PrefixLen)-96)
	}
	return netip.PrefixFrom(a, int(k.PrefixLen))
}

func toRef(r plan.PeerRef) bpf.WeirPeerRef {
	return bpf.WeirPeerRef{Peer: uint32(r.Peer), Flags: uint32(r.Flags)}
}

func fromRef(r bpf.WeirPeerRef) plan.PeerRef {
	return plan.PeerRef{Peer: plan.Peer(r.Peer), Flags: plan.Flags(r.Flags)}
}

func toCellKey(side uint8, k plan.CellKey) bpf.WeirCellKey {
	return bpf.WeirCellKey{Side: uint32(side), Row: uint32(k.Row), ClassId: uint32(k.Class)}
}

func toServiceKey(side uint8, k plan.ServiceKey) bpf.WeirServiceKey {
	return bpf.WeirServiceKey{Side: uint32(side), Addr: toAddr(k.Addr), Port: network(k.Port), Protocol: k.Protocol}
}

func fromServiceKey(k bpf.WeirServiceKey) plan.ServiceKey {
	return plan.ServiceKey{Addr: fromAddr(k.Addr), Port: network(k.Port), Protocol: k.Protocol}
}

// network turns a port from host into network byte order, or back.
func network(port uint16) uint16 {
	if littleEndian {
		return bits.ReverseBytes16(port)
	}
	return port
}

func toEndpoint(e plan.EndpointImage) bpf.WeirEndpoint {
	k := bpf.WeirEndpoint{Id: e.ID, PodMac: e.PodMAC, HostMac: e.HostMAC, N_addrs: uint32(len(e.Addrs))}
	for side, rows := range e.Rows {
		k.RowEgress[side], k.RowIngress[side] = uint32(rows.Egress), uint32(rows.Ingress)
	}
	for i, a := range e.Addrs {
		k.Addrs[i] = toAddr(a)
	}
	return k
}

func fromEndpoint(k bpf.WeirEndpoint) plan.EndpointImage {
	e := plan.EndpointImage{ID: k.Id, PodMAC: k.PodMac, HostMAC: k.HostMac}
	for side := range e.Rows {
		e.Rows[side] = plan.Rows{Egress: plan.Row(k.RowEgress[side]), Ingress: plan.Row(k.RowIngress[side])}
	}
	for i := range min(int(k.N_addrs), len(k.Addrs)) {
		e.Addrs = append(e.Addrs, fromAddr(k.Addrs[i]))
	}
	return e
}
