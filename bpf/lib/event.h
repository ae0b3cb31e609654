/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Counting and telling what was judged. */
#pragma once

#include "judgement.h"
#include "maps.h"

static __always_inline void count(enum weir_reason reason, bool ingress)
{
	__u32 index = reason * 2 + ingress;
	__u64 *n = bpf_map_lookup_elem(&weir_counters, &index);

	if (n)
		(*n)++;
}

static __always_inline void count_lost(__u32 ring)
{
	__u64 *n = bpf_map_lookup_elem(&weir_lost, &ring);

	if (n)
		(*n)++;
}

static __always_inline void fill_event(struct weir_event *e, const struct judgement *j,
				       enum weir_reason reason)
{
	const struct packet *p = &j->packet;

	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_boot_ns();
	e->word = j->word;
	e->src = p->src;
	e->dst = p->dst;
	e->sport = p->sport;
	e->dport = p->dport;
	e->protocol = p->protocol;
	e->kind = reason ? WEIR_EVENT_DROP : WEIR_EVENT_ALLOW;
	e->reason = reason;
	e->ingress = j->slot == WEIR_SLOT_INGRESS;
	e->ifindex = j->ifindex;
	e->endpoint = j->endpoint_id;
	e->peer = j->peer;
	e->class_id = j->class_id;
	e->row = j->row;
	e->verdict = j->verdict;
	e->port = j->port;
	e->tcp_flags = p->tcp_flags;
}

static __noinline int tell_drop(const struct judgement *j, enum weir_reason reason)
{
	struct weir_event *e;

	count(reason, j->slot == WEIR_SLOT_INGRESS);
	e = bpf_ringbuf_reserve(&weir_drops, sizeof(*e), 0);
	if (!e) {
		count_lost(0);
		return TCX_DROP;
	}
	fill_event(e, j, reason);
	bpf_ringbuf_submit(e, 0);
	return TCX_DROP;
}

static __noinline void tell_flow(const struct judgement *j)
{
	struct weir_event *e = bpf_ringbuf_reserve(&weir_flows, sizeof(*e), 0);

	if (!e) {
		count_lost(1);
		return;
	}
	fill_event(e, j, WEIR_REASON_NONE);
	bpf_ringbuf_submit(e, 0);
}
