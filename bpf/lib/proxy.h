/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What the proxy's namespaces send, and how connections reach the proxy. The
 * namespaces are not trusted by place: a packet out of them must belong to a
 * flow that was fixed as proxied there (threat P13).
 */
#pragma once

#include "conntrack.h"
#include "event.h"
#include "steer.h"

static __always_inline bool is_zero_mac(const __u8 mac[6])
{
	return *(const __u32 *)mac == 0 && *(const __u16 *)(mac + 4) == 0;
}

/* Into the pod, past to_pod: judged when it entered the proxy. */
static __always_inline int deliver(struct __sk_buff *skb, const struct weir_endpoint *ep,
				   __u32 ifindex)
{
	bpf_skb_store_bytes(skb, 0, ep->pod_mac, ETH_ALEN, 0);
	bpf_skb_store_bytes(skb, ETH_ALEN, ep->host_mac, ETH_ALEN, 0);
	bpf_skb_change_type(skb, PACKET_HOST);
	return bpf_redirect_peer(ifindex, 0);
}

/* Out of the pod's own veth, as if the pod had sent it: the node routes and
 * translates it as it would the pod's. The next hop is the one the pod chose. */
static __always_inline int reenter(struct __sk_buff *skb, const struct weir_endpoint *ep,
				   const __u8 neighbour[6], __u32 ifindex)
{
	bpf_skb_store_bytes(skb, 0, is_zero_mac(neighbour) ? ep->host_mac : neighbour, ETH_ALEN, 0);
	bpf_skb_store_bytes(skb, ETH_ALEN, ep->pod_mac, ETH_ALEN, 0);
	skb->mark = MARK_REENTRY;
	return bpf_redirect(ifindex, BPF_F_INGRESS);
}

/* slot is the side of a flow whose packets this namespace handles. */
static __always_inline int from_proxy(struct __sk_buff *skb, __u32 slot)
{
	struct judgement j = {.slot = slot};
	bool from_the_pod;
	int err;

	err = parse(skb, &j.packet);
	if (!err && is_neighbour_discovery(&j.packet)) {
		/* The stack's own, on a link that has no neighbours: no news. */
		count(WEIR_REASON_NOT_PROXIED, slot);
		return TCX_DROP;
	}
	if (err || j.packet.protocol != IPPROTO_TCP ||
	    j.packet.flags & (PACKET_FIRST_FRAGMENT | PACKET_LATER_FRAGMENT))
		return tell_drop(&j, WEIR_REASON_NOT_PROXIED);
	ct_set_key(&j);
	j.ct = ct_lookup(&j.key);
	if (!j.ct || !(j.ct->flags & ct_proxied_flag(slot)))
		return tell_drop(&j, WEIR_REASON_NOT_PROXIED);
	j.ifindex = j.ct->slot[slot].ifindex;
	j.ep = bpf_map_lookup_elem(&weir_endpoints, &j.ifindex);
	if (!j.ep)
		return tell_drop(&j, WEIR_REASON_NOT_PROXIED);
	j.endpoint_id = j.ep->id;
	from_the_pod = ct_src_initiates(&j, j.ct->flags) == (slot == WEIR_SLOT_EGRESS);
	/* The leg to the client is the one whose end is the flow's. */
	ct_touch(&j, j.ct, from_the_pod == (slot == WEIR_SLOT_INGRESS));
	if (from_the_pod)
		return reenter(skb, j.ep, j.ct->neighbour[slot], j.ifindex);
	return deliver(skb, j.ep, j.ifindex);
}

/* Gives a new connection to the listener of its family; nothing else is let in. */
static __always_inline int to_listener(struct bpf_sk_lookup *ctx, void *listeners)
{
	__u32 key = ctx->family == AF_INET6;
	struct bpf_sock *sk;
	long err;

	if (ctx->protocol != IPPROTO_TCP)
		return SK_DROP;
	sk = bpf_map_lookup_elem(listeners, &key);
	if (!sk)
		return SK_DROP;
	err = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	return err ? SK_DROP : SK_PASS;
}
