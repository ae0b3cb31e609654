/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What runs on the host's end of every pod's veth: the judgement of its egress
 * and of its ingress.
 */
#include "lib/kernel.h"
#include "lib/maps.h"

SEC("tcx/ingress")
int from_pod(struct __sk_buff *skb)
{
	(void)skb;
	return TCX_DROP;
}

SEC("tcx/egress")
int to_pod(struct __sk_buff *skb)
{
	(void)skb;
	return TCX_DROP;
}
