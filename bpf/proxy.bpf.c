/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What joins the proxy's namespaces, weir-in and weir-out, to the pods: the
 * programs on both ends of their veths, and those that give new connections to
 * the proxy's listeners.
 */
#include "lib/kernel.h"
#include "lib/maps.h"

SEC("tcx/ingress")
int from_proxy_in(struct __sk_buff *skb)
{
	(void)skb;
	return TCX_DROP;
}

SEC("tcx/ingress")
int from_proxy_out(struct __sk_buff *skb)
{
	(void)skb;
	return TCX_DROP;
}

/* On eth0 inside weir-in and weir-out. Frames come with the pod's MAC, so the
 * stack would take them for another host's. */
SEC("tcx/ingress")
int proxy_arrival(struct __sk_buff *skb)
{
	bpf_skb_change_type(skb, 0 /* PACKET_HOST */);
	return TCX_NEXT;
}

static __always_inline int steer(struct bpf_sk_lookup *ctx, void *listeners)
{
	__u32 key = ctx->family == 10 /* AF_INET6 */;
	struct bpf_sock *sk;
	long err;

	if (ctx->protocol != 6 /* TCP */)
		return SK_DROP;
	sk = bpf_map_lookup_elem(listeners, &key);
	if (!sk)
		return SK_DROP;
	err = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	return err ? SK_DROP : SK_PASS;
}

SEC("sk_lookup")
int steer_in(struct bpf_sk_lookup *ctx)
{
	return steer(ctx, &weir_listeners_in);
}

SEC("sk_lookup")
int steer_out(struct bpf_sk_lookup *ctx)
{
	return steer(ctx, &weir_listeners_out);
}
