package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// What a program on tcx returns.
const (
	tcxNext     = ^uint32(0)
	tcxDrop     = 2
	tcxRedirect = 7
)

// clientPort is that of every probe.
const clientPort = 40000

// outcome is what the kernel does with a probe.
type outcome uint8

const (
	dropped outcome = iota
	passed
	proxied
)

func outcomeOf(v rule.Verdict) outcome {
	switch v {
	case rule.Denied:
		return dropped
	case rule.Allowed:
		return passed
	}
	return proxied
}

// TCP flags.
const (
	flagSYN = 0x02
	flagACK = 0x10
)

// probe runs the program of one hook on the SYN that p describes, as if the
// interface had received it or were about to send it.
func probe(t testing.TB, d *Datapath, p plan.Packet) outcome {
	t.Helper()
	return probeWith(t, d, p, flagSYN)
}

// probeWith does the same with another packet of the initiator.
func probeWith(t testing.TB, d *Datapath, p plan.Packet, flags uint8) outcome {
	t.Helper()
	program, src, dst := bpf.FromPod, p.Own, p.Peer
	if p.Ingress {
		program, src, dst = bpf.ToPod, p.Peer, p.Own
	}
	if src.Is4() != dst.Is4() {
		return dropped // there is no such packet
	}
	ctx := make([]byte, 192) // struct __sk_buff
	binary.NativeEndian.PutUint32(ctx[40:], p.Ifindex)
	ret, err := d.coll.Programs[program].Run(&ebpf.RunOptions{Data: segment(src, dst, p.Port, flags), Context: ctx})
	if err != nil {
		t.Fatalf("run %s: %v", program, err)
	}
	switch ret {
	case tcxNext:
		return passed
	case tcxDrop:
		return dropped
	case tcxRedirect:
		return proxied
	}
	t.Fatalf("%s returned %d", program, ret)
	return dropped
}

// segment is the frame of a TCP packet without data.
func segment(src, dst netip.Addr, port uint16, flags uint8) []byte {
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp[0:], clientPort)
	binary.BigEndian.PutUint16(tcp[2:], port)
	tcp[12], tcp[13] = 5<<4, flags
	frame := make([]byte, 12, 14+40+20)
	if src.Is4() {
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, rule.TCP
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(tcp)))
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], dst.AsSlice())
		frame = append(append(frame, 0x08, 0x00), ip...)
	} else {
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, rule.TCP, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
		copy(ip[8:], src.AsSlice())
		copy(ip[24:], dst.AsSlice())
		frame = append(append(frame, 0x86, 0xdd), ip...)
	}
	return append(frame, tcp...)
}
