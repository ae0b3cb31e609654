/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * How a link finds its neighbours: ARP, neighbour discovery, multicast listener
 * reports. They pass without policy, but only with the endpoint's own addresses.
 */
#pragma once

#include "event.h"

#define NDP_HOP_LIMIT 255

#define MLD_QUERY 130
#define MLD_REPORT 131
#define MLD_DONE 132
#define NDP_ROUTER_SOLICIT 133
#define NDP_ROUTER_ADVERT 134
#define NDP_NEIGHBOUR_SOLICIT 135
#define NDP_NEIGHBOUR_ADVERT 136
#define NDP_REDIRECT 137
#define MLD2_REPORT 143

static __always_inline bool owns(const struct weir_endpoint *ep, const struct weir_addr *addr)
{
	for (__u32 i = 0; i < 4; i++) {
		if (i < ep->n_addrs && addr_equal(&ep->addrs[i], addr))
			return true;
	}
	return false;
}

static __always_inline bool mac_equal(const __u8 *a, const __u8 *b)
{
	return *(const __u32 *)a == *(const __u32 *)b &&
	       *(const __u16 *)(a + 4) == *(const __u16 *)(b + 4);
}

/* fe80:: with the interface id that the pod's MAC gives (RFC 4291, appendix A). */
static __always_inline bool own_link_local(const struct weir_endpoint *ep,
					   const struct weir_addr *addr)
{
	const __u8 *m = ep->pod_mac, *a = addr->a;

	return *(const __u64 *)a == bpf_cpu_to_be64(0xfe80000000000000) && a[8] == (m[0] ^ 2) &&
	       a[9] == m[1] && a[10] == m[2] && a[11] == 0xff && a[12] == 0xfe && a[13] == m[3] &&
	       a[14] == m[4] && a[15] == m[5];
}

static __always_inline bool unspecified(const struct weir_addr *addr)
{
	const __u64 *a = (const void *)addr;

	return a[0] == 0 && a[1] == 0;
}

/* For Ethernet and IPv4. */
struct arp_frame {
	struct ethhdr eth;
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
} __attribute__((packed, aligned(2)));

/* The sender is the endpoint itself; 0.0.0.0 probes for one of its addresses. */
static __always_inline bool own_arp(const struct weir_endpoint *ep, const struct arp_frame *f)
{
	struct weir_addr addr __attribute__((aligned(8)));
	__be32 sender, target;

	__builtin_memcpy(&sender, f->sender, sizeof(sender));
	__builtin_memcpy(&target, f->target, sizeof(target));
	addr_set_ipv4(&addr, sender ? sender : target);
	return owns(ep, &addr) && mac_equal(f->sender_mac, ep->pod_mac) &&
	       mac_equal(f->eth.h_source, ep->pod_mac);
}

static __noinline int judge_arp(struct __sk_buff *skb, struct judgement *j)
{
	struct arp_frame f;

	j->ep = bpf_map_lookup_elem(&weir_endpoints, &j->ifindex);
	if (!j->ep)
		return tell_drop(j, WEIR_REASON_CLOSED);
	j->endpoint_id = j->ep->id;
	if (bpf_skb_load_bytes(skb, 0, &f, sizeof(f)) || f.hardware != bpf_htons(1) ||
	    f.protocol != bpf_htons(ETH_P_IP) || f.hardware_len != 6 || f.protocol_len != 4)
		return tell_drop(j, WEIR_REASON_BAD_ARP);
	if (!j->to_pod && !own_arp(j->ep, &f))
		return tell_drop(j, WEIR_REASON_BAD_ARP);
	count(WEIR_REASON_NONE, j->to_pod);
	return TCX_NEXT;
}

static __always_inline bool is_neighbour_discovery(const struct packet *p)
{
	if (p->protocol != IPPROTO_ICMPV6 || !(p->flags & PACKET_IPV6) ||
	    p->flags & (PACKET_ABOUT_FLOW | PACKET_FIRST_FRAGMENT | PACKET_LATER_FRAGMENT))
		return false;
	return (p->icmp_type >= MLD_QUERY && p->icmp_type <= NDP_REDIRECT) ||
	       p->icmp_type == MLD2_REPORT;
}

static __always_inline bool is_mld(const struct packet *p)
{
	return p->icmp_type <= MLD_DONE || p->icmp_type == MLD2_REPORT;
}

/* Who hears it is on the link: no router sends it on. Listener messages live for
 * one hop. Discovery must arrive as it was sent, but a node would still send it
 * out to the world: so it goes to the link, or to an address that has a record,
 * whose own endpoint drops what did not arrive so. */
static __always_inline bool stays_near(const struct packet *p)
{
	const __u8 *dst = p->dst.a;
	struct weir_peer_ref *ref;

	if (is_mld(p))
		return p->hop_limit == 1 && dst[0] == 0xff;
	if (p->hop_limit != NDP_HOP_LIMIT)
		return false;
	if (dst[0] == 0xff)
		return (dst[1] & 0x0f) == 2;
	if (dst[0] == 0xfe && (dst[1] & 0xc0) == 0x80)
		return true;
	ref = bpf_map_lookup_elem(&weir_addresses, &p->dst);
	return ref && !(ref->flags & WEIR_ADDR_REMOTE_NODE);
}

/* What a pod may say: who it is, whom it seeks, what it listens to. */
static __always_inline bool own_ndp(struct __sk_buff *skb, const struct judgement *j)
{
	const struct packet *p = &j->packet;
	struct weir_addr target __attribute__((aligned(8)));

	if (!owns(j->ep, &p->src) && !own_link_local(j->ep, &p->src) && !unspecified(&p->src))
		return false;
	if (!stays_near(p))
		return false;
	switch (p->icmp_type) {
	case MLD_REPORT:
	case MLD_DONE:
	case MLD2_REPORT:
	case NDP_ROUTER_SOLICIT:
	case NDP_NEIGHBOUR_SOLICIT:
		return true;
	case NDP_NEIGHBOUR_ADVERT:
		if (bpf_skb_load_bytes(skb, p->l4 + 8, &target, sizeof(target)))
			return false;
		return owns(j->ep, &target) || own_link_local(j->ep, &target);
	}
	return false;
}

/* What reaches a pod comes from its own link, and is for it or for many. */
static __always_inline bool ndp_for_pod(const struct judgement *j)
{
	const struct packet *p = &j->packet;

	if (is_mld(p))
		return p->hop_limit == 1 && p->dst.a[0] == 0xff;
	return p->hop_limit == NDP_HOP_LIMIT &&
	       (p->dst.a[0] == 0xff || owns(j->ep, &p->dst) || own_link_local(j->ep, &p->dst));
}

static __noinline int judge_ndp(struct __sk_buff *skb, struct judgement *j)
{
	j->ep = bpf_map_lookup_elem(&weir_endpoints, &j->ifindex);
	if (!j->ep)
		return tell_drop(j, WEIR_REASON_CLOSED);
	j->endpoint_id = j->ep->id;
	if (j->to_pod ? !ndp_for_pod(j) : !own_ndp(skb, j))
		return tell_drop(j, WEIR_REASON_BAD_NDP);
	count(WEIR_REASON_NONE, j->to_pod);
	return TCX_NEXT;
}
