/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What runs on the host's end of every pod's veth: the judgement of what the pod
 * sends and of what it gets.
 */
#include "lib/pod.h"

SEC("tcx/ingress")
int from_pod(struct __sk_buff *skb)
{
	if (skb->mark == MARK_REENTRY) {
		skb->mark = 0;
		return TCX_NEXT;
	}
	return at_pod(skb, false);
}

SEC("tcx/egress")
int to_pod(struct __sk_buff *skb)
{
	return at_pod(skb, true);
}
