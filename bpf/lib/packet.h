/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * A frame → struct packet. Headers are copied out, so that it does not matter
 * where the kernel keeps them. What is not understood whole is not passed.
 * Fields that are soon read in one piece are written in one piece: a CPU stalls
 * on the other way round.
 *
 * Parsers return 0, or a negative enum weir_reason. Large ones are global
 * functions, so that the verifier walks them once, for any packet; it does not
 * know there that pointers are never NULL.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>

#include "kernel.h"

#include "abi.h"

enum packet_flag {
	PACKET_IPV6 = 0x01,
	PACKET_FIRST_FRAGMENT = 0x02,
	PACKET_LATER_FRAGMENT = 0x04, /* ports are filled in by its first */
	PACKET_ICMP_REPLY = 0x08,     /* answers a request of icmp_type */
	PACKET_ICMP_ERROR = 0x10,
	PACKET_ABOUT_FLOW = 0x20, /* an ICMP error, seen as a packet of its flow */
};

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* Addresses as in abi.h; ports in network byte order, 0 where there are none,
 * the id of a request or reply in both for ICMP. Offsets are from the frame's
 * start. */
struct packet {
	struct weir_addr src, dst;
	__be16 sport, dport;
	__u8 protocol;
	__u8 tcp_flags;
	__u8 icmp_type; /* of the request, also in its reply */
	__u8 hop_limit; /* IPv6 */
	__u32 flags;
	__u32 l4;  /* offset of the transport header */
	__u32 end; /* offset of the datagram's end */
	__u32 fragment_id;
	__u8 fragment_protocol;
	__u8 pad[7];
} __attribute__((aligned(8)));

static __always_inline bool addr_equal(const struct weir_addr *x, const struct weir_addr *y)
{
	const __u64 *a = (const void *)x, *b = (const void *)y;

	return a[0] == b[0] && a[1] == b[1];
}

static __always_inline void addr_set_ipv4(struct weir_addr *addr, __be32 ipv4)
{
	__u64 *w = (void *)addr;

	w[0] = 0;
	w[1] = (__u64)ipv4 << 32 | bpf_htonl(0xffff);
}
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "as addr_set_ipv4 supposes");

#define MAX_HEADERS 1024 /* bytes of headers that may be read without a copy */

/* A copy by words, where the compiler, told nothing of alignment, would go by
 * bytes. Wherever programs are loaded, the kernel lets them do so. */
static __always_inline void copy_words(void *to, const void *from, const __u32 len)
{
	__u32 i;

#pragma unroll
	for (i = 0; i + 4 <= len; i += 4)
		*(__u32 *)(to + i) = *(const __u32 *)(from + i);
#pragma unroll
	for (; i < len; i++)
		*(__u8 *)(to + i) = *(const __u8 *)(from + i);
}

/* Copies len bytes at offset; both are constants or small. From where the packet
 * begins that is a few loads, from farther away a call. */
static __always_inline long load_bytes(struct __sk_buff *skb, __u32 offset, void *to,
				       const __u32 len)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (offset < MAX_HEADERS && data + offset + len <= end) {
		copy_words(to, data + offset, len);
		return 0;
	}
	return bpf_skb_load_bytes(skb, offset, to, len);
}

static __always_inline bool is_ipv4_mapped(const struct weir_addr *addr)
{
	const __u64 *w = (const void *)addr;

	return w[0] == 0 && (__u32)w[1] == bpf_htonl(0xffff);
}

static __always_inline bool is_syn(const struct packet *p)
{
	return p->protocol == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

#define ICMP_HEADER_LEN 8

/* Pairs of request and reply become their request; errors are marked. */
static __always_inline void classify_icmp(struct packet *p, __u8 type, __be16 id)
{
	bool query = false;

	p->icmp_type = type;
	if (p->protocol == IPPROTO_ICMPV6) {
		query = type == 128 || type == 129;
		if (type < 128)
			p->flags |= PACKET_ICMP_ERROR;
		if (type == 129) {
			p->icmp_type = 128;
			p->flags |= PACKET_ICMP_REPLY;
		}
	} else {
		query = type == 0 || type == 8 || (type >= 13 && type <= 18);
		if (type == 3 || type == 4 || type == 5 || type == 11 || type == 12)
			p->flags |= PACKET_ICMP_ERROR;
		if (type == 0 || type == 14 || type == 16 || type == 18) {
			p->icmp_type = type ? type - 1 : 8;
			p->flags |= PACKET_ICMP_REPLY;
		}
	}
	if (query)
		p->sport = p->dport = id;
}

/* Reads the transport header at p->l4, which must be all there. */
static __always_inline int parse_transport(struct __sk_buff *skb, struct packet *p)
{
	__be16 words[4]; /* the first 8 bytes of any of them */
	__u8 tcp[2];	 /* data offset and flags */

	switch (p->protocol) {
	case IPPROTO_TCP:
		if (p->l4 + sizeof(struct tcphdr) > p->end ||
		    load_bytes(skb, p->l4 + 12, tcp, sizeof(tcp)) || tcp[0] >> 4 < 5 ||
		    p->l4 + (tcp[0] >> 4) * 4 > p->end)
			return -WEIR_REASON_MALFORMED;
		p->tcp_flags = tcp[1];
		break;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (p->l4 + 8 > p->end)
			return -WEIR_REASON_MALFORMED;
		break;
	case IPPROTO_SCTP:
		if (p->l4 + 12 > p->end)
			return -WEIR_REASON_MALFORMED;
		break;
	default:
		return 0;
	}
	if (load_bytes(skb, p->l4, words, sizeof(words)))
		return -WEIR_REASON_MALFORMED;
	if (p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6) {
		classify_icmp(p, bpf_ntohs(words[0]) >> 8, words[2]);
		return 0;
	}
	p->sport = words[0];
	p->dport = words[1];
	return 0;
}

/* Notes that p is a piece, offset bytes into its datagram. A later piece may not
 * reach into the transport header, which its first has shown. */
static __always_inline int note_fragment(struct packet *p, __u32 id, __u32 offset)
{
	p->fragment_id = id;
	p->fragment_protocol = p->protocol;
	if (offset == 0) {
		p->flags |= PACKET_FIRST_FRAGMENT;
		return 0;
	}
	if (offset < sizeof(struct tcphdr))
		return -WEIR_REASON_MALFORMED;
	p->flags |= PACKET_LATER_FRAGMENT;
	return 0;
}

/* A source route makes the destination a lie. */
__noinline int check_ipv4_options(struct __sk_buff *skb, __u32 len)
{
	__u32 at = 0;
	__u8 option[2];

	for (int i = 0; i < 40 && at < len; i++) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(struct iphdr) + at, option, 2))
			return -WEIR_REASON_MALFORMED;
		if (option[0] == IPOPT_END)
			return 0;
		if (option[0] == IPOPT_NOOP) {
			at++;
			continue;
		}
		if (option[0] == IPOPT_LSRR || option[0] == IPOPT_SSRR || option[1] < 2)
			return -WEIR_REASON_MALFORMED;
		at += option[1];
	}
	return 0;
}

__noinline int parse_ipv4(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr ip;
	__u32 len, header;
	int err;

	if (!p || load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return -WEIR_REASON_MALFORMED;
	header = ip.ihl * 4;
	len = bpf_ntohs(ip.tot_len);
	if (len == 0 && skb->gso_size) /* longer than the field can say */
		len = skb->len - ETH_HLEN;
	if (ip.version != 4 || header < sizeof(ip) || len < header || ETH_HLEN + len > skb->len)
		return -WEIR_REASON_MALFORMED;
	if (header > sizeof(ip)) {
		err = check_ipv4_options(skb, header - sizeof(ip));
		if (err)
			return err;
	}
	addr_set_ipv4(&p->src, ip.saddr);
	addr_set_ipv4(&p->dst, ip.daddr);
	p->protocol = ip.protocol;
	p->l4 = ETH_HLEN + header;
	p->end = ETH_HLEN + len;
	if (ip.frag_off & bpf_htons(0x3fff)) { /* an offset, or more to come */
		err = note_fragment(p, ip.id, (bpf_ntohs(ip.frag_off) & 0x1fff) * 8);
		if (err || p->flags & PACKET_LATER_FRAGMENT)
			return err;
	}
	return parse_transport(skb, p);
}

#define MAX_EXTENSION_HEADERS 8
#define IPPROTO_MOBILITY 135

/* Goes from the fixed header to the transport header, or to the end of what a
 * later fragment shows. */
__noinline int skip_extension_headers(struct __sk_buff *skb, struct packet *p)
{
	struct {
		__u8 next, len;
		__be16 rest;
		__be32 id;
	} h;
	__u32 offset;
	int err;

	if (!p)
		return -WEIR_REASON_INTERNAL;
	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		__u8 kind = p->protocol;

		if (kind != IPPROTO_HOPOPTS && kind != IPPROTO_DSTOPTS && kind != IPPROTO_ROUTING &&
		    kind != IPPROTO_FRAGMENT && kind != IPPROTO_AH && kind != IPPROTO_MOBILITY)
			return 0;
		if (p->l4 + sizeof(h) > p->end || load_bytes(skb, p->l4, &h, sizeof(h)))
			return -WEIR_REASON_MALFORMED;
		p->protocol = h.next;
		if (kind == IPPROTO_FRAGMENT) {
			p->l4 += sizeof(h);
			offset = bpf_ntohs(h.rest) & 0xfff8;
			if (offset == 0 && !(h.rest & bpf_htons(1)))
				continue; /* whole all the same (RFC 6946) */
			err = note_fragment(p, h.id, offset);
			if (err || offset)
				return err;
		} else if (kind == IPPROTO_AH) {
			p->l4 += (h.len + 2) * 4;
		} else {
			/* Segments left: the destination is a lie. */
			if (kind == IPPROTO_ROUTING && h.rest & bpf_htons(0xff))
				return -WEIR_REASON_MALFORMED;
			p->l4 += (h.len + 1) * 8;
		}
	}
	return -WEIR_REASON_MALFORMED;
}

__noinline int parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6hdr ip;
	__u32 len;
	int err;

	if (!p || load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 6)
		return -WEIR_REASON_MALFORMED;
	len = bpf_ntohs(ip.payload_len);
	if (len == 0 && skb->gso_size)
		len = skb->len - ETH_HLEN - sizeof(ip);
	if (ETH_HLEN + sizeof(ip) + len > skb->len)
		return -WEIR_REASON_MALFORMED;
	__builtin_memcpy(&p->src, &ip.saddr, sizeof(p->src));
	__builtin_memcpy(&p->dst, &ip.daddr, sizeof(p->dst));
	if (is_ipv4_mapped(&p->src) || is_ipv4_mapped(&p->dst)) /* never on a wire */
		return -WEIR_REASON_MALFORMED;
	p->flags |= PACKET_IPV6;
	p->hop_limit = ip.hop_limit;
	p->protocol = ip.nexthdr;
	p->l4 = ETH_HLEN + sizeof(ip);
	p->end = p->l4 + len;
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP) {
		err = skip_extension_headers(skb, p);
		if (err || p->flags & PACKET_LATER_FRAGMENT)
			return err;
	}
	return parse_transport(skb, p);
}

/* IPv4 and IPv6 only: no tag, in the frame or beside it. */
static __always_inline int parse(struct __sk_buff *skb, struct packet *p)
{
	if (skb->vlan_present)
		return -WEIR_REASON_BAD_ETHERTYPE;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return parse_ipv4(skb, p);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(skb, p);
	return -WEIR_REASON_BAD_ETHERTYPE;
}

/* A TCP segment without data. Its length is the datagram's: short frames are
 * padded. */
static __always_inline bool is_bare(struct __sk_buff *skb, const struct packet *p)
{
	__u8 offset;

	if (p->protocol != IPPROTO_TCP || p->flags & (PACKET_LATER_FRAGMENT | PACKET_ABOUT_FLOW) ||
	    load_bytes(skb, p->l4 + 12, &offset, 1))
		return false;
	return p->l4 + (offset >> 4) * 4 == p->end;
}
