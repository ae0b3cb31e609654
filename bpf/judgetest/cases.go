package judgetest

import (
	"net/netip"

	"weir.dev/weir/bpf/datapath"
)

// Rows of Policy; FirstRow and up have cells.
const (
	rowEgress  = datapath.FirstRow
	rowIngress = datapath.FirstRow + 1
	rowEmpty   = datapath.FirstRow + 2 // its default cell has no ranges
	rowBare    = datapath.FirstRow + 3 // has no cell at all
)

// Peers of Policy. Classes are these numbers plus 100.
const (
	peerApp = iota + 10
	peerOther
	peerWorld
	peerOffice
	peerNode
	peerUnclassed
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// Addresses of Policy.
var (
	pod4, pod6    = addr("10.244.1.2"), addr("fd00:244:1::2")
	app4, app6    = addr("10.244.1.3"), addr("fd00:244:1::3")
	other         = addr("10.244.2.3")
	pending       = addr("10.244.2.4")
	unclassed     = addr("10.244.2.5")
	noRecord      = addr("10.244.9.9")
	world4        = addr("192.0.2.1")
	world6        = addr("2001:db8::1")
	office        = addr("198.51.100.77")
	nothing       = addr("fd00:999::1")
	remote        = addr("10.200.0.2")
	closedPod     = addr("10.244.1.9")
	openPod       = addr("10.244.1.8")
	service       = addr("10.96.0.1")
	service6      = addr("fd00:96::1")
	serviceEmpty  = addr("10.96.0.2")
	serviceMixed  = addr("10.96.0.3")
	serviceUnlike = addr("10.96.0.4")
	serviceSets   = addr("10.96.0.5")
	serviceNoPair = addr("10.96.0.6")
)

// Policy is the state that Cases are about. Endpoint 0 is selected both ways, 1
// by nothing, 2 is closed, 3 has a row without ranges and one without cells.
func Policy() State {
	return State{
		Endpoints: []Endpoint{
			{0, rowEgress, rowIngress, []netip.Addr{pod4, pod6}},
			{1, datapath.RowOpen, datapath.RowOpen, []netip.Addr{openPod}},
			{2, datapath.RowClosed, datapath.RowClosed, []netip.Addr{closedPod}},
			{3, rowEmpty, rowBare, []netip.Addr{app4, app6}},
		},
		Addresses: []Address{
			{pod4, peerApp, 0}, {pod6, peerApp, 0}, {app4, peerApp, 0}, {app6, peerApp, 0},
			{other, peerOther, 0},
			{pending, peerOther, datapath.AddrPending},
			{unclassed, peerUnclassed, 0},
			{remote, peerNode, datapath.AddrRemoteNode},
		},
		Prefixes: []Prefix{
			{netip.MustParsePrefix("0.0.0.0/0"), peerWorld, 0},
			{netip.MustParsePrefix("2001::/16"), peerWorld, 0},
			{netip.MustParsePrefix("198.51.100.0/24"), peerWorld, 0},
			{netip.MustParsePrefix("198.51.100.64/26"), peerOffice, 0},
			{netip.MustParsePrefix("10.244.0.0/16"), 0, datapath.AddrCluster},
		},
		Classes: map[uint32]uint32{
			peerApp: 110, peerOther: 111, peerWorld: 112, peerOffice: 113, peerNode: 114,
		},
		Cells: cells(),
		Services: []Service{
			{service, TCP, 80, []Backend{{peerApp, 8080}}},
			{service6, TCP, 80, []Backend{{peerApp, 8080}}},
			{serviceEmpty, TCP, 80, nil},
			{serviceMixed, TCP, 80, []Backend{{peerApp, 8080}, {peerApp, 80}}},
			{serviceUnlike, TCP, 80, []Backend{{peerApp, 8080}, {peerOther, 8080}}},
			{serviceSets, TCP, 80, []Backend{{peerApp, 80}, {peerApp, 81}, {peerApp, 8080}}},
			{serviceNoPair, TCP, 80, []Backend{{peerApp, 80}, {peerApp, 82}}},
		},
		Pairs: []Pair{{2, 3, 9}},
	}
}

func cells() []Cell {
	allowed := uint32(datapath.Allow)
	return []Cell{
		// To the app: HTTP on 80 (rule set 2), 81 (3) and 82 (4), all of 8080,
		// DNS, echo requests.
		{rowEgress, 110, []Range{
			{0, 0, 0}, {ICMP, 8, allowed}, {ICMP, 9, 0},
			{TCP, 80, 2}, {TCP, 81, 3}, {TCP, 82, 4}, {TCP, 83, 0},
			{TCP, 8080, allowed}, {TCP, 8081, 0}, {UDP, 53, allowed}, {UDP, 54, 0},
			{ICMPv6, 128, allowed}, {ICMPv6, 129, 0},
			{SCTP, 7000, allowed}, {SCTP, 7001, 0},
		}},
		{rowEgress, 113, []Range{{0, 0, allowed}}},
		{rowEgress, datapath.ClassDefault, []Range{{0, 0, 0}, {TCP, 443, allowed}, {TCP, 444, 0}}},
		{rowIngress, 110, []Range{{0, 0, 0}, {TCP, 1, allowed}, {TCP, 1024, 0}, {TCP, 65535, allowed}, {TCP + 1, 0, 0}}},
		{rowIngress, datapath.ClassDefault, []Range{{0, 0, 0}}},
		{rowEmpty, datapath.ClassDefault, nil},
	}
}

func egress(peer netip.Addr, protocol uint8, port uint16) Packet {
	own := pod4
	if peer.Is6() {
		own = pod6
	}
	return Packet{0, false, own, peer, protocol, port}
}

func ingress(peer netip.Addr, port uint16) Packet { return Packet{0, true, pod4, peer, TCP, port} }

// Cases are judged under Policy.
func Cases() []Case {
	const (
		deny, allow = datapath.Deny, datapath.Allow
		none        = datapath.ReasonNone
		noRule      = datapath.ReasonNoRule
	)
	return []Case{
		{"a port of the cell", egress(app4, TCP, 8080), allow, none},
		{"a port of the cell over IPv6", egress(app6, TCP, 8080), allow, none},
		{"the port below", egress(app4, TCP, 8079), deny, noRule},
		{"the port above", egress(app4, TCP, 8081), deny, noRule},
		{"the same port of another protocol", egress(app4, UDP, 8080), deny, noRule},
		{"DNS", egress(app4, UDP, 53), allow, none},
		{"SCTP", egress(app4, SCTP, 7000), allow, none},
		{"echo request", egress(app4, ICMP, 8), allow, none},
		{"echo request over IPv6", egress(app6, ICMPv6, 128), allow, none},
		{"timestamp request", egress(app4, ICMP, 13), deny, noRule},
		{"HTTP", egress(app4, TCP, 80), 2, none},
		{"port 0", egress(app4, TCP, 0), deny, noRule},
		{"the last port", egress(app4, TCP, 65535), deny, noRule},
		{"a class without a cell has the default", egress(other, TCP, 443), allow, none},
		{"a class with a cell has not the default", egress(app4, TCP, 443), deny, noRule},
		{"the world is a prefix", egress(world4, TCP, 443), allow, none},
		{"the world over IPv6", egress(world6, TCP, 443), allow, none},
		{"the longest prefix decides", egress(office, TCP, 1), allow, none},
		{"beside the longest prefix", egress(addr("198.51.100.1"), TCP, 1), deny, noRule},
		{"an address hides its prefix", egress(other, TCP, 1), deny, noRule},
		{"another node", egress(remote, TCP, 443), allow, none},

		{"pending", egress(pending, TCP, 443), deny, datapath.ReasonPending},
		{"a cluster address without a record", egress(noRecord, TCP, 443), deny, datapath.ReasonPending},
		{"an address of no prefix", egress(nothing, TCP, 443), deny, datapath.ReasonPending},
		{"a peer without a class", egress(unclassed, TCP, 443), deny, datapath.ReasonPending},

		{"ingress, first of a range", ingress(app4, 1), allow, none},
		{"ingress, last of a range", ingress(app4, 1023), allow, none},
		{"ingress, behind the range", ingress(app4, 1024), deny, noRule},
		{"ingress, the last port", ingress(app4, 65535), allow, none},
		{"ingress, default", ingress(other, 80), deny, noRule},
		{"ingress, pending", ingress(pending, 80), deny, datapath.ReasonPending},

		{"a pod that nothing selects", Packet{1, false, openPod, world4, UDP, 9}, allow, none},
		{"and its ingress", Packet{1, true, openPod, app4, TCP, 9}, allow, none},
		{"but not pending", Packet{1, true, openPod, pending, TCP, 9}, deny, datapath.ReasonPending},
		{"a closed pod", Packet{2, false, closedPod, world4, TCP, 443}, deny, datapath.ReasonClosed},
		{"a closed pod's ingress", Packet{2, true, closedPod, world4, TCP, 443}, deny, datapath.ReasonClosed},
		{"a cell without ranges", Packet{3, false, app4, world4, TCP, 443}, deny, noRule},
		{"a row without cells", Packet{3, true, app4, world4, TCP, 443}, deny, noRule},
		{"another's source", Packet{0, false, app4, world4, TCP, 443}, deny, datapath.ReasonSpoofedSource},
		{"another's destination", Packet{0, true, other, app4, TCP, 80}, deny, datapath.ReasonNotForPod},

		{"a Service is its backend, at the backend's port", egress(service, TCP, 80), allow, none},
		{"a Service over IPv6", egress(service6, TCP, 80), allow, none},
		{"another port of the Service's address is not it", egress(service, TCP, 8080), deny, noRule},
		{"a Service without backends", egress(serviceEmpty, TCP, 80), deny, datapath.ReasonNoBackend},
		{"backends with allow and HTTP", egress(serviceMixed, TCP, 80), 2, none},
		{"backends with allow and deny", egress(serviceUnlike, TCP, 80), deny, datapath.ReasonBackendsDiffer},
		{"backends with two rule sets", egress(serviceSets, TCP, 80), 9, none},
		{"backends with rule sets that have no common one", egress(serviceNoPair, TCP, 80), deny, datapath.ReasonBackendsDiffer},
		{"a pod that nothing selects, to a Service", Packet{1, false, openPod, serviceEmpty, TCP, 80}, allow, none},
	}
}
