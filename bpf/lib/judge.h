/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * endpoint → row, address → peer → class, (row, class) → cell → port map →
 * verdict. Functions return a verdict, or a negative enum weir_reason.
 */
#pragma once

#include "judgement.h"
#include "kconntrack.h"
#include "maps.h"
#include "neighbour.h"

#define SEARCH_STEPS 17 /* halvings of a port map; more ranges than 2^17: deny */

/* The range of cell that start is in. */
static __always_inline int search_ranges(__u32 side, const struct weir_cell *cell, __u32 start)
{
	__u32 at = cell->first, n = cell->n;
	struct weir_range *range;
	__u32 index;

	if (n == 0)
		return -WEIR_REASON_NO_RULE;
	for (int i = 0; i < SEARCH_STEPS && n > 1; i++) {
		__u32 half = n / 2;

		index = side * max_ranges + at + half;
		range = bpf_map_lookup_elem(&weir_ranges, &index);
		if (!range)
			return -WEIR_REASON_INTERNAL;
		if (range->start <= start) {
			at += half;
			n -= half;
		} else {
			n = half;
		}
	}
	index = side * max_ranges + at;
	range = bpf_map_lookup_elem(&weir_ranges, &index);
	if (n != 1 || at >= max_ranges || !range || range->verdict > 0x7fffffff)
		return -WEIR_REASON_INTERNAL;
	return range->verdict == WEIR_DENY ? -WEIR_REASON_NO_RULE : (int)range->verdict;
}

/* Verdict of protocol << 16 | port in one cell, or in the row's default. Global,
 * so that it is verified once. */
__noinline int cell_verdict(__u32 side, __u32 row, __u32 class_id, __u32 start)
{
	struct weir_cell_key key = {.side = side, .row = row, .class_id = class_id};
	struct weir_cell *cell;

	if (class_id == WEIR_CLASS_NONE)
		return -WEIR_REASON_PENDING;
	if (row == WEIR_ROW_OPEN)
		return WEIR_ALLOW;
	cell = bpf_map_lookup_elem(&weir_cells, &key);
	if (!cell) {
		key.class_id = WEIR_CLASS_DEFAULT;
		cell = bpf_map_lookup_elem(&weir_cells, &key);
		if (!cell)
			return -WEIR_REASON_NO_RULE;
	}
	return search_ranges(side, cell, start);
}

static __always_inline __u32 class_of(__u32 side, __u32 peer)
{
	__u32 index = side * max_peers + peer;
	__u32 *class_id;

	if (peer == WEIR_PEER_NONE || peer >= max_peers)
		return WEIR_CLASS_NONE;
	class_id = bpf_map_lookup_elem(&weir_classes, &index);
	return class_id ? *class_id : WEIR_CLASS_NONE;
}

/* An address that nothing is known of is pending: outside ones have a prefix. */
__noinline int resolve_addr(const struct weir_addr *addr, struct weir_peer_ref *ref)
{
	struct weir_prefix_key key = {.prefix_len = 128};
	struct weir_peer_ref *found;

	if (!addr || !ref)
		return -WEIR_REASON_INTERNAL;
	copy_words(&key.addr, addr, sizeof(key.addr));
	found = bpf_map_lookup_elem(&weir_addresses, addr);
	if (!found)
		found = bpf_map_lookup_elem(&weir_prefixes, &key);
	if (!found)
		return -WEIR_REASON_PENDING;
	*ref = *found;
	if (ref->flags & (WEIR_ADDR_PENDING | WEIR_ADDR_CLUSTER) || ref->peer == WEIR_PEER_NONE)
		return -WEIR_REASON_PENDING;
	return 0;
}

/* Whom the judgement is about. A client with an address of this node is the
 * node itself only if its packets came in by no interface; else they were
 * masqueraded, and the kernel knows by whom they were sent (threat P4).
 * WEIR_ALLOW: it is the pod itself. */
static __always_inline int find_peer(struct __sk_buff *skb, struct judgement *j,
				     struct weir_peer_ref *ref)
{
	struct kernel_flow flow = {};
	int err;

	err = resolve_addr(peer_addr(j), ref);
	if (err || !(ref->flags & WEIR_ADDR_HOST) || pod_initiates(j))
		return err;
	if (j->to_pod && skb->ingress_ifindex == 0)
		return 0;
	if (!find_kernel_flow(skb, &j->packet, j->to_pod,
			      &flow)) /* answers to the node itself pass */
		return j->to_pod ? -WEIR_REASON_SPOOFED_SOURCE : 0;
	if (addr_equal(&flow.origin, peer_addr(j)))
		return j->to_pod ? -WEIR_REASON_SPOOFED_SOURCE : 0;
	j->volatile_peer = j->packet.protocol != IPPROTO_TCP;
	if (owns(j->ep, &flow.origin))
		return WEIR_ALLOW;
	return resolve_addr(&flow.origin, ref);
}

#define PORT_VXLAN 4789
#define PORT_VXLAN_LINUX 8472
#define PORT_GENEVE 6081

/* What a node's own tunnel devices would take out of its wrapping (threat P12). */
static __always_inline bool is_tunnel(const struct packet *p)
{
	__u16 port = bpf_ntohs(p->dport);

	switch (p->protocol) {
	case IPPROTO_IPIP:
	case IPPROTO_IPV6:
	case IPPROTO_GRE:
		return true;
	case IPPROTO_UDP:
		return port == PORT_VXLAN || port == PORT_VXLAN_LINUX || port == PORT_GENEVE;
	}
	return false;
}

/* What every interface of a link listens to, the node's among them. Directed
 * broadcasts have an entry, as the node's addresses have. */
static __always_inline bool is_for_many(const struct weir_addr *addr)
{
	const __u8 *a = addr->a;

	if (is_ipv4_mapped(addr))
		return (a[12] & 0xf0) == 0xe0 || *(const __u32 *)(a + 12) == 0xffffffff;
	return a[0] == 0xff;
}

static __always_inline struct weir_config *config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&weir_config, &zero);
}

static __always_inline bool tunnels_allowed(void)
{
	struct weir_config *c = config();

	return c && c->allow_tunnels;
}

/* The flow's port that policy names: the responder's, or the ICMP type. */
static __always_inline __u16 judged_port(const struct judgement *j)
{
	const struct packet *p = &j->packet;

	if (p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6)
		return p->icmp_type;
	return bpf_ntohs(goes_forward(j) ? p->dport : p->sport);
}
