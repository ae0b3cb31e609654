/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* One packet at a pod's veth, from the frame to the verdict. */
#pragma once

#include "conntrack.h"
#include "fragment.h"
#include "icmp.h"
#include "neighbour.h"
#include "service.h"
#include "steer.h"

/* Flows without connections are forgotten after as long a silence, seconds. */
#define CT_ANY_TIMEOUT 120

static __always_inline int pass(const struct judgement *j, bool proxied)
{
	if (j->packet.flags & PACKET_FIRST_FRAGMENT)
		remember_fragment(&j->packet);
	if (proxied)
		return steer(j);
	return TCX_NEXT;
}

/* The flag of a packet by which the ends of a forbidden connection hear of its
 * end; 0: it is none, or has been. If the last data was dropped, the reset is
 * ahead of what the peer has received: it answers with a bare ACK (RFC 5961,
 * 3.2), and to that comes a reset with the number it wants. */
static __always_inline __u32 last_word(struct __sk_buff *skb, const struct judgement *j,
				       __u32 flags)
{
	__u32 reset = ct_reset_flag(j->slot), answered = ct_answered_flag(j->slot), next;

	if (j->packet.tcp_flags & (TCP_SYN | TCP_FIN))
		return 0;
	if (!(j->packet.tcp_flags & TCP_RST))
		next = flags & reset ? answered : 0;
	else if (flags & answered)
		next = ct_reset_twice_flag(j->slot);
	else
		next = reset;
	return next & ~flags && is_bare(skb, &j->packet) ? next : 0;
}

/* Denied. A flow that conntrack holds may still be reset, so that the ends of a
 * forbidden connection hear of it (threat P9). */
static __noinline int deny(struct __sk_buff *skb, struct judgement *j, enum weir_reason reason,
			   bool begins)
{
	__u32 flags, last;

	if (!ct_holds(j) || begins || j->packet.flags & PACKET_ABOUT_FLOW)
		return tell_drop(j, reason);
	flags = j->ct->flags;
	last = last_word(skb, j, flags);
	if (last) {
		__sync_fetch_and_or(&j->ct->flags, WEIR_CT_DENIED | WEIR_CT_RST | last);
		count(WEIR_REASON_NONE, j->slot == WEIR_SLOT_INGRESS);
		return pass(j, flags & ct_proxied_flag(j->slot));
	}
	if (!(flags & WEIR_CT_DENIED))
		__sync_fetch_and_or(&j->ct->flags, WEIR_CT_DENIED);
	return tell_drop(j, reason);
}

/* Writes the judgement down, and tells of it if it is new. False: no room. */
static __noinline bool remember(struct __sk_buff *skb, struct judgement *j, __u32 flags,
				bool begins)
{
	struct weir_ct_slot *slot;
	__u32 clear = 0;
	bool news = true, turned;

	if (goes_forward(j) == j->src_first)
		flags |= WEIR_CT_A_INITIATES;
	if (!j->ct && ct_insert(skb, j, flags)) {
		tell_flow(j);
		return true;
	}
	if (!j->ct)
		j->ct = ct_lookup(&j->key); /* another CPU was first */
	if (!j->ct) {
		if (begins)
			tell_flow(j);
		return false;
	}
	slot = &j->ct->slot[j->slot & 1];
	turned = ct_src_initiates(j, j->ct->flags) != goes_forward(j);
	if (turned && !begins) /* another CPU was first, and may know better */
		return false;
	if (turned)
		clear = ~0U;
	else if (begins)
		clear = WEIR_CT_GUESSED | WEIR_CT_FIN_A | WEIR_CT_FIN_B | WEIR_CT_RST |
			WEIR_CT_SEEN_REPLY | WEIR_CT_ESTABLISHED | WEIR_CT_DENIED | ct_reset_flag(j->slot) |
			ct_answered_flag(j->slot) | ct_reset_twice_flag(j->slot) |
			ct_proxied_flag(j->slot);
	else
		news = slot->ifindex != j->ifindex || slot->verdict != j->verdict;
	if (!ct_write(skb, j, j->ct, clear, flags))
		return false;
	if (news)
		tell_flow(j);
	return true;
}

/* Allowed, or to be read by the proxy. Which of the two a connection is was
 * fixed when it began; flags has what is known of that. */
static __noinline int admit(struct __sk_buff *skb, struct judgement *j, __u32 flags, bool begins)
{
	__u32 proxied_flag = ct_proxied_flag(j->slot);
	bool http = j->verdict >= WEIR_FIRST_RULE_SET, stored = false;

	if (http && j->packet.protocol != IPPROTO_TCP)
		return tell_drop(j, WEIR_REASON_NO_PROXY);
	if (begins)
		flags = http ? proxied_flag : 0;
	if (http && !(flags & proxied_flag))
		return deny(skb, j,
			    ct_holds(j) ? WEIR_REASON_HTTP_STARTED : WEIR_REASON_UNKNOWN_FLOW,
			    begins);
	flags &= proxied_flag | WEIR_CT_GUESSED;
	if (!j->volatile_peer && !(j->packet.flags & PACKET_ABOUT_FLOW)) {
		stored = remember(skb, j, flags, begins);
		/* The proxy's own packets would find no slot to match. */
		if (!stored && begins && http)
			return tell_drop(j, WEIR_REASON_NO_PROXY);
	}
	count(WEIR_REASON_NONE, j->slot == WEIR_SLOT_INGRESS);
	return pass(j, flags & proxied_flag);
}

/* Weir may have missed how a connection began. Else a packet that no SYN came
 * before is its sender's own doing, and passes by the sender's rights or not. */
static __always_inline bool may_pick_up(void)
{
	struct weir_config *c = config();

	return c && c->pick_up_until > coarse_seconds();
}

/* Finds out which end began a flow that has no entry. Returns conntrack flags. */
static __noinline int orient(struct __sk_buff *skb, struct judgement *j)
{
	const struct packet *p = &j->packet;
	struct kernel_flow flow = {};
	bool known;

	set_initiator(j, true);
	known = find_kernel_flow(skb, p, j->to_pod, &flow);
	if (known)
		set_initiator(j, !flow.reply);
	else if (p->protocol == IPPROTO_TCP)
		known = orient_by_proxy(skb, j);
	if (known)
		return p->protocol == IPPROTO_TCP && proxied_already(skb, j)
			       ? ct_proxied_flag(j->slot)
			       : 0;
	if (p->flags & PACKET_ICMP_REPLY)
		return -WEIR_REASON_UNKNOWN_FLOW;
	if (p->protocol != IPPROTO_TCP)
		return 0;
	if (p->tcp_flags & TCP_SYN && may_pick_up()) /* with ACK: an answer */
		set_initiator(j, false);
	return WEIR_CT_GUESSED;
}

/* The flags of an entry, by which j->slot is set. If this side of the flow was
 * not seen to begin, the proxy may know more than the other side wrote down. */
static __always_inline int recall(struct __sk_buff *skb, const struct judgement *j)
{
	int flags = j->ct->flags & 0xffff;

	if (j->packet.protocol == IPPROTO_TCP && !ct_holds(j) && proxied_already(skb, j))
		flags |= ct_proxied_flag(j->slot);
	return flags;
}

/* Before anything is written: the pod's own source, or its own destination. */
static __always_inline int check_own(struct judgement *j)
{
	j->ep = bpf_map_lookup_elem(&weir_endpoints, &j->ifindex);
	if (!j->ep)
		return -WEIR_REASON_CLOSED;
	j->endpoint_id = j->ep->id;
	if (!owns(j->ep, pod_addr(j)))
		return j->to_pod ? -WEIR_REASON_NOT_FOR_POD : -WEIR_REASON_SPOOFED_SOURCE;
	return 0;
}

/* Tries the other end of a flow whose beginning is a guess. If it is denied so as
 * well, the first judgement is the one to tell of. */
static __noinline int judge_turned(struct __sk_buff *skb, struct judgement *j, int denied)
{
	__u32 row = j->row, peer = j->peer, class_id = j->class_id;
	__u16 port = j->port;
	int v;

	j->slot ^= 1;
	v = judge(skb, j);
	if (v > 0)
		return v;
	j->slot ^= 1;
	j->row = row;
	j->peer = peer;
	j->class_id = class_id;
	j->port = port;
	return denied;
}

/* Judges a packet that no slot answers for. begins: it is the first of a flow. */
static __noinline int judge_anew(struct __sk_buff *skb, struct judgement *j, bool begins)
{
	int flags = 0, v;

	v = check_own(j);
	if (v)
		return tell_drop(j, -v);
	if (j->packet.flags & PACKET_ABOUT_FLOW && !ct_holds(j))
		return tell_drop(j, WEIR_REASON_ICMP_ERROR);
	if (begins)
		set_initiator(j, true);
	else if (j->ct)
		flags = recall(skb, j);
	else
		flags = orient(skb, j);
	if (flags < 0)
		return tell_drop(j, -flags);
	v = judge(skb, j);
	if (v < 0 && !j->ct && flags & WEIR_CT_GUESSED && may_pick_up())
		v = judge_turned(skb, j, v);
	if (v < 0)
		return deny(skb, j, -v, begins);
	j->verdict = v;
	return admit(skb, j, flags, begins);
}

/* Parses, and brings pieces and errors to their flow. */
static __always_inline int read_packet(struct __sk_buff *skb, struct judgement *j)
{
	struct packet *p = &j->packet;
	int err;

	err = parse(skb, p);
	if (err)
		return err;
	if (p->flags & PACKET_LATER_FRAGMENT)
		err = join_fragment(p);
	else if (p->flags & PACKET_ICMP_ERROR)
		err = follow_icmp_error(skb, p, j->to_pod);
	return err;
}

/* A flow without connections that was silent for long begins anew. */
static __always_inline bool expired(const struct judgement *j, const struct weir_ct *ct)
{
	if (j->packet.protocol == IPPROTO_TCP || j->packet.flags & PACKET_ABOUT_FLOW ||
	    ct->tick == tick())
		return false;
	return coarse_seconds() - ct->last_seen > CT_ANY_TIMEOUT;
}

/* A hit: the slot was written on this interface, under this word. */
static __always_inline bool hits(const struct judgement *j, const struct weir_ct *ct)
{
	const volatile struct weir_ct_slot *slot = &ct->slot[j->slot & 1];

	return slot->ifindex == j->ifindex && slot->word == j->word;
}

static __always_inline int at_pod(struct __sk_buff *skb, bool to_pod)
{
	struct judgement j = {
		.to_pod = to_pod,
		.slot = to_pod ? WEIR_SLOT_INGRESS : WEIR_SLOT_EGRESS,
		.ifindex = skb->ifindex,
	};
	bool begins, proxied;
	__u32 zero = 0;
	__u64 *word;
	int err;

	word = bpf_map_lookup_elem(&weir_word, &zero);
	if (!word)
		return tell_drop(&j, WEIR_REASON_INTERNAL);
	j.word = *(volatile __u64 *)word;
	if (skb->protocol == bpf_htons(ETH_P_ARP) && !skb->vlan_present)
		return judge_arp(skb, &j);
	err = read_packet(skb, &j);
	if (err)
		return tell_drop(&j, -err);
	if (is_neighbour_discovery(&j.packet))
		return judge_ndp(skb, &j);
	ct_set_key(&j);
	j.ct = ct_lookup(&j.key);
	begins = is_syn(&j.packet);
	if (j.ct) {
		begins = begins || expired(&j, j.ct);
		set_initiator(&j, ct_src_initiates(&j, *(volatile __u32 *)&j.ct->flags));
	}
	if (!j.ct || begins || !hits(&j, j.ct))
		return judge_anew(skb, &j, begins);

	proxied = *(volatile __u32 *)&j.ct->flags & ct_proxied_flag(j.slot);
	if (!(j.packet.flags & PACKET_ABOUT_FLOW))
		ct_touch(&j, j.ct, !proxied || pod_initiates(&j) != to_pod);
	count(WEIR_REASON_NONE, j.slot == WEIR_SLOT_INGRESS);
	return pass(&j, proxied);
}
