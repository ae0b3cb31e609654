package tests

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir.dev/weir/bpf/datapath"
)

// send puts a raw frame on a link of the namespace.
func (ns *namespace) send(t testing.TB, ifname string, data []byte) {
	t.Helper()
	index := ns.link(t, ifname).Attrs().Index
	err := ns.do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		protocol := binary.BigEndian.Uint16(data[12:])
		return unix.Sendto(fd, data, 0, &unix.SockaddrLinklayer{
			Ifindex: index, Protocol: datapath.NetworkOrder(protocol), Halen: 6,
		})
	})
	if err != nil {
		t.Fatalf("send a frame on %s: %v", ifname, err)
	}
}

// waitDrop waits for a drop event with a reason, and returns it.
func (n *node) waitDrop(t testing.TB, reason datapath.Reason) datapath.WeirEvent {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		for _, e := range n.drops() {
			if datapath.Reason(e.Reason) == reason {
				return e
			}
		}
	}
	t.Fatalf("nothing was dropped as %s", reason)
	return datapath.WeirEvent{}
}

// P2 on a real link, where the stack takes the outer tag off and keeps it beside
// the frame before any program sees it.
func TestP2OnTheWire(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, 2)
	n.rows(p, peerA, datapath.RowOpen, datapath.RowOpen)
	f := frame{
		srcMAC: [6]byte(p.mac), dstMAC: [6]byte(p.hostMAC),
		src: netip.MustParseAddr("10.244.1.99"), dst: p.v4, protocol: udp, sport: 1, dport: 2,
	}
	for _, tags := range [][]uint16{{etherVLAN}, {etherQinQ}, {etherVLAN, etherVLAN}, {etherQinQ, etherVLAN, etherVLAN}} {
		f.tags = tags
		p.send(t, "eth0", f.bytes())
		e := n.waitDrop(t, datapath.ReasonBadEthertype)
		if e.Ifindex != p.ifindex {
			t.Errorf("tags %x: dropped on interface %d, want %d", tags, e.Ifindex, p.ifindex)
		}
	}
	f.tags = nil
	p.send(t, "eth0", f.bytes())
	n.waitDrop(t, datapath.ReasonSpoofedSource)
}

// P13 on real links: a raw socket in a proxy's namespace speaks to no pod.
func TestP13OnTheWire(t *testing.T) {
	n := newNode(t)
	a, b := n.pod(t, 2), n.pod(t, 3)
	n.rows(a, peerA, datapath.RowOpen, datapath.RowOpen)
	n.rows(b, peerB, datapath.RowOpen, datapath.RowOpen)
	for _, ns := range []*namespace{n.in, n.out} {
		forged := frame{src: a.v4, dst: b.v4, protocol: tcp, sport: 4000, dport: 80, flags: syn}
		ns.send(t, "eth0", forged.bytes())
		n.waitDrop(t, datapath.ReasonNotProxied)
		forged.protocol = udp
		ns.send(t, "eth0", forged.bytes())
		n.waitDrop(t, datapath.ReasonNotProxied)
	}
	if flows := n.flows(); len(flows) != 0 {
		t.Errorf("a pod was reached: %+v", flows)
	}
}
