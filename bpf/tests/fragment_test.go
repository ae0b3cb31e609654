package tests

import (
	"testing"

	"weir.dev/weir/bpf/datapath"
)

const moreFragments = 0x2000

// Later pieces follow their first, which must have shown its ports and passed.
func TestFragments(t *testing.T) {
	l := newPods(t)
	l.cell(rowA, datapath.ClassDefault, only(udp, 53, datapath.Allow)...)
	piece := func(id, fragment uint16, port uint16) frame {
		f := aToB(port)
		f.protocol, f.id, f.fragment = udp, id, fragment
		if fragment&0x1fff != 0 {
			f.l4 = make([]byte, 64)
		}
		return f
	}
	l.want("later, with no first", l.fromPod(0, piece(1, 8, 53)), drop, datapath.ReasonFragment)
	l.want("first", l.fromPod(0, piece(1, moreFragments, 53)), next, 0)
	l.want("middle", l.fromPod(0, piece(1, moreFragments|8, 53)), next, 0)
	l.want("last", l.fromPod(0, piece(1, 16, 53)), next, 0)
	l.want("of another datagram", l.fromPod(0, piece(2, 16, 53)), drop, datapath.ReasonFragment)
	l.want("first of what is denied", l.fromPod(0, piece(3, moreFragments, 99)), drop, datapath.ReasonNoRule)
	l.want("later of what is denied", l.fromPod(0, piece(3, 16, 99)), drop, datapath.ReasonFragment)
	l.want("into the header of the first", l.fromPod(0, piece(1, 1, 53)), drop, datapath.ReasonMalformed)

	short := piece(4, moreFragments, 53)
	short.l4 = []byte{0, 80, 0, 53}
	l.want("first with half a header", l.fromPod(0, short), drop, datapath.ReasonMalformed)
	l.want("at B", l.toPod(1, piece(1, 16, 53)), drop, datapath.ReasonNoRule)
}

// IPv6 extension headers are passed over, and pieces found among them.
func TestExtensionHeaders(t *testing.T) {
	const hop, routing, fragmentHeader, destination = 0, 43, 44, 60
	l := newPods(t)
	six := func(firstHeader uint8, headers ...[]byte) frame {
		f := aToB(80)
		f.src, f.dst, f.nextHeader = a6, b6, firstHeader
		for _, h := range headers {
			f.options = append(f.options, h...)
		}
		return f
	}
	l.want("none", l.fromPod(0, six(0)), next, 0)
	l.want("one", l.fromPod(0, six(destination, extension(tcp, 0x0104, 0))), next, 0)
	l.want("two", l.fromPod(0, six(hop, extension(destination, 0x0104, 0), extension(tcp, 0x0104, 0))), next, 0)
	l.want("a whole fragment", l.fromPod(0, six(fragmentHeader, extension(tcp, 0, 7))), next, 0)
	l.want("a first fragment", l.fromPod(0, six(fragmentHeader, extension(tcp, 1, 8))), next, 0)
	later := six(fragmentHeader, extension(tcp, 64, 8))
	later.l4 = make([]byte, 64)
	l.want("a later fragment", l.fromPod(0, later), next, 0)
	later.options = extension(tcp, 64, 9)
	l.want("a later fragment of another", l.fromPod(0, later), drop, datapath.ReasonFragment)
	l.want("a route yet to go", l.fromPod(0, six(routing, extension(tcp, 0x0001, 0))), drop, datapath.ReasonMalformed)
	l.want("a route at its end", l.fromPod(0, six(routing, extension(tcp, 0x0200, 0))), next, 0)

	var many [][]byte
	for range 9 {
		many = append(many, extension(destination, 0x0104, 0))
	}
	many[8][0] = tcp
	l.want("nine", l.fromPod(0, six(destination, many...)), drop, datapath.ReasonMalformed)
}

// A reset of a flow is known by its datagram's length, not by its frame's.
func TestPaddedReset(t *testing.T) {
	l := newPods(t)
	f := aToB(80)
	l.established(f)
	l.cellOf(0, rowA, datapath.ClassDefault)
	l.flip(firstWord + 2)
	padded := append(f.with(rst).bytes(), 0, 0, 0, 0, 0, 0)
	l.want("reset", l.run(datapath.FromPod, l.ifs[0], l.ifs[0], padded), next, 0)
}
