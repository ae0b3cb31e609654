// Package datapath holds Weir's BPF programs and the Go types of their maps.
//
// All programs and maps are one collection: [LoadWeir] gives its spec, [Sizes]
// fits it to a node, and the names below find its parts. The maps that carry
// state over a restart are those of [PinnedMaps]; an enforcer that adopts pins
// passes them as ebpf.CollectionOptions.MapReplacements, or sets PinByName on
// them, and attaches the programs anew with link.Update.
//
// It may import cilium/ebpf and nothing else. It loads and attaches nothing.
package datapath

import "github.com/cilium/ebpf"

// Types of the maps' keys and values, as bpf/lib/abi.h defines them.
type (
	WeirAddr        = weirWeirAddr
	WeirBackend     = weirWeirBackend
	WeirCell        = weirWeirCell
	WeirCellKey     = weirWeirCellKey
	WeirConfig      = weirWeirConfig
	WeirCt          = weirWeirCt
	WeirCtKey       = weirWeirCtKey
	WeirEndpoint    = weirWeirEndpoint
	WeirEvent       = weirWeirEvent
	WeirFragment    = weirWeirFragment
	WeirFragmentKey = weirWeirFragmentKey
	WeirPeerRef     = weirWeirPeerRef
	WeirPrefixKey   = weirWeirPrefixKey
	WeirRange       = weirWeirRange
	WeirRuleSetPair = weirWeirRuleSetPair
	WeirService     = weirWeirService
	WeirServiceKey  = weirWeirServiceKey
)

// Layout is the number of the pins' directory: <bpffs>/weir/v<Layout>.
const Layout = 1

// Programs. All of a host veth or proxy veth attach by tcx, SteerIn and
// SteerOut to the network namespaces weir-in and weir-out.
const (
	FromPod      = "from_pod"       // tcx ingress, the host's end of a pod's veth; first
	ToPod        = "to_pod"         // tcx egress, the same interface; last
	FromProxyIn  = "from_proxy_in"  // tcx ingress, the node's end of weir-in's veth
	FromProxyOut = "from_proxy_out" // tcx ingress, the node's end of weir-out's veth
	ProxyArrival = "proxy_arrival"  // tcx ingress, eth0 inside weir-in and weir-out
	SteerIn      = "steer_in"       // sk_lookup in weir-in
	SteerOut     = "steer_out"      // sk_lookup in weir-out
)

// Maps.
const (
	MapWord         = "weir_word"
	MapConfig       = "weir_config"
	MapEndpoints    = "weir_endpoints"
	MapAddresses    = "weir_addresses"
	MapPrefixes     = "weir_prefixes"
	MapClasses      = "weir_classes"
	MapCells        = "weir_cells"
	MapRanges       = "weir_ranges"
	MapServices     = "weir_services"
	MapBackends     = "weir_backends"
	MapBackendSets  = "weir_backend_sets"
	MapCtTCP        = "weir_ct_tcp"
	MapCtAny        = "weir_ct_any"
	MapQuotaUsed    = "weir_quota_used"
	MapQuotaFreed   = "weir_quota_freed"
	MapFragments    = "weir_fragments"
	MapDrops        = "weir_drops"
	MapFlows        = "weir_flows"
	MapCounters     = "weir_counters"
	MapLost         = "weir_lost"
	MapListenersIn  = "weir_listeners_in"
	MapListenersOut = "weir_listeners_out"
)

// Programs returns the names of all programs.
func Programs() []string {
	return []string{FromPod, ToPod, FromProxyIn, FromProxyOut, ProxyArrival, SteerIn, SteerOut}
}

// PinnedMaps returns the names of the maps that outlive an enforcer: all.
func PinnedMaps() []string {
	return []string{
		MapWord, MapConfig, MapEndpoints, MapAddresses, MapPrefixes, MapClasses, MapCells,
		MapRanges, MapServices, MapBackends, MapBackendSets, MapCtTCP, MapCtAny,
		MapQuotaUsed, MapQuotaFreed, MapFragments, MapDrops, MapFlows, MapCounters,
		MapLost, MapListenersIn, MapListenersOut,
	}
}

// LoadWeir returns the spec of all programs and maps; nothing is in the kernel yet.
func LoadWeir() (*ebpf.CollectionSpec, error) { return loadWeir() }
