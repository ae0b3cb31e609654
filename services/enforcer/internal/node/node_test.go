package node

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/stats"

	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/datapath"
	"weir.dev/weir/services/enforcer/internal/desired"
)

func TestMemoryOutlivesTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "in-force.json")
	m, err := recall(path)
	if err != nil || m.InForce != (desired.Position{}) {
		t.Fatalf("without a file: %+v, %v", m, err)
	}
	at := desired.Position{Generation: 3, Revision: 70}
	if err := m.remember(at, 12); err != nil {
		t.Fatal(err)
	}
	if m, err = recall(path); err != nil || m.InForce != at || m.NextRuleSet != 12 {
		t.Errorf("recalled %+v, %v", m, err)
	}
	// What was not written is not taken for written the next time.
	next := desired.Position{Generation: 3, Revision: 71}
	m.path = filepath.Join(t.TempDir(), "gone", "in-force.json")
	for range 2 {
		if err := m.remember(next, 12); err == nil {
			t.Error("nothing was written, and that is no error")
		}
	}
	// What cannot be read might let an older policy follow: it is no start.
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := recall(path); err == nil {
		t.Error("half a file was taken")
	}
}

func TestWhereaboutsFollowConnections(t *testing.T) {
	w := &whereabouts{}
	if got := w.Replica(); got != "" {
		t.Errorf("not connected: %q", got)
	}
	addr := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 7001}
	ctx := w.TagConn(t.Context(), &stats.ConnTagInfo{RemoteAddr: addr})
	w.HandleConn(ctx, &stats.ConnBegin{Client: true})
	if got := w.Replica(); got != "10.0.0.1:7001" {
		t.Errorf("connected to %q", got)
	}
	w.HandleConn(ctx, &stats.ConnEnd{Client: true})
	if got := w.Replica(); got != "" {
		t.Errorf("disconnected: %q", got)
	}
}

func TestPendingPacketsSayWhatTheyWaitFor(t *testing.T) {
	v := datapath.Event{
		Src: netip.MustParseAddrPort("10.0.0.1:4000"), Dst: netip.MustParseAddrPort("10.0.0.2:80"),
		Protocol: rule.TCP, Drop: true, Reason: bpf.ReasonPending,
	}
	if got := waitedFor(v, nil); !slices.Equal(got, []netip.Addr{v.Dst.Addr()}) {
		t.Errorf("egress waits for %v", got)
	}
	v.Ingress = true
	if got := waitedFor(v, nil); !slices.Equal(got, []netip.Addr{v.Src.Addr()}) {
		t.Errorf("ingress waits for %v", got)
	}
}

// A pod reaches the node by the broadcast addresses of its links, too, so they
// are the node's to policy, but no other node is told of them.
func TestNodeHearsBroadcasts(t *testing.T) {
	_, link, err := net.ParseCIDR("10.200.0.0/24")
	if err != nil {
		t.Fatal(err)
	}
	addr := func(ip string, mask net.IPMask, broadcast net.IP) netlink.Addr {
		return netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(ip), Mask: mask}, Broadcast: broadcast}
	}
	list := []netlink.Addr{
		addr("127.0.0.1", net.CIDRMask(8, 32), nil),
		addr("10.200.0.1", link.Mask, nil),
		addr("10.244.1.1", net.CIDRMask(32, 32), nil),
		addr("192.0.2.1", net.CIDRMask(24, 32), net.IPv4(192, 0, 2, 127)),
		addr("fd00::1", net.CIDRMask(64, 128), nil),
		addr("fe80::1", net.CIDRMask(64, 128), nil),
	}
	own := ownAddrs(list)
	if got, want := fmt.Sprint(own), "[10.200.0.1 10.244.1.1 192.0.2.1 fd00::1]"; got != want {
		t.Errorf("own: %s, want %s", got, want)
	}
	want := "[10.200.0.1 10.200.0.255 10.244.1.1 192.0.2.1 192.0.2.127 192.0.2.255 255.255.255.255 fd00::1]"
	if got := fmt.Sprint(heardBy(own, list)); got != want {
		t.Errorf("heard: %s, want %s", got, want)
	}
}
