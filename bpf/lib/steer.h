/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The way into the proxy's namespaces and out of them.
 *
 * weir-out serves pods that initiate, weir-in pods that respond: each has two
 * legs of one 5-tuple, one towards its pod and one towards the network. So a
 * flow proxied on both sides of one node has its middle leg in both namespaces,
 * and no tuple twice in either.
 */
#pragma once

#include "conntrack.h"
#include "event.h"
#include "judge.h"

/* On frames that a proxy's namespace sends into the ingress of a pod's own veth,
 * as that pod; from_pod takes it off. What a pod sets itself is gone when its
 * packet has crossed the veth. */
#define MARK_REENTRY 0x77656972

static __always_inline int steer(const struct judgement *j)
{
	struct weir_config *c = config();
	__u32 ifindex;

	if (!c)
		return tell_drop(j, WEIR_REASON_INTERNAL);
	ifindex = pod_initiates(j) ? c->out_ifindex : c->in_ifindex;
	if (ifindex == 0)
		return tell_drop(j, WEIR_REASON_NO_PROXY);
	/* Into the other end at once where that is possible: only at ingress. */
	return j->to_pod ? bpf_redirect(ifindex, 0) : bpf_redirect_peer(ifindex, 0);
}

/* What a look-up finds for a tuple that no connection has (threat P21). */
static __always_inline bool is_connection(__u32 state)
{
	return state != BPF_TCP_LISTEN && state != BPF_TCP_CLOSE;
}

/* A connection of the proxy in namespace nsid gets packets with this tuple. */
__noinline int proxy_has(struct __sk_buff *skb, const struct packet *p, __s32 nsid)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	bool found;

	if (!p || nsid < 0)
		return false;
	fill_tuple(p, &t);
	if (p->flags & PACKET_IPV6)
		sk = bpf_skc_lookup_tcp(skb, &t, sizeof(t.ipv6), nsid, 0);
	else
		sk = bpf_skc_lookup_tcp(skb, &t, sizeof(t.ipv4), nsid, 0);
	if (!sk)
		return false;
	found = is_connection(sk->state);
	bpf_sk_release(sk);
	return found;
}

/* The pod's namespace of the proxy has a connection of this packet's flow. */
static __always_inline bool proxied_already(struct __sk_buff *skb, const struct judgement *j)
{
	struct weir_config *c = config();

	return c && proxy_has(skb, &j->packet, pod_initiates(j) ? c->out_nsid : c->in_nsid);
}

/* Where ports that clients take begin, usually. */
#define EPHEMERAL_PORTS 32768

/* Says which end began a TCP flow that neither Weir nor the kernel has an entry
 * of, if the proxy has a connection of it. On one node the connection may be the
 * other pod's, and a namespace has a leg for either direction, so that only the
 * ports tell client from server. False: no connection. */
static __always_inline bool orient_by_proxy(struct __sk_buff *skb, struct judgement *j)
{
	const struct packet *p = &j->packet;
	struct weir_config *c = config();
	bool in, out, low_sport = bpf_ntohs(p->sport) < EPHEMERAL_PORTS;

	if (!c)
		return false;
	out = proxy_has(skb, p, c->out_nsid);
	in = proxy_has(skb, p, c->in_nsid);
	if (!out && !in)
		return false;
	if (low_sport != (bpf_ntohs(p->dport) < EPHEMERAL_PORTS))
		set_initiator(j, !low_sport);
	else
		j->slot = out ? WEIR_SLOT_EGRESS : WEIR_SLOT_INGRESS;
	return true;
}
