/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What the kernel's conntrack knows: who began a flow that Weir has not seen
 * begin, and whose packet it is that comes with the node's own address.
 */
#pragma once

#include "packet.h"

/* Set on both ends of a TCP entry that was picked up from the middle, whose
 * direction is the kernel's guess (IP_CT_TCP_FLAG_BE_LIBERAL). */
#define CT_TCP_BE_LIBERAL 0x08

#define CT_INFO_MASK 7UL
#define CT_INFO_REPLY 3	    /* IP_CT_IS_REPLY */
#define CT_INFO_UNTRACKED 7 /* IP_CT_UNTRACKED */

#define AF_INET_L3NUM 2

struct kernel_flow {
	struct weir_addr origin; /* who sent the first packet, before translation */
	bool reply;		 /* this packet goes against it */
} __attribute__((aligned(8)));

static __always_inline bool read_nf_conn(const struct nf_conn *ct, bool tcp, struct kernel_flow *f)
{
	__u32 *w = (void *)&f->origin;

	if (tcp && ct->proto.tcp.seen[0].flags & ct->proto.tcp.seen[1].flags & CT_TCP_BE_LIBERAL)
		return false;
	if (ct->tuplehash[0].tuple.src.l3num == AF_INET_L3NUM) {
		addr_set_ipv4(&f->origin, ct->tuplehash[0].tuple.src.u3.all[0]);
		return true;
	}
	w[0] = ct->tuplehash[0].tuple.src.u3.all[0];
	w[1] = ct->tuplehash[0].tuple.src.u3.all[1];
	w[2] = ct->tuplehash[0].tuple.src.u3.all[2];
	w[3] = ct->tuplehash[0].tuple.src.u3.all[3];
	return true;
}

/* On its way to a pod the packet carries its entry, whatever its protocol. */
static __always_inline bool carried_flow(struct __sk_buff *skb, bool tcp, struct kernel_flow *f)
{
	struct sk_buff *k;
	unsigned long nfct;

	if (!bpf_cast_to_kern_ctx || !bpf_rdonly_cast)
		return false;
	k = bpf_cast_to_kern_ctx(skb);
	nfct = k->_nfct;
	if (!(nfct & ~CT_INFO_MASK) || (nfct & CT_INFO_MASK) == CT_INFO_UNTRACKED)
		return false;
	f->reply = (nfct & CT_INFO_MASK) >= CT_INFO_REPLY;
	return read_nf_conn(bpf_rdonly_cast((void *)(nfct & ~CT_INFO_MASK),
					    bpf_core_type_id_kernel(struct nf_conn)),
			    tcp, f);
}

static __always_inline void fill_tuple(const struct packet *p, struct bpf_sock_tuple *t)
{
	const __u32 *src = (const void *)&p->src, *dst = (const void *)&p->dst;

	if (p->flags & PACKET_IPV6) {
		__builtin_memcpy(t->ipv6.saddr, src, 16);
		__builtin_memcpy(t->ipv6.daddr, dst, 16);
		t->ipv6.sport = p->sport;
		t->ipv6.dport = p->dport;
		return;
	}
	t->ipv4.saddr = src[3];
	t->ipv4.daddr = dst[3];
	t->ipv4.sport = p->sport;
	t->ipv4.dport = p->dport;
}

/* Fresh from a pod it carries none, and is looked up; TCP and UDP only. */
static __always_inline bool looked_up_flow(struct __sk_buff *skb, const struct packet *p,
					   struct kernel_flow *f)
{
	struct bpf_ct_opts___weir opts = {
		.netns_id = BPF_F_CURRENT_NETNS,
		.l4proto = p->protocol,
	};
	struct bpf_sock_tuple t = {};
	struct nf_conn *ct;
	bool found;

	if (!bpf_skb_ct_lookup || !bpf_ct_release)
		return false;
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP)
		return false;
	fill_tuple(p, &t);
	if (p->flags & PACKET_IPV6)
		ct = bpf_skb_ct_lookup(skb, &t, sizeof(t.ipv6), &opts, sizeof(opts));
	else
		ct = bpf_skb_ct_lookup(skb, &t, sizeof(t.ipv4), &opts, sizeof(opts));
	if (!ct)
		return false;
	f->reply = opts.dir == 1;
	found = read_nf_conn(ct, p->protocol == IPPROTO_TCP, f);
	bpf_ct_release(ct);
	return found;
}

/* 1, or 0 if the kernel does not know the flow, or only by guessing. */
__noinline int find_kernel_flow(struct __sk_buff *skb, const struct packet *p, bool to_pod,
				struct kernel_flow *f)
{
	if (!p || !f || p->flags & PACKET_ABOUT_FLOW) /* carries another flow's */
		return false;
	if (to_pod)
		return carried_flow(skb, p->protocol == IPPROTO_TCP, f);
	return looked_up_flow(skb, p, f);
}
