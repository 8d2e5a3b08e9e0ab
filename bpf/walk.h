/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What one packet's walk knows; filled step by step. It holds no pointers, so that the slow
 * path's steps can be verified once each, for all who call them. */
#pragma once
#include "flow.h"

struct walk {
	struct packet packet;
	struct flow_key key;
	__u64 epoch;   /* read once, first: everything else is read as of it */
	__u32 ifindex; /* of the hook */
	__u8 side;     /* of the packet's source in key */
	__u8 hit;
	__u8 reason;
	__u8 started; /* this packet began the entry */
	/* From here on the slow path's own: walk_slow clears it. */
	__u64 basis;
	struct end end[2]; /* source, destination, as the packet has them */
	__u32 ruleset[2];  /* by direction */
	__u32 rule[2];
	__u32 direction; /* that denied */
	__u32 way;       /* key of the way past the stack, 0 = none */
};

/* Parses; the walk's own fields are set for what follows. */
static __always_inline int walk_begin(struct __sk_buff *skb, struct walk *w)
{
	int reason;

	w->epoch = node.epoch;
	w->ifindex = skb->ifindex;
	w->side = 0;
	w->hit = HIT_NONE;
	w->started = 0;
	reason = parse(skb, &w->packet);
	w->reason = reason;
	return reason;
}

/* Whose hook it is: the packet's sender's or its receiver's; DOOR is the receiver's own
 * interface, where a frame may be by its MAC alone. */
enum hook_side { SENDER = 0, RECEIVER = 1, DOOR = 3 };

/* The one map lookup of an established packet. */
static __always_inline struct flow *walk_flow(struct walk *w, __u32 iface, enum hook_side hook)
{
	struct flow *f;

	w->side = flow_key_of(&w->packet.tuple, &w->key);
	f = bpf_map_lookup_elem(&flows, &w->key);
	if (f)
		w->hit = flow_hit(f, &w->packet, w->side, (w->side ^ hook) & 1, iface, w->epoch);
	if (f && hook == DOOR && READ_ONCE(f->ifindex[(w->side ^ 1) & 1]) != w->ifindex && w->hit == HIT_LIVE)
		w->hit = HIT_OTHER;
	return f;
}

/* What the fast path leaves unset. */
static __always_inline void walk_slow(struct walk *w)
{
	if (w->reason || w->packet.kind != PACKET_FLOW)
		__builtin_memset(&w->key, 0, sizeof(w->key));
	__builtin_memset(w->packet.pad, 0, sizeof(w->packet.pad));
	__builtin_memset(&w->basis, 0, sizeof(*w) - __builtin_offsetof(struct walk, basis));
	w->direction = DIRECTION_NONE;
}

/* Drops for a reason that is not a ruleset's. */
static __always_inline int walk_drop(struct walk *w, int reason)
{
	w->reason = reason;
	w->direction = DIRECTION_NONE;
	w->rule[0] = w->rule[1] = 0;
	return reason;
}

/* Finds who the packet's source (0) or destination (1) is by its address. */
__noinline int walk_peer(struct walk *w, __u32 which)
{
	struct end *end;

	if (!w)
		return 0;
	end = &w->end[which & 1];
	return peer_at(which & 1 ? w->packet.tuple.daddr : w->packet.tuple.saddr, w->packet.tuple.family, w->epoch,
		       end);
}
