/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A flow entry as a packet meets it. It answers for a packet only if the packet came from
 * the interface the entry stores for its side, in this epoch, in a state that allows it.
 *
 *   new --first packet--> live --FIN both, RST, idle--> CLOSED --linger--> deleted
 *                          |  ^                           |
 *         epoch moved: DROP/stamped again                 +--SYN: taken over in place
 */
#pragma once
#include "config.h"
#include "peer.h"

enum hit {
	HIT_NONE,  /* no entry: judge the packet as new */
	HIT_OTHER, /* an entry, but not one for this packet: likewise */
	HIT_STALE, /* its entry, judged in another epoch or revoked: judge it as the entry's */
	HIT_LIVE,  /* allowed, nothing left to decide */
};

/* Fills key; returns the side (0 or 1) of the tuple's source. */
static __always_inline int flow_key_of(struct tuple *t, struct flow_key *key)
{
	__u64 *s = (__u64 *)t->saddr, *d = (__u64 *)t->daddr, *lo = (__u64 *)key->addr[0], *hi = (__u64 *)key->addr[1];
	int side = s[0] != d[0] ? s[0] > d[0] : s[1] != d[1] ? s[1] > d[1] : t->sport > t->dport;

	key->protocol = t->protocol;
	key->family = t->family;
	key->pad = 0;
	if (side) {
		lo[0] = d[0], lo[1] = d[1], hi[0] = s[0], hi[1] = s[1];
		key->port[0] = t->dport, key->port[1] = t->sport;
	} else {
		lo[0] = s[0], lo[1] = s[1], hi[0] = d[0], hi[1] = d[1];
		key->port[0] = t->sport, key->port[1] = t->dport;
	}
	return side;
}

static __always_inline int is_closing(__u32 state)
{
	return state & FLOW_RST || (state & (FLOW_FIN_0 | FLOW_FIN_1)) == (FLOW_FIN_0 | FLOW_FIN_1);
}

/* The first packet of who did not begin. */
static __always_inline int is_answer(__u32 state, int side)
{
	return !(state & FLOW_REPLIED) && (state & FLOW_INITIATOR) != side;
}

static __always_inline int is_opener(struct packet *p)
{
	return p->tuple.protocol == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Whether the packet is one its direction of the flow may send. */
static __always_inline int is_in_turn(struct packet *p, __u32 state, int side)
{
	int initiator = (state & FLOW_INITIATOR) == side;

	if (is_opener(p))
		return initiator && !is_closing(state);
	if (p->tuple.protocol == IPPROTO_ICMP || p->tuple.protocol == IPPROTO_ICMPV6_)
		return is_icmp_request(p) == initiator;
	return 1;
}

/* pod: the side whose pod the hook belongs to; its half has to be judged, whatever else. */
static __always_inline enum hit flow_hit(struct flow *f, struct packet *p, int side, int pod, __u32 iface, __u64 epoch)
{
	__u64 stamp = READ_ONCE(f->stamp);
	__u32 state = READ_ONCE(f->state);

	if (READ_ONCE(f->ifindex[side & 1]) != iface || state & (FLOW_CLOSED | FLOW_CLAIMED))
		return HIT_OTHER;
	if (!is_in_turn(p, state, side) || !stamp || (stamp & STAMP_DROP && is_opener(p)))
		return HIT_OTHER;
	if (stamp >> STAMP_SHIFT != epoch || stamp & STAMP_DROP)
		return HIT_STALE;
	return stamp & ((state & FLOW_INITIATOR) == pod ? STAMP_EGRESS : STAMP_INGRESS) ? HIT_LIVE : HIT_STALE;
}

/* Notes what only a few packets of a flow bring: flags not seen yet, the first answer. */
static __always_inline void flow_track(struct flow *f, struct packet *p, int side)
{
	__u32 state = READ_ONCE(f->state), add = 0, flags = (__u32)p->tcp_flags << (8 * side);

	if ((READ_ONCE(f->tcp_flags) & flags) != flags)
		__sync_fetch_and_or(&f->tcp_flags, flags);
	if (p->tcp_flags & TCP_FIN)
		add |= side ? FLOW_FIN_1 : FLOW_FIN_0;
	if (p->tcp_flags & TCP_RST)
		add |= FLOW_RST;
	if ((state & FLOW_INITIATOR) != side)
		add |= FLOW_REPLIED;
	if ((state & add) != add)
		__sync_fetch_and_or(&f->state, add);
}

/* Counts one packet of side; done at one hook a packet, the last that judges it. */
static __always_inline void flow_count(struct flow *f, struct packet *p, int side)
{
	struct flow_side *s = &f->side[side & 1];

	ADD(s->packets, p->segments > 1 ? p->segments : 1);
	ADD(s->bytes, p->length);
	WRITE_ONCE(s->last, node.clock);
	flow_track(f, p, side);
}
