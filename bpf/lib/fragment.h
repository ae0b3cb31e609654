/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Datagrams in pieces: later ones are judged by the ports of their first, once
 * that has passed. */
#pragma once

#include "judgement.h"
#include "maps.h"

static __always_inline void fragment_key(const struct packet *p, struct weir_fragment_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->src = p->src;
	key->dst = p->dst;
	key->id = p->fragment_id;
	key->protocol = p->fragment_protocol;
}

static __noinline void remember_fragment(const struct packet *p)
{
	struct weir_fragment_key key __attribute__((aligned(8)));
	struct weir_fragment first = {
		.sport = p->sport,
		.dport = p->dport,
		.protocol = p->protocol,
		.icmp_type = p->icmp_type,
	};

	fragment_key(p, &key);
	bpf_map_update_elem(&weir_fragments, &key, &first, BPF_ANY);
}

/* Makes a later fragment look like a packet from the middle of its flow. */
static __noinline int join_fragment(struct packet *p)
{
	struct weir_fragment_key key __attribute__((aligned(8)));
	struct weir_fragment *first;

	fragment_key(p, &key);
	first = bpf_map_lookup_elem(&weir_fragments, &key);
	if (!first)
		return -WEIR_REASON_FRAGMENT;
	p->sport = first->sport;
	p->dport = first->dport;
	p->protocol = first->protocol;
	p->icmp_type = first->icmp_type;
	p->tcp_flags = TCP_ACK;
	return 0;
}
