package tests

import (
	"bytes"
	"testing"

	"weir.dev/weir/bpf/datapath"
)

// reentry is the mark of frames that a proxy's namespace sends as a pod.
const reentry = 0x77656972

// P13: the proxy's namespaces may speak in flows that were fixed as proxied, each
// in those of its side, and nothing else; each leg goes where it belongs.
func TestP13(t *testing.T) {
	l := newPods(t)
	l.cell(rowA, datapath.ClassDefault, only(tcp, 80, ruleSet)...)
	f := aToB(80)
	plain := aToB(80)
	plain.src, plain.dst, plain.sport = b4, a4, 999
	l.want("A's SYN is steered into weir-out", l.fromPod(0, f), redirect, 0)
	l.want("a plain flow", l.fromPod(1, plain), next, 0)

	proxy := func(program string, f frame) result {
		t.Helper()
		return l.run(program, l.ifs[4], l.ifs[4], f.bytes())
	}
	none := frame{src: a4, dst: b4, protocol: tcp, sport: 1, dport: 2, flags: syn}
	datagram := f
	datagram.protocol = udp
	piece := f
	piece.fragment = moreFragments
	refused := []struct {
		name, program string
		f             frame
	}{
		{"no flow", datapath.FromProxyOut, none},
		{"a plain flow", datapath.FromProxyOut, plain},
		{"a plain flow, answered", datapath.FromProxyOut, plain.back()},
		{"a flow of weir-out", datapath.FromProxyIn, f},
		{"UDP", datapath.FromProxyOut, datagram},
		{"a fragment", datapath.FromProxyOut, piece},
	}
	for _, tt := range refused {
		l.want(tt.name, proxy(tt.program, tt.f), drop, datapath.ReasonNotProxied)
	}
	l.want("ARP", l.run(datapath.FromProxyOut, l.ifs[4], l.ifs[4], arp(a4, macA)), drop, datapath.ReasonNotProxied)

	up := f
	up.srcMAC, up.dstMAC = [6]byte{9}, [6]byte{9}
	r := proxy(datapath.FromProxyOut, up)
	l.want("the upstream leg", r, redirect, 0)
	if r.mark != reentry || !bytes.Equal(r.out[:12], append(macHost[:], macA[:]...)) {
		t.Errorf("upstream frame has mark %#x and MACs %x, want %#x and those A used", r.mark, r.out[:12], reentry)
	}
	back := l.runMarked(datapath.FromPod, l.ifs[0], l.ifs[0], reentry, r.out)
	l.want("goes out as the pod's", back, next, 0)
	if back.mark != 0 {
		t.Errorf("mark %#x is left on the packet", back.mark)
	}
	r = proxy(datapath.FromProxyOut, up.back())
	l.want("the leg to the pod", r, redirect, 0)
	if r.mark != 0 || !bytes.Equal(r.out[:12], append(macA[:], macHost[:]...)) {
		t.Errorf("frame to the pod has mark %#x and MACs %x", r.mark, r.out[:12])
	}
}

// P16: a proxied flow keeps the next hop that the pod chose.
func TestP16(t *testing.T) {
	l := newPods(t)
	l.cell(rowA, datapath.ClassDefault, only(tcp, 80, ruleSet)...)
	f := aToB(80)
	f.dstMAC = macB // bridged: B is on the same link
	l.want("SYN", l.fromPod(0, f), redirect, 0)
	r := l.run(datapath.FromProxyOut, l.ifs[4], l.ifs[4], f.bytes())
	if !bytes.Equal(r.out[:6], macB[:]) {
		t.Errorf("the frame goes to %x, want %x", r.out[:6], macB)
	}
}
