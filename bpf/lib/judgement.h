/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* One judgement: one packet, at one endpoint, in one direction. */
#pragma once

#include "abi.h"
#include "packet.h"

/* All that is known of the packet while it is judged. It lies on the stack of
 * the entry point; every step fills in what it finds. */
struct judgement {
	struct packet packet;
	struct weir_ct_key key;
	__u64 word;		  /* read once a packet */
	struct weir_ct *ct;	  /* or NULL */
	struct weir_endpoint *ep; /* NULL until it is needed */
	__u32 ifindex;
	__u32 endpoint_id;
	__u32 row;
	__u32 peer;
	__u32 class_id;
	__u32 verdict;
	__u32 slot;	    /* enum weir_slot: which side of the flow the pod is */
	__u16 port;	    /* that was judged, host byte order */
	bool to_pod;	    /* the hook: the packet goes to the pod, or comes from it */
	bool src_first;	    /* packet.src is key.addr[0] */
	bool volatile_peer; /* the address stands for another: do not remember it */
};

static __always_inline __u32 side_of(const struct judgement *j)
{
	return j->word & 1;
}

/* The pod began the flow: this is its egress. */
static __always_inline bool pod_initiates(const struct judgement *j)
{
	return j->slot == WEIR_SLOT_EGRESS;
}

/* The packet goes the way that the flow's first went. */
static __always_inline bool goes_forward(const struct judgement *j)
{
	return pod_initiates(j) == !j->to_pod;
}

/* Says which end began the flow. */
static __always_inline void set_initiator(struct judgement *j, bool src_initiates)
{
	j->slot = src_initiates == !j->to_pod ? WEIR_SLOT_EGRESS : WEIR_SLOT_INGRESS;
}

static __always_inline const struct weir_addr *peer_addr(const struct judgement *j)
{
	return j->to_pod ? &j->packet.src : &j->packet.dst;
}

static __always_inline const struct weir_addr *pod_addr(const struct judgement *j)
{
	return j->to_pod ? &j->packet.dst : &j->packet.src;
}
