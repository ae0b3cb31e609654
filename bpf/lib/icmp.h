/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * ICMP errors follow the flow they are about. The datagram they quote is turned
 * round, so that the error looks like an answer from where it was sent to.
 */
#pragma once

#include "packet.h"

#define ICMP_REDIRECT 5

static __always_inline int quoted_ipv4(struct __sk_buff *skb, const struct packet *error,
				       struct packet *q)
{
	__u32 at = error->l4 + ICMP_HEADER_LEN;
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5 ||
	    ip.frag_off & bpf_htons(0x1fff))
		return -WEIR_REASON_ICMP_ERROR;
	addr_set_ipv4(&q->src, ip.saddr);
	addr_set_ipv4(&q->dst, ip.daddr);
	q->protocol = ip.protocol;
	q->l4 = at + ip.ihl * 4;
	return 0;
}

static __always_inline int quoted_ipv6(struct __sk_buff *skb, const struct packet *error,
				       struct packet *q)
{
	__u32 at = error->l4 + ICMP_HEADER_LEN;
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 6)
		return -WEIR_REASON_ICMP_ERROR;
	__builtin_memcpy(&q->src, &ip.saddr, sizeof(q->src));
	__builtin_memcpy(&q->dst, &ip.daddr, sizeof(q->dst));
	q->protocol = ip.nexthdr;
	q->l4 = at + sizeof(ip);
	if (skip_extension_headers(skb, q) || q->flags & PACKET_LATER_FRAGMENT)
		return -WEIR_REASON_ICMP_ERROR;
	return 0;
}

static __always_inline int quoted_ports(struct __sk_buff *skb, struct packet *q)
{
	__be16 words[4];

	if (q->l4 + sizeof(words) > q->end || bpf_skb_load_bytes(skb, q->l4, words, sizeof(words)))
		return -WEIR_REASON_ICMP_ERROR;
	switch (q->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_SCTP:
		q->sport = words[0];
		q->dport = words[1];
		return 0;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		classify_icmp(q, bpf_ntohs(words[0]) >> 8, words[2]);
		return q->flags & PACKET_ICMP_ERROR ? -WEIR_REASON_ICMP_ERROR : 0;
	}
	return 0;
}

/* Replaces p, an ICMP error, by a packet of the flow that it is about. Its pod is
 * the one that the error goes to, or comes from. */
__noinline int follow_icmp_error(struct __sk_buff *skb, struct packet *p, bool to_pod)
{
	struct packet q = {.tcp_flags = TCP_ACK};
	bool ipv6;
	int err;

	if (!p)
		return -WEIR_REASON_INTERNAL;
	ipv6 = p->flags & PACKET_IPV6;
	q.end = p->end;

	if (!ipv6 && p->icmp_type == ICMP_REDIRECT)
		return -WEIR_REASON_ICMP_ERROR;
	err = ipv6 ? quoted_ipv6(skb, p, &q) : quoted_ipv4(skb, p, &q);
	if (err)
		return err;
	err = quoted_ports(skb, &q);
	if (err)
		return err;
	/* It goes to who sent what it quotes. From a pod, it is about what that
	 * pod got; any router may speak to a pod. */
	if (!addr_equal(&q.src, &p->dst) || (!to_pod && !addr_equal(&q.dst, &p->src)))
		return -WEIR_REASON_ICMP_ERROR;
	p->src = q.dst;
	p->dst = q.src;
	p->sport = q.dport;
	p->dport = q.sport;
	p->protocol = q.protocol;
	p->icmp_type = q.icmp_type;
	p->tcp_flags = q.tcp_flags;
	p->flags = (p->flags & PACKET_IPV6) | PACKET_ABOUT_FLOW;
	return 0;
}
