/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What joins the proxy's namespaces, weir-in and weir-out, to the pods: the
 * programs on both ends of their veths, and those that give new connections to
 * the proxy's listeners.
 */
#include "lib/proxy.h"

SEC("tcx/ingress")
int from_proxy_in(struct __sk_buff *skb)
{
	return from_proxy(skb, WEIR_SLOT_INGRESS);
}

SEC("tcx/ingress")
int from_proxy_out(struct __sk_buff *skb)
{
	return from_proxy(skb, WEIR_SLOT_EGRESS);
}

/* On eth0 inside weir-in and weir-out. Frames come with another MAC than its
 * own, so the stack would take them for another host's. */
SEC("tcx/ingress")
int proxy_arrival(struct __sk_buff *skb)
{
	bpf_skb_change_type(skb, PACKET_HOST);
	return TCX_NEXT;
}

SEC("sk_lookup")
int steer_in(struct bpf_sk_lookup *ctx)
{
	return to_listener(ctx, &weir_listeners_in);
}

SEC("sk_lookup")
int steer_out(struct bpf_sk_lookup *ctx)
{
	return to_listener(ctx, &weir_listeners_out);
}
