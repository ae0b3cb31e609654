/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The maps, and what is set before load. Sizes here are those of a small node;
 * the loader may change max_entries, and must then change the matching variable.
 */
#pragma once

#include "kernel.h"

#include "abi.h"

/* Half of what weir_classes, weir_ranges and weir_backends hold: one side. */
#define WEIR_MAX_PEERS 65536
#define WEIR_MAX_RANGES 131072
#define WEIR_MAX_BACKENDS_OF_SIDE 32768

volatile const __u32 max_peers = WEIR_MAX_PEERS;
volatile const __u32 max_ranges = WEIR_MAX_RANGES;
volatile const __u32 max_backends = WEIR_MAX_BACKENDS_OF_SIDE;
/* Entries of weir_ct_tcp that one endpoint may hold. */
volatile const __u32 ct_quota = 16384;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
} weir_word SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct weir_config);
	__uint(max_entries, 1);
} weir_config SEC(".maps");

/* Key: ifindex. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct weir_endpoint);
	__uint(max_entries, 1024);
} weir_endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct weir_addr);
	__type(value, struct weir_peer_ref);
	__uint(max_entries, 524288);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} weir_addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct weir_prefix_key);
	__type(value, struct weir_peer_ref);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} weir_prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 2 * WEIR_MAX_PEERS);
} weir_classes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct weir_cell_key);
	__type(value, struct weir_cell);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} weir_cells SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct weir_range);
	__uint(max_entries, 2 * WEIR_MAX_RANGES);
} weir_ranges SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct weir_service_key);
	__type(value, struct weir_service);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} weir_services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct weir_backend);
	__uint(max_entries, 2 * WEIR_MAX_BACKENDS_OF_SIDE);
} weir_backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct weir_rule_set_pair);
	__type(value, __u32);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} weir_backend_sets SEC(".maps");

/* Does not evict, and cannot fail for want of memory. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct weir_ct_key);
	__type(value, struct weir_ct);
	__uint(max_entries, 131072);
} weir_ct_tcp SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct weir_ct_key);
	__type(value, struct weir_ct);
	__uint(max_entries, 65536);
} weir_ct_any SEC(".maps");

/* Keys: weir_endpoint.id. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 2048);
} weir_quota_used SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 2048);
} weir_quota_freed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct weir_fragment_key);
	__type(value, struct weir_fragment);
	__uint(max_entries, 8192);
} weir_fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} weir_drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} weir_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 2 * WEIR_REASON_COUNT);
} weir_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 2);
} weir_lost SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 2);
} weir_listeners_in SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 2);
} weir_listeners_out SEC(".maps");
