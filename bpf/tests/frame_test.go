package tests

import (
	"encoding/binary"
	"net/netip"
)

// TCP flags.
const (
	fin = 0x01
	syn = 0x02
	rst = 0x04
	ack = 0x10
)

// Protocols and ethertypes.
const (
	icmp   = 1
	udp    = 17
	icmpv6 = 58

	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherVLAN = 0x8100
	etherQinQ = 0x88a8
	etherIPv6 = 0x86dd
)

// frame builds an Ethernet frame with one datagram. Lengths are filled in,
// checksums are not: no program looks at them.
type frame struct {
	srcMAC, dstMAC [6]byte
	tags           []uint16 // ethertypes of VLAN tags, outermost first
	src, dst       netip.Addr
	protocol       uint8
	sport, dport   uint16
	flags          uint8  // TCP
	icmpType       uint8  // ICMP
	icmpID         uint16 // ICMP
	hopLimit       uint8  // 64 if 0
	options        []byte // IPv4, a multiple of 4; IPv6 extension headers
	nextHeader     uint8  // IPv6, of the first extension header
	fragment       uint16 // IPv4: flags and offset / 8
	id             uint16 // IPv4
	payload        []byte
	l4             []byte // instead of a transport header
}

func (f frame) bytes() []byte {
	b := append(append([]byte{}, f.dstMAC[:]...), f.srcMAC[:]...)
	for _, tag := range f.tags {
		b = binary.BigEndian.AppendUint16(b, tag)
		b = append(b, 0, 5) // VLAN 5
	}
	l4 := f.l4
	if l4 == nil {
		l4 = f.transport()
	}
	l4 = append(l4, f.payload...)
	if f.src.Is6() {
		return f.ipv6(binary.BigEndian.AppendUint16(b, etherIPv6), l4)
	}
	return f.ipv4(binary.BigEndian.AppendUint16(b, etherIPv4), l4)
}

// datagram is the frame without its Ethernet header, as ICMP errors quote it.
func (f frame) datagram() []byte { return f.bytes()[14:] }

func (f frame) ttl() uint8 {
	if f.hopLimit == 0 {
		return 64
	}
	return f.hopLimit
}

func (f frame) ipv4(b, l4 []byte) []byte {
	header := 20 + len(f.options)
	b = append(b, byte(0x40|header/4), 0)
	b = binary.BigEndian.AppendUint16(b, uint16(header+len(l4)))
	b = binary.BigEndian.AppendUint16(b, f.id)
	b = binary.BigEndian.AppendUint16(b, f.fragment)
	b = append(b, f.ttl(), f.protocol, 0, 0)
	b = append(b, f.src.AsSlice()...)
	b = append(b, f.dst.AsSlice()...)
	return append(append(b, f.options...), l4...)
}

func (f frame) ipv6(b, l4 []byte) []byte {
	next := f.protocol
	if len(f.options) > 0 {
		next = f.nextHeader
	}
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.options)+len(l4)))
	b = append(b, next, f.ttl())
	b = append(b, f.src.AsSlice()...)
	b = append(b, f.dst.AsSlice()...)
	return append(append(b, f.options...), l4...)
}

func (f frame) transport() []byte {
	ports := binary.BigEndian.AppendUint16(nil, f.sport)
	ports = binary.BigEndian.AppendUint16(ports, f.dport)
	switch f.protocol {
	case tcp:
		return append(ports, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, f.flags, 0xff, 0xff, 0, 0, 0, 0)
	case udp:
		ports = binary.BigEndian.AppendUint16(ports, uint16(8+len(f.payload)))
		return append(ports, 0, 0)
	case icmp, icmpv6:
		b := []byte{f.icmpType, 0, 0, 0}
		b = binary.BigEndian.AppendUint16(b, f.icmpID)
		return append(b, 0, 1)
	case 132:
		return append(ports, make([]byte, 12)...)
	}
	return make([]byte, 24)
}

// back is the frame's answer: ends turned round.
func (f frame) back() frame {
	f.src, f.dst = f.dst, f.src
	f.sport, f.dport = f.dport, f.sport
	f.srcMAC, f.dstMAC = f.dstMAC, f.srcMAC
	return f
}

func (f frame) with(flags uint8) frame {
	f.flags = flags
	return f
}

// extension is an IPv6 extension header of 8 bytes; the fragment header's rest
// and id are given.
func extension(next uint8, rest uint16, id uint32) []byte {
	b := binary.BigEndian.AppendUint16([]byte{next, 0}, rest)
	return binary.BigEndian.AppendUint32(b, id)
}

func (f frame) ends() (src, dst netip.AddrPort) {
	return netip.AddrPortFrom(f.src, f.sport), netip.AddrPortFrom(f.dst, f.dport)
}
