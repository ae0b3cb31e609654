package tests

import (
	"encoding/binary"
	"testing"

	"weir.dev/weir/bpf/datapath"
)

// FuzzFromPod sends any bytes from a pod that may do everything. What passes is
// an untagged frame of a known kind that comes from one of its own addresses.
func FuzzFromPod(f *testing.F) {
	l := newPods(f)
	l.pods(datapath.RowOpen, datapath.RowOpen, datapath.RowOpen, datapath.RowOpen)
	six := aToB(80)
	six.src, six.dst = a6, b6
	headers := six
	headers.nextHeader, headers.options = 60, extension(tcp, 0x0104, 0)
	options := aToB(80)
	options.options = []byte{7, 7, 4, 0, 0, 0, 0, 0}
	tagged := aToB(80)
	tagged.tags = []uint16{etherVLAN}
	for _, seed := range []frame{aToB(80), six, headers, options, tagged, icmpError(3, aToB(80).back())} {
		f.Add(seed.bytes())
	}
	f.Add(arp(a4, macA))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 54 || len(data) > 1500 { // shorter ones a test run refuses
			return
		}
		r := l.in(t).run(datapath.FromPod, l.ifs[0], l.ifs[0], data)
		if r.ret == drop {
			return
		}
		if r.ret != next {
			t.Fatalf("returned %d", r.ret)
		}
		switch binary.BigEndian.Uint16(data[12:]) {
		case etherARP:
		case etherIPv4:
			if [4]byte(data[26:30]) != a4.As4() {
				t.Fatalf("passed from %v", data[26:30])
			}
		case etherIPv6:
			if data[20] == icmpv6 || data[20] == 0 {
				return // neighbour discovery has other sources, too
			}
			if [16]byte(data[22:38]) != a6.As16() {
				t.Fatalf("passed from %x", data[22:38])
			}
		default:
			t.Fatalf("passed with ethertype %x", data[12:14])
		}
	})
}
