/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What is needed of the kernel beyond its UAPI headers: a few fields of its own
 * structures, found at load by their names, and kfuncs, weak where a kernel may
 * lack them.
 */
#pragma once

#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Of linux/bpf.h since 6.6. */
#define TCX_NEXT (-1)
#define TCX_DROP 2

#define AF_INET6 10
#define PACKET_HOST 0

struct sk_buff {
	unsigned long _nfct; /* struct nf_conn *, low 3 bits ip_conntrack_info */
} __attribute__((preserve_access_index));

union nf_inet_addr {
	__u32 all[4];
};

struct nf_conntrack_man {
	union nf_inet_addr u3;
	union {
		__be16 all;
	} u;
	__u16 l3num; /* AF_INET or AF_INET6 */
} __attribute__((preserve_access_index));

struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
} __attribute__((preserve_access_index));

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
} __attribute__((preserve_access_index));

struct ip_ct_tcp_state {
	__u8 flags;
} __attribute__((preserve_access_index));

struct ip_ct_tcp {
	struct ip_ct_tcp_state seen[2];
} __attribute__((preserve_access_index));

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
} __attribute__((preserve_access_index));

struct nf_conn {
	struct nf_conntrack_tuple_hash tuplehash[2];
	union nf_conntrack_proto proto;
} __attribute__((preserve_access_index));

/* As long as all kernels take it; since 6.10 they take one with a zone as well. */
struct bpf_ct_opts___weir {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};
_Static_assert(sizeof(struct bpf_ct_opts___weir) == 12, "NF_BPF_CT_OPTS_SZ of 6.6");

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple,
					 __u32 tuple_size, struct bpf_ct_opts___weir *opts,
					 __u32 opts_size) __ksym __weak;
extern void bpf_ct_release(struct nf_conn *ct) __ksym __weak;
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym __weak;
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;
