/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the hooks' slow paths have in common. */
#pragma once
#include "decide.h"
#include "deliver.h"
#include "error.h"
#include "refusal.h"

/* IPv6 headers that carry IPv4 addresses, loopback or nothing at all; IPv4's like. */
static __always_inline int is_odd_address(__u8 *a, __u8 family)
{
	if (family == 4)
		return a[12] == 127 || a[12] == 0 || a[12] >= 224;
	return a[0] == 0xff || (*(__u64 *)a == 0 && (*(__u32 *)(a + 8) == 0 || *(__u32 *)(a + 8) == bpf_htonl(0xffff)));
}

/* A pod writes to no node's tunnel. Which addresses are nodes' is not asked: one that is not
 * known would be reached under this node's address, which its tunnel trusts. */
static __always_inline int to_tunnel_port(struct walk *w)
{
	return cfg_tunnel_port && w->packet.tuple.protocol == IPPROTO_UDP && w->packet.tuple.dport == cfg_tunnel_port &&
	       identity_of(w->end[1].word) < IDENTITY_FIRST;
}

/* The walk of a later fragment: its first's ports, then a flow entry or nothing. */
static __always_inline int fragment_walk(struct walk *w, __u32 iface, enum hook_side hook)
{
	int reason = fragment_later(w, iface);

	if (reason)
		return walk_drop(w, reason);
	walk_flow(w, iface, hook);
	return w->hit < HIT_STALE ? walk_drop(w, DROP_FRAGMENT_UNKNOWN) : DROP_NONE;
}

/* The entry that was found under the walk's key. */
static __always_inline struct flow *walk_entry(struct walk *w)
{
	return w->hit == HIT_NONE ? 0 : bpf_map_lookup_elem(&flows, &w->key);
}

/* Counts and reports what goes on, remembers first fragments; returns the entry to deliver by. */
static __always_inline struct flow *walk_settle(struct __sk_buff *skb, struct walk *w, __u32 iface, int way)
{
	struct flow *f = 0;

	if (w->packet.first_fragment)
		fragment_first(w, iface, way == DROP_NONE);
	if (way == DROP_NONE)
		f = bpf_map_lookup_elem(&flows, &w->key);
	if (f && !READ_ONCE(f->process[w->side & 1]))
		flow_process(skb, f, w->side);
	if (f && cfg_records && cfg_services && w->started && w->end[0].endpoint &&
	    (READ_ONCE(f->state) & FLOW_INITIATOR) == w->side)
		flow_note_service(f, sender_service(skb, w));
	if (f)
		flow_count(f, &w->packet, w->side);
	if (f && w->started)
		flow_emit(f, &w->key, EVENT_NEW, 0, DIRECTION_NONE);
	if (way == NO_ENTRY)
		count(COUNT_UNTRACKED);
	return f;
}

/* The fast path's end: the packet is its live flow's. */
static __always_inline void walk_live(struct walk *w, struct flow *f, __u32 iface)
{
	flow_count(f, &w->packet, w->side);
	if (w->packet.first_fragment) {
		walk_slow(w);
		fragment_first(w, iface, 1);
	}
}
