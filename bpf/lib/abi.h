/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The kernel's state: every key and value that the programs share with the
 * enforcer and the proxy. Numbers are in host byte order and addresses and
 * ports on the wire in network byte order, unless a field says otherwise.
 * Addresses are 16 bytes; IPv4 is mapped (::ffff:a.b.c.d).
 *
 * Pins: <bpffs>/weir/v1/<map name>. A change that an older enforcer could not
 * read needs a new layout number.
 */
#pragma once

#include <linux/types.h>

#define WEIR_LAYOUT 1

/* Verdicts. Zero denies. From WEIR_FIRST_RULE_SET on: number of a rule set. */
enum weir_verdict {
	WEIR_DENY = 0,
	WEIR_ALLOW = 1,
	WEIR_FIRST_RULE_SET = 2,
};

/* Peer numbers, classes and rows that mean something of themselves. A class that
 * was never written is WEIR_CLASS_NONE, so an unknown peer, and a peer without a
 * class, are dropped as pending. */
enum weir_number {
	WEIR_PEER_NONE = 0,
	WEIR_CLASS_NONE = 0,
	/* The class of a row's default cell: the port map of every class >= 1
	 * that has no cell of its own. */
	WEIR_CLASS_DEFAULT = 0xffffffff,
	/* Row of an endpoint that is attached but closed. */
	WEIR_ROW_CLOSED = 0,
	/* Row of an endpoint and direction that no policy selects: all is
	 * allowed but what is pending, spoofed or malformed. */
	WEIR_ROW_OPEN = 1,
	WEIR_FIRST_ROW = 2,
};

/* Index of the slots of a conntrack entry. */
enum weir_slot {
	WEIR_SLOT_EGRESS = 0,  /* the initiator's egress */
	WEIR_SLOT_INGRESS = 1, /* the responder's ingress */
};

struct weir_addr {
	__u8 a[16];
};

/* What judges packets of one interface. Key of weir_endpoints: ifindex. */
struct weir_endpoint {
	__u32 row_egress[2];  /* by side */
	__u32 row_ingress[2]; /* by side */
	__u32 id;	      /* of this endpoint on this node, never reused */
	__u32 flags;
	__u8 pod_mac[6];
	__u8 host_mac[6];
	__u32 n_addrs;
	struct weir_addr addrs[4]; /* the endpoint's own; a source must be one */
};

/* Key of weir_prefixes; prefix_len counts bits of the 16-byte address, so an
 * IPv4 prefix /n has 96 + n. */
struct weir_prefix_key {
	__u32 prefix_len;
	struct weir_addr addr;
};

/* Value of weir_addresses (full addresses, hash) and weir_prefixes (LPM). */
enum weir_addr_flag {
	WEIR_ADDR_HOST = 1,	   /* an address of this node */
	WEIR_ADDR_REMOTE_NODE = 2, /* an address of another node */
	WEIR_ADDR_PENDING = 4,	   /* known, but not to be judged yet */
	WEIR_ADDR_CLUSTER = 8,	   /* of a cluster range, no record: pending */
};
struct weir_peer_ref {
	__u32 peer;
	__u32 flags;
};

/* weir_classes: array of __u32 class, index side * max_peers + peer. */

struct weir_cell_key {
	__u32 side; /* 0 or 1 */
	__u32 row;
	__u32 class_id;
};

/* A port map is n ranges of weir_ranges from first on (index without side). */
struct weir_cell {
	__u32 first;
	__u32 n; /* 0: everything is denied */
};

/* weir_ranges: array, index side * max_ranges + i. One range goes from start to
 * the next range's start; starts ascend and the first is 0, so every packet
 * is in one. start = protocol << 16 | port (ICMP: type; no ports: 0). */
struct weir_range {
	__u32 start;
	__u32 verdict;
};

/* weir_services: what (address, protocol, port) leads to. */
struct weir_service_key {
	__u32 side;
	struct weir_addr addr;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

enum weir_limit { WEIR_MAX_BACKENDS = 64 }; /* of one service */
struct weir_service {
	__u32 first; /* in weir_backends, index side * max_backends + first + i */
	__u32 n;     /* distinct (peer, port); 0: no backend, or too many: deny */
};

/* A backend as the judgement needs it: deduplicated by peer and port. */
struct weir_backend {
	__u32 peer;
	__u16 port; /* host byte order */
	__u16 pad;
};

/* weir_backend_sets: rule set to use when the backends of a service demand
 * several: key is the sorted pair, folded left; value the number of the
 * combined rule set. Missing: deny. */
struct weir_rule_set_pair {
	__u32 a; /* a < b */
	__u32 b;
};

/* Conntrack. The lesser of (address, port), compared as bytes, stands first, so
 * both directions of a flow have one key. */
struct weir_ct_key {
	struct weir_addr addr[2];
	__be16 port[2];
	__u8 protocol;
	__u8 icmp_type; /* ICMP: the request's type, and port is its id; else 0 */
	__u8 pad[2];
};

/* One judgement. It counts only for the interface and the word it was made
 * under. verdict is never WEIR_DENY in a slot that counts. */
struct weir_ct_slot {
	__u64 word;
	__u32 ifindex; /* 0: the slot is empty */
	__u32 verdict;
};

enum weir_ct_flag {
	WEIR_CT_A_INITIATES = 0x01,	/* addr[0] sent the SYN, or the first packet */
	WEIR_CT_GUESSED = 0x02,		/* orientation unknown */
	WEIR_CT_PROXIED_EGRESS = 0x04,	/* fixed at the SYN: through weir-out */
	WEIR_CT_PROXIED_INGRESS = 0x08, /* fixed at the SYN: through weir-in */
	WEIR_CT_SEEN_REPLY = 0x10,
	WEIR_CT_FIN_A = 0x20,
	WEIR_CT_FIN_B = 0x40,
	WEIR_CT_RST = 0x80,
	WEIR_CT_DENIED = 0x100, /* denied since it was made: to be cut */
	/* What has passed that side though it was denied, and does not again: a
	 * reset, a bare ACK that answered it, the reset that followed. */
	WEIR_CT_RESET_EGRESS = 0x200,
	WEIR_CT_RESET_INGRESS = 0x400,
	WEIR_CT_ESTABLISHED = 0x800, /* the initiator has spoken after the reply */
	WEIR_CT_ANSWERED_EGRESS = 0x800,
	WEIR_CT_ANSWERED_INGRESS = 0x1000,
	WEIR_CT_RESET_TWICE_EGRESS = 0x2000,
	WEIR_CT_RESET_TWICE_INGRESS = 0x4000,
};
struct weir_ct {
	struct weir_ct_slot slot[2];
	__u32 flags;
	__u32 last_seen;   /* seconds of CLOCK_MONOTONIC, a few off after years */
	__u32 endpoint[2]; /* weir_endpoint.id that made each slot; 0: none */
	/* Of the pod's neighbour towards the network, as its SYN had it: a proxied
	 * flow leaves with that destination. */
	__u8 neighbour[2][6];
	__u32 owner; /* weir_endpoint.id whose quota the entry takes; 0: none */
	/* 1 while a slot is written; who finds it so does not write. Who copies
	 * an entry into another map sets it to 0. */
	__u32 busy;
	__u32 tick; /* the programs' own: a cheaper clock, when last_seen was set */
};
_Static_assert(sizeof(struct weir_ct_key) == 40, "no hidden padding");
_Static_assert(sizeof(struct weir_ct) == 72, "no hidden padding");

/* weir_quota_used: entries of weir_ct_tcp ever made for an endpoint, by its id;
 * only the programs write it. weir_quota_freed: entries removed; only user space
 * writes it. Their difference is what the endpoint holds; at ct_quota (rodata) no
 * more are made and each of its packets is judged. Both are __u32 and wrap. */

/* Key of weir_fragments: a datagram in pieces. The value has its first
 * fragment's ports. */
struct weir_fragment_key {
	struct weir_addr src, dst;
	__u32 id;      /* as on the wire */
	__u8 protocol; /* as each fragment's header says */
	__u8 pad[3];
};
struct weir_fragment {
	__be16 sport;
	__be16 dport;
	__u8 protocol; /* behind all extension headers */
	__u8 icmp_type;
	__u8 pad[2];
};

/* Why a packet was dropped; also the metric's label and the flow's reason. The
 * names in Go are made from these, so add at the end only. */
enum weir_reason {
	WEIR_REASON_NONE = 0,
	/* Port maps hold verdicts only, so the kernel says NO_RULE for both of
	 * these; who knows the attribution of the range says which. */
	WEIR_REASON_NO_RULE = 1,	/* isolated, and no rule allows it */
	WEIR_REASON_DENIED = 2,		/* a rule denies it */
	WEIR_REASON_PENDING = 3,	/* the peer's identity is not in force yet */
	WEIR_REASON_CLOSED = 4,		/* the endpoint has no policy yet */
	WEIR_REASON_SPOOFED_SOURCE = 5, /* not an address of the sending pod */
	WEIR_REASON_NOT_FOR_POD = 6,	/* not an address of the receiving pod */
	WEIR_REASON_BAD_ETHERTYPE = 7,	/* neither ARP, IPv4 nor IPv6, or tagged */
	WEIR_REASON_MALFORMED = 8,
	WEIR_REASON_TUNNEL = 9,		  /* tunnel protocol or port to a node */
	WEIR_REASON_FRAGMENT = 10,	  /* a later fragment without its first */
	WEIR_REASON_NOT_PROXIED = 11,	  /* out of a proxy namespace without a slot */
	WEIR_REASON_NO_BACKEND = 12,	  /* a Service without backends */
	WEIR_REASON_BACKENDS_DIFFER = 13, /* a Service's backends are judged unlike */
	WEIR_REASON_UNKNOWN_FLOW = 14,	  /* middle of a flow that must be seen whole */
	WEIR_REASON_NO_PROXY = 15,	  /* HTTP rules, but no way to the proxy */
	WEIR_REASON_ICMP_ERROR = 16,	  /* about a flow that does not exist */
	WEIR_REASON_HTTP_STARTED = 17,	  /* a plain connection now has HTTP rules */
	WEIR_REASON_INTERNAL = 18,	  /* a map that must be there is not */
	WEIR_REASON_BAD_ARP = 19,
	WEIR_REASON_BAD_NDP = 20, /* a router's, or another's, or from afar */
	WEIR_REASON_COUNT,
};

enum weir_event_kind {
	WEIR_EVENT_DROP = 1,
	WEIR_EVENT_ALLOW = 2, /* a new judgement that allows or proxies */
};

/* Dropped and newly judged packets, in weir_drops and weir_flows (ring buffers). */
struct weir_event {
	__u64 time; /* bpf_ktime_get_boot_ns */
	__u64 word;
	struct weir_addr src, dst;
	__be16 sport, dport;
	__u8 protocol;
	__u8 kind;    /* enum weir_event_kind */
	__u8 reason;  /* enum weir_reason */
	__u8 ingress; /* 1: the judged endpoint's ingress, 0: its egress */
	__u32 ifindex;
	__u32 endpoint; /* weir_endpoint.id */
	__u32 peer;
	__u32 class_id;
	__u32 row;
	__u32 verdict;
	__u16 port; /* that was judged, host byte order (a backend's, by Service) */
	__u8 tcp_flags;
	__u8 pad[5];
};

/* weir_counters: per-CPU array of __u64 packets, index reason * 2 + ingress;
 * WEIR_REASON_NONE counts what passed or was steered. weir_lost: per-CPU array
 * of __u64, events that found their ring full: [0] drops, [1] flows.
 *
 * weir_listeners_in, weir_listeners_out: SOCKMAP, key 0 IPv4, 1 IPv6.
 *
 * weir_word: array of one __u64, mmapable. */

/* weir_config: array of one, written by the enforcer at start. */
struct weir_config {
	__u32 in_ifindex;  /* the node's end of the veth into weir-in; 0: none */
	__u32 out_ifindex; /* into weir-out */
	__s32 in_nsid;	   /* of weir-in as the node's namespace numbers it; < 0: none */
	__s32 out_nsid;
	__u32 allow_tunnels; /* 1: tunnel protocols to nodes are judged like the rest */
	/* Until then, as last_seen counts, pods have TCP connections that no map
	 * has heard of: a packet of an unknown one may be an answer. 0: none do. */
	__u32 pick_up_until;
};
