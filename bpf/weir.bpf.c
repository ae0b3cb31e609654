/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* One object, so that all programs share one set of maps without replacement. */
#include "endpoint.bpf.c"
#include "proxy.bpf.c"

/* Types that no map names cross into Go by these. */
const struct weir_event *unused_event __attribute__((unused));
const enum weir_reason *unused_reason __attribute__((unused));
const enum weir_event_kind *unused_event_kind __attribute__((unused));
const enum weir_verdict *unused_verdict __attribute__((unused));
const enum weir_number *unused_number __attribute__((unused));
const enum weir_slot *unused_slot __attribute__((unused));
const enum weir_addr_flag *unused_addr_flag __attribute__((unused));
const enum weir_ct_flag *unused_ct_flag __attribute__((unused));
const enum weir_limit *unused_limit __attribute__((unused));

char _license[] SEC("license") = "GPL";
