/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Weir's own conntrack: what was judged, for the interface and the word it was
 * judged under. TCP lives in a map that does not evict, in which every endpoint
 * has a quota; what finds no room is judged packet by packet.
 */
#pragma once

#include "judgement.h"
#include "maps.h"

static __always_inline bool lesser_first(const struct packet *p)
{
	const __u64 *s = (const void *)&p->src, *d = (const void *)&p->dst;

	if (s[1] != d[1] && s[0] == d[0]) /* the usual case: IPv4, or one /64 */
		return bpf_be64_to_cpu(s[1]) < bpf_be64_to_cpu(d[1]);
	if (s[0] != d[0])
		return bpf_be64_to_cpu(s[0]) < bpf_be64_to_cpu(d[0]);
	return bpf_ntohs(p->sport) < bpf_ntohs(p->dport);
}

static __always_inline void ct_set_key(struct judgement *j)
{
	const struct packet *p = &j->packet;
	struct weir_ct_key *k = &j->key;
	bool first = lesser_first(p);

	k->addr[0] = first ? p->src : p->dst;
	k->addr[1] = first ? p->dst : p->src;
	*(__u32 *)k->port =
		first ? p->sport | (__u32)p->dport << 16 : p->dport | (__u32)p->sport << 16;
	*(__u32 *)&k->protocol = p->protocol | (__u32)p->icmp_type << 8;
	j->src_first = first;
}

static __always_inline struct weir_ct *ct_lookup(const struct weir_ct_key *key)
{
	if (key->protocol == IPPROTO_TCP)
		return bpf_map_lookup_elem(&weir_ct_tcp, key);
	return bpf_map_lookup_elem(&weir_ct_any, key);
}

static __always_inline bool ct_src_initiates(const struct judgement *j, __u32 flags)
{
	return j->src_first == !!(flags & WEIR_CT_A_INITIATES);
}

/* The slot was written here: conntrack holds this side of the flow. */
static __always_inline bool ct_holds(const struct judgement *j)
{
	return j->ct && j->ct->slot[j->slot & 1].ifindex == j->ifindex;
}

static __always_inline __u32 ct_proxied_flag(__u32 slot)
{
	return slot == WEIR_SLOT_EGRESS ? WEIR_CT_PROXIED_EGRESS : WEIR_CT_PROXIED_INGRESS;
}

static __always_inline __u32 ct_reset_flag(__u32 slot)
{
	return slot == WEIR_SLOT_EGRESS ? WEIR_CT_RESET_EGRESS : WEIR_CT_RESET_INGRESS;
}

static __always_inline __u32 ct_answered_flag(__u32 slot)
{
	return slot == WEIR_SLOT_EGRESS ? WEIR_CT_ANSWERED_EGRESS : WEIR_CT_ANSWERED_INGRESS;
}

static __always_inline __u32 ct_reset_twice_flag(__u32 slot)
{
	return slot == WEIR_SLOT_EGRESS ? WEIR_CT_RESET_TWICE_EGRESS : WEIR_CT_RESET_TWICE_INGRESS;
}

/* CLOCK_MONOTONIC in seconds, by multiplication: ns / 2^26 * (2^26 / 10^9). */
static __always_inline __u32 coarse_seconds(void)
{
	return (bpf_ktime_get_coarse_ns() >> 26) * 1125900 >> 24;
}

/* Moves about once a second, and costs next to nothing to read. */
static __always_inline __u32 tick(void)
{
	return bpf_jiffies64() >> 8;
}

static __always_inline void ct_see(struct weir_ct *ct)
{
	__u32 now = tick();

	if (ct->tick == now)
		return;
	ct->tick = now;
	ct->last_seen = coarse_seconds();
}

/* Notes a packet of a flow that goes on. closes: its FIN and RST end the flow;
 * those of a proxied flow's leg to the network do not. */
static __always_inline void ct_touch(const struct judgement *j, struct weir_ct *ct, bool closes)
{
	__u32 flags = ct->flags, add = 0;

	ct_see(ct);
	if (!ct_src_initiates(j, flags))
		add |= WEIR_CT_SEEN_REPLY;
	else if (flags & WEIR_CT_SEEN_REPLY && !(j->packet.tcp_flags & TCP_SYN))
		add |= WEIR_CT_ESTABLISHED;
	if (closes && j->packet.tcp_flags & TCP_FIN)
		add |= j->src_first ? WEIR_CT_FIN_A : WEIR_CT_FIN_B;
	if (closes && j->packet.tcp_flags & TCP_RST)
		add |= WEIR_CT_RST;
	if (add & ~flags)
		__sync_fetch_and_or(&ct->flags, add);
}

static __always_inline bool quota_take(__u32 endpoint)
{
	__u32 zero = 0, *used, *freed;

	used = bpf_map_lookup_elem(&weir_quota_used, &endpoint);
	if (!used) {
		bpf_map_update_elem(&weir_quota_used, &endpoint, &zero, BPF_NOEXIST);
		used = bpf_map_lookup_elem(&weir_quota_used, &endpoint);
		if (!used)
			return false;
	}
	freed = bpf_map_lookup_elem(&weir_quota_freed, &endpoint);
	if (*used - (freed ? *freed : 0) >= ct_quota)
		return false;
	__sync_fetch_and_add(used, 1);
	return true;
}

static __always_inline void quota_give_back(__u32 endpoint)
{
	__u32 *used = bpf_map_lookup_elem(&weir_quota_used, &endpoint);

	if (used)
		__sync_fetch_and_sub(used, 1);
}

/* The packet's next hop towards the network: where the pod sent it, or who sent
 * it to the pod. */
static __always_inline void load_neighbour(struct __sk_buff *skb, bool to_pod, __u8 mac[6])
{
	bpf_skb_load_bytes(skb, to_pod ? ETH_ALEN : 0, mac, ETH_ALEN);
}

/* Fills an entry's one slot. index is a constant where this is called: the
 * verifier allows no computed place on the stack. */
static __always_inline void ct_fill(struct __sk_buff *skb, const struct judgement *j,
				    struct weir_ct *ct, const __u32 index)
{
	ct->slot[index].word = j->word;
	ct->slot[index].ifindex = j->ifindex;
	ct->slot[index].verdict = j->verdict;
	ct->endpoint[index] = j->endpoint_id;
	load_neighbour(skb, j->to_pod, ct->neighbour[index]);
}

/* Makes an entry with the judgement as its only slot. */
static __noinline bool ct_insert(struct __sk_buff *skb, const struct judgement *j, __u32 flags)
{
	struct weir_ct ct = {
		.flags = flags,
		.last_seen = coarse_seconds(),
		.tick = tick(),
	};
	long err;

	if (pod_initiates(j))
		ct_fill(skb, j, &ct, WEIR_SLOT_EGRESS);
	else
		ct_fill(skb, j, &ct, WEIR_SLOT_INGRESS);
	if (j->key.protocol != IPPROTO_TCP)
		return !bpf_map_update_elem(&weir_ct_any, &j->key, &ct, BPF_NOEXIST);
	if (!quota_take(j->endpoint_id))
		return false;
	ct.owner = j->endpoint_id;
	err = bpf_map_update_elem(&weir_ct_tcp, &j->key, &ct, BPF_NOEXIST);
	if (err)
		quota_give_back(j->endpoint_id);
	return !err;
}

/* Writes the judgement into its slot of an entry that exists. Flags come before
 * the slot counts, and an older word never replaces a newer one. False if it
 * was not written. */
static __noinline bool ct_write(struct __sk_buff *skb, const struct judgement *j,
				struct weir_ct *ct, __u32 clear, __u32 set)
{
	__u32 index = j->slot & 1;
	volatile struct weir_ct_slot *slot = &ct->slot[index];
	bool older;

	if (__sync_val_compare_and_swap(&ct->busy, 0, 1))
		return false;
	older = slot->ifindex == j->ifindex && slot->word > j->word;
	if (!older) {
		slot->ifindex = 0;
		if (clear)
			__sync_fetch_and_and(&ct->flags, ~clear);
		if (set)
			__sync_fetch_and_or(&ct->flags, set);
		if (clear & WEIR_CT_A_INITIATES) /* the flow turned round: begin anew */
			ct->slot[1 - index].ifindex = 0;
		if (set & (WEIR_CT_PROXIED_EGRESS | WEIR_CT_PROXIED_INGRESS))
			load_neighbour(skb, j->to_pod, ct->neighbour[index]);
		ct->endpoint[index] = j->endpoint_id;
		ct_see(ct);
		slot->verdict = j->verdict;
		slot->word = j->word;
		slot->ifindex = j->ifindex;
	}
	__sync_lock_test_and_set(&ct->busy, 0);
	return !older;
}
