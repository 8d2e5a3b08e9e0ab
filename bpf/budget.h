/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counting (per CPU, so without atomics), and how much of what is counted is recorded. */
#pragma once
#include "access.h"
#include "maps.h"

static __always_inline void count(__u32 index)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &index);

	if (n)
		*n += 1;
}

/* A tenth of a second's worth of clock is lost at worst: the window is the clock's second. */
static __always_inline int denial_budget(__u32 number)
{
	struct endpoint_state *s = bpf_map_lookup_elem(&endpoint_states, &number);
	__u64 second = READ_ONCE(node.clock) / 1000 + 1, was;

	if (!s)
		return 0;
	was = READ_ONCE(s->window);
	if (was != second && CMPXCHG(s->window, was, second) == was)
		WRITE_ONCE(s->recorded, 0);
	if (READ_ONCE(s->recorded) < DENIED_BUDGET && ADD(s->recorded, 1) < DENIED_BUDGET)
		return 1;
	ADD(s->suppressed, 1);
	return 0;
}

static __always_inline void denial_count(struct denial_count_key *key, __u32 packets, __u32 bytes)
{
	struct denial_count *n = bpf_map_lookup_elem(&denial_counts, key), zero = {};

	if (!n) {
		bpf_map_update_elem(&denial_counts, key, &zero, BPF_NOEXIST);
		n = bpf_map_lookup_elem(&denial_counts, key);
	}
	if (n) {
		n->packets += packets;
		n->bytes += bytes;
	} else {
		count(COUNT_DENIAL_UNCOUNTED);
	}
}
