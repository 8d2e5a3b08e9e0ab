/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Ageing without an agent: a timer walks the slots, a slice a tick. What is over is closed
 * and reported at one visit and deleted at a later one, when nobody can still hold it. */
#pragma once
#include "table.h"

#define SWEEP_PERIOD    (100 * 1000000ULL) /* ns */
#define SWEEP_SLICE     4096
#define CLOCK_MONOTONIC 1

/* A revoked flow ages as if it were not: as long as it is here, its peer's packets are known
 * for answers, and make no flow of their own. */
static __always_inline __u64 flow_timeout(struct flow_key *key, __u32 state)
{
	switch (key->protocol) {
	case IPPROTO_TCP:
		return is_closing(state)      ? cfg_timeout_closing
		       : state & FLOW_REPLIED ? cfg_timeout_tcp
					      : cfg_timeout_syn;
	case IPPROTO_UDP:
		return state & FLOW_REPLIED ? cfg_timeout_udp_stream : cfg_timeout_udp;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6_:
		return cfg_timeout_icmp;
	}
	return cfg_timeout_other;
}

static __always_inline void flow_delete(struct flow_key *slot, struct flow *f, __u32 at, __u32 state)
{
	__u32 owner = flow_owner(f, state);

	if (CMPXCHG(f->state, state, state | FLOW_CLAIMED) != state)
		return;
	bpf_map_delete_elem(&flows, slot);
	WRITE_ONCE(slot->family, 0);
	share_give(owner);
	ADD(node.flows, -1);
	bpf_map_push_elem(&flow_free, &at, BPF_ANY);
}

/* Whether the pod that the flow's side was has been detached: its number is nobody's, or
 * another's. While the number's fields are written it has rulesets, but no interface. */
static __always_inline int is_gone(struct flow *f, int side)
{
	__u32 number = f->endpoint[side], was = f->ifindex[side], is;
	struct endpoint *ep = endpoint_at(number);
	__u64 word;

	if (!ep || !slots_read(&ep->slots, node.epoch, &word))
		return 0;
	is = READ_ONCE(ep->ifindex);
	return is ? is != was && was < IFACE_OUTSIDE : !word;
}

/* Tells of a long flow, if there is something to tell since the last time. */
static __always_inline void flow_update(struct flow *f, struct flow_key *key, __u64 now)
{
	__u32 told = READ_ONCE(f->told);
	__u64 ago = now - f->created / 1000000;

	if (told)
		ago = (__u32)now - told;
	if (ago < cfg_update || now - flow_last(f) >= ago || CMPXCHG(f->told, told, (__u32)now | 1) != told)
		return;
	count(COUNT_FLOW_UPDATED);
	flow_emit(f, key, EVENT_UPDATE, 0, DIRECTION_NONE);
}

struct slice {
	__u32 first;
	__u32 limit;
};

static long sweep_slot(__u32 i, struct slice *slice)
{
	__u32 at = slice->first + i, state, end;
	__u64 now = node.clock, stamp;
	struct flow_key *slot;
	struct flow *f;

	if (at >= slice->limit)
		at -= slice->limit;
	slot = bpf_map_lookup_elem(&flow_slots, &at);
	if (!slot || !READ_ONCE(slot->family))
		return 0;
	f = bpf_map_lookup_elem(&flows, slot);
	if (!f || f->slot != at)
		return 0;
	state = READ_ONCE(f->state);
	stamp = READ_ONCE(f->stamp);
	if (state & FLOW_CLAIMED || !stamp)
		return 0;
	if (state & FLOW_CLOSED) {
		if ((__u32)now - READ_ONCE(f->told) >= cfg_linger)
			flow_delete(slot, f, at, state);
		return 0;
	}
	end = end_of(state, stamp);
	if (is_gone(f, 0) || is_gone(f, 1))
		flow_close(f, slot, state, end == END_TIMEOUT ? END_GONE : end);
	else if (now - flow_last(f) >= flow_timeout(slot, state))
		flow_close(f, slot, state, end);
	else if (cfg_records && cfg_update && !(stamp & STAMP_DROP))
		flow_update(f, slot, now);
	return 0;
}

static __always_inline void sweep_slice(void)
{
	__u64 limit = node.flow_slot_next;
	struct slice slice;
	__u32 n;

	if (limit > cfg_flow_capacity)
		limit = cfg_flow_capacity;
	if (!limit)
		return;
	slice.limit = limit;
	slice.first = node.sweep_position < limit ? node.sweep_position : 0;
	n = limit < SWEEP_SLICE ? limit : SWEEP_SLICE;
	bpf_loop(n, sweep_slot, &slice, 0);
	node.sweep_position = slice.first + n >= limit ? slice.first + n - limit : slice.first + n;
}

static int sweep_tick(void *map, __u32 *key, struct sweep *s)
{
	node.clock = bpf_ktime_get_ns() / 1000000;
	node.sweep_ticks++;
	sweep_slice();
	bpf_timer_start(&s->timer, SWEEP_PERIOD, 0);
	return 0;
}
