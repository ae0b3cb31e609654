/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Egress to a Service's address: it is translated after the pod's veth, so every
 * backend is judged, and what all of them permit is the verdict.
 */
#pragma once

#include "judge.h"

static __always_inline struct weir_service *find_service(const struct judgement *j)
{
	struct weir_service_key key = {
		.side = side_of(j),
		.addr = *peer_addr(j),
		.port = goes_forward(j) ? j->packet.dport : j->packet.sport,
		.protocol = j->packet.protocol,
	};

	return bpf_map_lookup_elem(&weir_services, &key);
}

/* What two backends permit together. */
__noinline int combine_verdicts(int a, int b)
{
	struct weir_rule_set_pair pair = {.a = a < b ? a : b, .b = a < b ? b : a};
	__u32 *both;

	if (a == b)
		return a;
	if (a == -WEIR_REASON_PENDING || b == -WEIR_REASON_PENDING)
		return -WEIR_REASON_PENDING;
	if (a < 0 && b < 0)
		return a;
	if (a < 0 || b < 0)
		return -WEIR_REASON_BACKENDS_DIFFER;
	if (pair.a == WEIR_ALLOW)
		return pair.b;
	both = bpf_map_lookup_elem(&weir_backend_sets, &pair);
	if (!both || *both < WEIR_FIRST_RULE_SET || *both > 0x7fffffff)
		return -WEIR_REASON_BACKENDS_DIFFER;
	return *both;
}

/* Verdict of n backends from first on, in the low half; in the high half the
 * index of the one that decided: one that denies, if any does. */
__noinline __u64 service_verdict(__u32 side, __u32 row, __u32 first, __u32 n, __u32 protocol)
{
	__u32 decider = first;
	int verdict = 0;

	if (n == 0 || n > WEIR_MAX_BACKENDS)
		return (__u32)-WEIR_REASON_NO_BACKEND;
	for (__u32 i = 0; i < WEIR_MAX_BACKENDS && i < n; i++) {
		__u32 index = side * max_backends + first + i;
		struct weir_backend *b = bpf_map_lookup_elem(&weir_backends, &index);
		int v;

		if (!b || first + i >= max_backends)
			return (__u32)-WEIR_REASON_INTERNAL;
		v = cell_verdict(side, row, class_of(side, b->peer), protocol << 16 | b->port);
		if (v < 0)
			decider = first + i;
		verdict = i == 0 ? v : combine_verdicts(verdict, v);
	}
	return (__u64)decider << 32 | (__u32)verdict;
}

/* Judges by service, and notes the backend that decided. A pod that no policy
 * selects does not lose a Service for having too many backends, or none. */
static __always_inline int judge_service(struct judgement *j, const struct weir_service *service)
{
	__u32 side = side_of(j), index;
	struct weir_backend *b;
	__u64 v;

	if (j->row == WEIR_ROW_OPEN)
		return WEIR_ALLOW;
	v = service_verdict(side, j->row, service->first, service->n, j->packet.protocol);
	index = side * max_backends + (v >> 32);
	b = bpf_map_lookup_elem(&weir_backends, &index);
	if (b) {
		j->peer = b->peer;
		j->port = b->port;
		j->class_id = class_of(side, b->peer);
	}
	return (int)v;
}

/* Judges j's flow from the side that j->slot says. */
static __noinline int judge(struct __sk_buff *skb, struct judgement *j)
{
	__u32 side = side_of(j);
	struct weir_peer_ref ref = {};
	struct weir_service *service;
	int found;

	j->row = pod_initiates(j) ? j->ep->row_egress[side & 1] : j->ep->row_ingress[side & 1];
	j->port = judged_port(j);
	j->peer = WEIR_PEER_NONE;
	j->class_id = WEIR_CLASS_NONE;
	if (j->row == WEIR_ROW_CLOSED)
		return -WEIR_REASON_CLOSED;
	found = find_peer(skb, j, &ref);
	j->peer = ref.peer;
	if (!j->to_pod && is_tunnel(&j->packet) &&
	    (ref.flags & (WEIR_ADDR_HOST | WEIR_ADDR_REMOTE_NODE) || is_for_many(peer_addr(j))) &&
	    !tunnels_allowed())
		return -WEIR_REASON_TUNNEL;
	if (pod_initiates(j)) {
		service = find_service(j);
		if (service)
			return judge_service(j, service);
	}
	if (found)
		return found;
	j->class_id = class_of(side, ref.peer);
	return cell_verdict(side, j->row, j->class_id, (__u32)j->packet.protocol << 16 | j->port);
}
