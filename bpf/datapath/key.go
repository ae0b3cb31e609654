package datapath

import (
	"encoding/binary"
	"net/netip"
)

// CtKey is the conntrack key of the flow between two ends, whichever sends. Of
// ICMP both ports are the id of a request of the given type; else type is 0.
// srcFirst says that src is the key's first end.
func CtKey(src, dst netip.AddrPort, protocol, icmpType uint8) (key WeirCtKey, srcFirst bool) {
	a, b := wide(src), wide(dst)
	srcFirst = a.Compare(b) < 0
	if !srcFirst {
		a, b = b, a
	}
	key.Addr = [2]WeirAddr{{A: a.Addr().As16()}, {A: b.Addr().As16()}}
	key.Port = [2]uint16{NetworkOrder(a.Port()), NetworkOrder(b.Port())}
	key.Protocol, key.IcmpType = protocol, icmpType
	return key, srcFirst
}

func wide(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
}

// NetworkOrder turns a port from host to network byte order, or back, as the
// fields of the maps' types want it.
func NetworkOrder(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}
