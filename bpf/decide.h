/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The slow path: a packet no live entry answers for. A stale entry is judged in its
 * initiator's orientation, anything else in the packet's own. Steps return a drop reason,
 * DROP_NONE to forward with the entry, or NO_ENTRY to forward without one.
 */
#pragma once
#include "judge.h"
#include "table.h"

static __always_inline __u16 policy_port(struct walk *w, __u16 port)
{
	__u8 protocol = w->packet.tuple.protocol;

	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == 132 ? port : 0;
}

/* The rulesets that have a say, the rules that need none, and the mix of all of it. */
__noinline int rulesets_find(struct walk *w, struct end *from, struct end *to)
{
	if (!w || !from || !to)
		return 0;
	w->ruleset[0] = w->ruleset[1] = 0;
	w->rule[0] = w->rule[1] = 0;
	if (from->endpoint && from->endpoint == to->endpoint) {
		w->rule[0] = w->rule[1] = RULE_SELF;
	} else {
		if (from->endpoint && cfg_node_egress_allow && identity_of(to->word) == IDENTITY_HOST)
			w->rule[0] = RULE_NODE_EGRESS;
		else if (from->endpoint)
			w->ruleset[0] = ruleset_of(from->endpoint, DIRECTION_EGRESS, w->epoch);
		if (to->endpoint && from->iface == IFACE_HOST)
			w->rule[1] = RULE_NODE;
		else if (to->endpoint)
			w->ruleset[1] = ruleset_of(to->endpoint, DIRECTION_INGRESS, w->epoch);
	}
	w->basis = mix(mix(mix(mix(mix(cfg_seed, from->word), to->word), (__u64)w->ruleset[0] << 32 | w->ruleset[1]),
			   (__u64)from->endpoint << 32 | to->endpoint),
		       (__u64)w->rule[0] << 32 | w->rule[1]);
	return 0;
}

static __always_inline void denial_key_of(struct walk *w, __u32 port, struct denial_key *key)
{
	key->basis = w->basis;
	key->dport = port;
	key->protocol = w->packet.tuple.protocol;
	key->family = w->packet.tuple.family;
	key->pad = 0;
}

static __always_inline __u64 denial_check(struct denial_key *key)
{
	return mix(mix(cfg_seed, key->basis), (__u64)key->dport << 16 | key->protocol << 8 | key->family);
}

/* A denial judged before in this epoch, whoever sent it: identities decide, not addresses. */
__noinline int denial_cached(struct walk *w, __u32 port)
{
	struct denial_key key;
	struct denial *d;

	if (!w)
		return DROP_NONE;
	denial_key_of(w, port, &key);
	d = bpf_map_lookup_elem(&denials, &key);
	if (!d || READ_ONCE(d->epoch) != w->epoch)
		return DROP_NONE;
	w->rule[0] = READ_ONCE(d->rule[0]);
	w->rule[1] = READ_ONCE(d->rule[1]);
	w->direction = READ_ONCE(d->direction);
	w->reason = READ_ONCE(d->reason);
	if (READ_ONCE(d->check) != denial_check(&key) || READ_ONCE(d->epoch) != w->epoch)
		return DROP_NONE;
	count(COUNT_DENIAL_CACHED);
	return w->reason;
}

__noinline int denial_remember(struct walk *w, __u32 port)
{
	struct denial_key key;
	struct denial d = {};

	if (!w)
		return DROP_NONE;
	d.epoch = w->epoch;
	d.rule[0] = w->rule[0];
	d.rule[1] = w->rule[1];
	d.direction = w->direction;
	d.reason = w->reason;
	denial_key_of(w, port, &key);
	d.check = denial_check(&key);
	bpf_map_update_elem(&denials, &key, &d, BPF_ANY);
	return w->reason;
}

/* One direction's verdict; the peer is whom the pod sees. */
static __always_inline int judge_half(struct walk *w, struct end *peer, int direction, __u16 port)
{
	struct query q = {
		.word = peer->word,
		.ruleset = w->ruleset[direction],
		.port = port,
		.protocol = w->packet.tuple.protocol,
	};

	if (w->rule[direction])
		return DROP_NONE; /* a rule that needs no ruleset */
	judge(&q);
	w->rule[direction] = q.rule;
	if (q.allow)
		return DROP_NONE;
	w->direction = direction;
	w->reason = q.missing                                       ? DROP_NO_RULESET
		    : identity_of(peer->word) == IDENTITY_UNMANAGED ? DROP_UNMANAGED_PEER
								    : DROP_POLICY;
	return w->reason;
}

/* Both halves, as far as this node has pods in them. from begins, to answers on port. */
__noinline int judge_ends(struct walk *w, struct end *from, struct end *to, __u32 port)
{
	int reason;

	if (!w || !from || !to)
		return DROP_NO_RULESET;
	w->direction = DIRECTION_NONE;
	w->reason = DROP_NONE;
	port = policy_port(w, port);
	reason = denial_cached(w, port);
	if (reason)
		return reason;
	/* a miss may have left its reading in the walk */
	rulesets_find(w, from, to);
	w->direction = DIRECTION_NONE;
	w->reason = DROP_NONE;
	if (from->endpoint)
		reason = judge_half(w, to, DIRECTION_EGRESS, port);
	if (!reason && to->endpoint)
		reason = judge_half(w, from, DIRECTION_INGRESS, port);
	if (reason == DROP_POLICY || reason == DROP_UNMANAGED_PEER)
		denial_remember(w, port);
	return reason;
}

/* Both halves as the packet has its ends, or reversed: as begun by its destination. */
static __always_inline int judge_way(struct walk *w, int reversed)
{
	int from = reversed ? 1 : 0;

	rulesets_find(w, &w->end[from], &w->end[from ^ 1]);
	return judge_ends(w, &w->end[from], &w->end[from ^ 1],
			  reversed ? w->packet.tuple.sport : w->packet.tuple.dport);
}

/* The end that a side of an entry is today. 0 when its endpoint is not there any more. */
static __always_inline int end_of_side(struct walk *w, struct flow *f, int side, struct end *end)
{
	__u32 endpoint = f->endpoint[side & 1], iface = f->ifindex[side & 1];

	if (endpoint)
		return rulesets_of(endpoint, w->epoch) &&
		       peer_of_endpoint(endpoint, w->packet.tuple.family, w->epoch, end) && end->iface == iface;
	walk_peer(w, side != w->side);
	end->iface = iface;
	return 1;
}

/* A pod that is an endpoint now and was not when its flow began. */
static __always_inline void end_adopt(struct end *end)
{
	struct endpoint *ep = endpoint_at(end->endpoint);

	if (ep)
		end->iface = READ_ONCE(ep->ifindex);
}

/* The entry is forbidden now: it stays, as DROP, and is judged again at every packet. */
static __always_inline void flow_revoke(struct walk *w, struct flow *f, __u64 stamp)
{
	__u64 drop = w->epoch << STAMP_SHIFT | STAMP_DROP;

	if (stamp == drop || CMPXCHG(f->stamp, stamp, drop) != stamp || stamp & STAMP_DROP)
		return;
	count(COUNT_FLOW_REVOKED);
	f->rule[0] = w->rule[0];
	f->rule[1] = w->rule[1];
	flow_emit(f, &w->key, EVENT_REVOKED, w->reason, w->direction);
}

/* Judges the entry again, in its initiator's orientation, whichever packet found it. GONE
 * when one of its pods is: another may have its address by now. */
__noinline int decide_stale(struct walk *w, struct flow *f)
{
	int reversed, reason, two_way;
	__u64 stamp;

	if (!w || !f)
		return NO_ENTRY;
	stamp = READ_ONCE(f->stamp);
	reversed = (READ_ONCE(f->state) & FLOW_INITIATOR) != w->side;
	if (!end_of_side(w, f, w->side, &w->end[0]) || !end_of_side(w, f, w->side ^ 1, &w->end[1]))
		return GONE;
	end_adopt(&w->end[0]);
	end_adopt(&w->end[1]);
	if (reversed)
		rulesets_find(w, &w->end[1], &w->end[0]);
	else
		rulesets_find(w, &w->end[0], &w->end[1]);
	two_way = READ_ONCE(f->state) & FLOW_TWO_WAY; /* its basis is one way's */
	if (!(stamp & STAMP_DROP) && !two_way && w->basis == READ_ONCE(f->basis)) {
		CMPXCHG(f->stamp, stamp, stamp_of(w, reversed));
		count(COUNT_FLOW_RESTAMPED);
		return DROP_NONE;
	}
	count(COUNT_FLOW_REJUDGED);
	reason = two_way ? judge_way(w, !reversed) : DROP_NONE;
	if (!reason)
		reason = judge_way(w, reversed);
	if (reason) {
		flow_revoke(w, f, stamp);
		return reason;
	}
	/* Stamp first: who loses the race writes nothing, and until the rest is there the old
	 * interfaces and marks say less, never more, than the new. */
	if (CMPXCHG(f->stamp, stamp, stamp_of(w, reversed)) == stamp)
		flow_fill(f, w, reversed);
	return DROP_NONE;
}

/* Whether a packet that a stale entry does not let through is judged as new after all: the
 * entry is a gone pod's, or its ports are equal and do not tell who asks whom. */
static __always_inline int is_anew(struct walk *w, int reason)
{
	struct packet *p = &w->packet;

	if (reason == GONE)
		return 1;
	return reason && reason < DROP_REASON_MAX && p->kind == PACKET_FLOW && p->tuple.protocol != IPPROTO_TCP &&
	       p->tuple.sport && p->tuple.sport == p->tuple.dport;
}

/* Plain ACK or data of a flow whose entry was lost. */
static __always_inline int is_midstream(struct packet *p)
{
	return p->tuple.protocol == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) == TCP_ACK;
}

/* TCP that belongs to a flow but does not make one: forwarded if allowed, remembered never. */
static __always_inline int is_stray(struct packet *p)
{
	return p->tuple.protocol == IPPROTO_TCP &&
	       (p->tcp_flags & (TCP_FIN | TCP_RST) || (p->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK));
}

static __always_inline int is_icmp(struct packet *p)
{
	return p->tuple.protocol == IPPROTO_ICMP || p->tuple.protocol == IPPROTO_ICMPV6_;
}

/* One path for a flow, both directions: by BPF only between two pods of this node whose
 * first packet is still in the sender's hook, and where a way to another node's was found. */
static __always_inline __u32 path_of(struct walk *w, int may_redirect)
{
	if (w->way)
		return FLOW_PATH_NODES;
	return may_redirect && redirects(&w->end[0]) && redirects(&w->end[1]) ? FLOW_PATH_BPF : 0;
}

/* Judges the packet as what it says it is: the first of a new flow. */
__noinline int decide_new(struct walk *w, struct flow *f, __u32 may_redirect)
{
	__u32 owner, how = 0;
	int made;

	if (!w)
		return DROP_NO_RULESET;
	owner = w->end[0].endpoint ? w->end[0].endpoint : w->end[1].endpoint;
	if (is_icmp(&w->packet) && !is_icmp_request(&w->packet))
		return walk_drop(w, DROP_ICMP_TYPE);
	rulesets_find(w, &w->end[0], &w->end[1]);
	if (judge_ends(w, &w->end[0], &w->end[1], w->packet.tuple.dport)) {
		if (is_stray(&w->packet) && w->reason == DROP_POLICY)
			w->reason = DROP_TCP_STRAY;
		/* Entries are lost with the table: a while after it was made, who has none has none. */
		if (!is_midstream(&w->packet) || node.clock >= node.pickup_until)
			return w->reason;
		__u32 rule[2] = { w->rule[0], w->rule[1] };
		__u8 reason = w->reason, direction = w->direction;

		rulesets_find(w, &w->end[1], &w->end[0]);
		if (judge_ends(w, &w->end[1], &w->end[0], w->packet.tuple.sport)) {
			w->rule[0] = rule[0], w->rule[1] = rule[1];
			w->reason = reason, w->direction = direction;
			return reason;
		}
		how = FLOW_PICKED_UP;
	} else if (is_midstream(&w->packet)) {
		/* Perhaps an answer on a connection that may not be any more: that it could have begun
		 * itself is not enough. Entries are lost with the table, likewise. */
		if (judge_way(w, 1) == DROP_NONE)
			how = FLOW_TWO_WAY;
		else if (node.clock >= node.pickup_until)
			return walk_drop(w, DROP_TCP_STRAY);
		judge_way(w, 0);
	}
	if (is_stray(&w->packet))
		return NO_ENTRY;
	how |= path_of(w, may_redirect);
	made = f ? flow_take_over(w, f, owner, how) : flow_create(w, owner, how);
	if (made == DROP_NONE || made == NO_ENTRY)
		return made;
	return walk_drop(w, made);
}
