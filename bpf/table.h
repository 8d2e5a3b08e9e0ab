/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The flow table: making, taking over, stamping again, closing and deleting entries. Entries
 * change in place; only the sweep deletes, and only what nobody can still hold. */
#pragma once
#include "record.h"

#define EEXIST 17

/* Beyond drop reasons: how else a step ends. */
#define NO_ENTRY  DROP_REASON_MAX       /* forward without an entry: a stray, or somebody else makes it */
#define UNDECIDED (DROP_REASON_MAX + 1) /* judged where it re-emerges from the node's NAT */
#define RELATED   (DROP_REASON_MAX + 2) /* an ICMP error that was found in order: decided */
#define PLAIN     (DROP_REASON_MAX + 3) /* the node's own business with its pod: no mark */
#define GONE      (DROP_REASON_MAX + 4) /* the entry's pod is not there any more: judge as new */
#define OUTDATED  (DROP_REASON_MAX + 5) /* the flow an ICMP error speaks of was judged in another epoch */

static const struct flow flow_zero;

/* An endpoint has its share always, and borrows what is nobody's share. */
static __always_inline int share_take(__u32 owner)
{
	struct endpoint_state *s = bpf_map_lookup_elem(&endpoint_states, &owner);

	if (!s)
		return 0;
	if (ADD(s->flows, 1) < cfg_flow_share)
		return 1;
	if (ADD(node.flow_borrowed, 1) < READ_ONCE(node.flow_borrow_limit))
		return 1;
	ADD(node.flow_borrowed, -1);
	ADD(s->flows, -1);
	return 0;
}

/* The endpoint that is charged for an entry. */
static __always_inline __u32 flow_owner(struct flow *f, __u32 state)
{
	__u32 a = READ_ONCE(f->endpoint[0]), b = READ_ONCE(f->endpoint[1]);

	return state & FLOW_OWNER ? b : a;
}

static __always_inline void share_give(__u32 owner)
{
	struct endpoint_state *s = bpf_map_lookup_elem(&endpoint_states, &owner);

	if (s && ADD(s->flows, -1) > cfg_flow_share)
		ADD(node.flow_borrowed, -1);
}

static __always_inline int slot_take(__u32 *slot)
{
	__u64 next;

	if (!bpf_map_pop_elem(&flow_free, slot))
		return 1;
	if (READ_ONCE(node.flow_slot_next) >= cfg_flow_capacity)
		return 0;
	next = ADD(node.flow_slot_next, 1);
	*slot = next;
	return next < cfg_flow_capacity;
}

static __always_inline __u16 mark_from(struct end *from, struct end *to, int reply)
{
	return (from->endpoint & MARK_ENDPOINT) | MARK_EGRESS | (to->endpoint || reply ? MARK_INGRESS : 0);
}

/* Of a sender that chooses whose door its frame goes to. */
static __always_inline __u16 mark_shared(__u16 mark)
{
	return mark & MARK_INGRESS ? mark | MARK_SHARED : mark;
}

static __always_inline void flow_fill_side(struct flow *f, int side, struct end *end, __u16 mark)
{
	struct flow_side *s = &f->side[side & 1];
	struct endpoint *ep = endpoint_at(end->endpoint);

	f->ifindex[side & 1] = end->iface;
	f->identity[side & 1] = identity_of(end->word);
	f->endpoint[side & 1] = end->endpoint;
	s->mark = mark;
	if (ep)
		__builtin_memcpy(s->mac, ep->mac, 6);
	if (ep && ep->flags & ENDPOINT_SHARED)
		s->mark = mark_shared(mark);
}

static __always_inline int redirects(struct end *end)
{
	struct endpoint *ep = endpoint_at(end->endpoint);

	return ep && !(ep->flags & (ENDPOINT_NO_REDIRECT | ENDPOINT_SHARED));
}

/* Writes what an allowing judgement found; the stamp comes last and makes it count.
 * reversed: the packet's destination is the initiator. */
static __always_inline void flow_fill(struct flow *f, struct walk *w, int reversed)
{
	flow_fill_side(f, w->side, &w->end[0], mark_from(&w->end[0], &w->end[1], reversed));
	flow_fill_side(f, w->side ^ 1, &w->end[1], mark_from(&w->end[1], &w->end[0], !reversed));
	f->rule[0] = w->rule[0];
	f->rule[1] = w->rule[1];
	WRITE_ONCE(f->basis, w->basis);
}

/* The stamp of a judgement under way: the halves it had, in its epoch. */
static __always_inline __u64 stamp_of(struct walk *w, int reversed)
{
	__u32 from = w->end[0].endpoint, to = w->end[1].endpoint;

	return w->epoch << STAMP_SHIFT | ((reversed ? to : from) ? STAMP_EGRESS : 0) |
	       ((reversed ? from : to) ? STAMP_INGRESS : 0);
}

/* Starts the entry over for the flow the packet begins. how: FLOW_PATH_BPF or
 * FLOW_PATH_NODES, and FLOW_PICKED_UP when the packet's destination is the initiator. */
static __always_inline int flow_start(struct walk *w, struct flow *f, __u32 owner, __u32 how)
{
	int reversed = !!(how & FLOW_PICKED_UP);

	if (!w || !f)
		return NO_ENTRY;

	WRITE_ONCE(f->stamp, 0);
	f->tcp_flags = 0;
	f->created = bpf_ktime_get_ns();
	f->told = 0;
	f->errors[0] = f->errors[1] = 0;
	f->process[0] = f->process[1] = 0;
	f->side[0].packets = f->side[0].bytes = f->side[1].packets = f->side[1].bytes = 0;
	f->side[0].last = f->side[1].last = node.clock;
	flow_fill(f, w, reversed);
	if (how & FLOW_PATH_NODES)
		__builtin_memcpy(f->side[(w->end[0].endpoint ? w->side ^ 1 : w->side) & 1].mac, &w->way,
				 sizeof(w->way));
	if ((w->end[0].endpoint == owner ? w->side : w->side ^ 1) & 1)
		how |= FLOW_OWNER;
	WRITE_ONCE(f->state, how | ((w->side ^ reversed) & FLOW_INITIATOR));
	WRITE_ONCE(f->stamp, stamp_of(w, reversed));
	count(COUNT_FLOW_NEW);
	if (reversed)
		count(COUNT_FLOW_PICKED_UP);
	w->started = 1;
	return DROP_NONE;
}

/* A new entry for the walk's packet. Returns a drop reason, or NO_ENTRY. */
__noinline int flow_create(struct walk *w, __u32 owner, __u32 how)
{
	struct flow_key *slot;
	struct flow_key key;
	struct flow *f;
	__u32 at = 0;
	long err;

	if (!w)
		return NO_ENTRY;
	key = w->key;
	if (!share_take(owner))
		return DROP_FLOW_SHARE;
	if (!slot_take(&at)) {
		share_give(owner);
		return DROP_FLOW_TABLE_FULL;
	}
	err = bpf_map_update_elem(&flows, &key, &flow_zero, BPF_NOEXIST);
	f = err ? 0 : bpf_map_lookup_elem(&flows, &key);
	slot = bpf_map_lookup_elem(&flow_slots, &at);
	if (!f || !slot) {
		bpf_map_push_elem(&flow_free, &at, BPF_ANY);
		share_give(owner);
		return err == -EEXIST ? NO_ENTRY : DROP_FLOW_TABLE_FULL;
	}
	ADD(node.flows, 1);
	f->slot = at;
	*slot = key;
	return flow_start(w, f, owner, how);
}

/* Who began it is known after all. */
static __always_inline void flow_restore(struct flow *f, struct flow *was)
{
	WRITE_ONCE(f->stamp, 0);
	__builtin_memcpy(f->ifindex, was->ifindex, sizeof(f->ifindex));
	__builtin_memcpy(f->rule, was->rule, sizeof(f->rule));
	__builtin_memcpy(f->identity, was->identity, sizeof(f->identity));
	if (was->endpoint[0])
		f->endpoint[0] = was->endpoint[0];
	if (was->endpoint[1])
		f->endpoint[1] = was->endpoint[1];
	f->side[0].mark = was->side[0].mark;
	f->side[1].mark = was->side[1].mark;
	__builtin_memcpy(f->side[0].mac, was->side[0].mac, 6);
	__builtin_memcpy(f->side[1].mac, was->side[1].mac, 6);
	f->created = was->created;
	WRITE_ONCE(f->basis, 0);
	WRITE_ONCE(f->state, (was->state & ~FLOW_OWNER) | (f->state & FLOW_OWNER));
	WRITE_ONCE(f->stamp, was->stamp);
}

/* Takes over a flow of the table that another build of the programs had: its stamp is of
 * no epoch, so its next packet judges it. A flow that is here gets what was counted there.
 * Returns a drop reason, or NO_ENTRY: it was here. */
static __always_inline int flow_import(struct flow_key *key, struct flow *was)
{
	struct flow_key *slot;
	struct flow *f;
	__u32 at = 0, owner;

	f = bpf_map_lookup_elem(&flows, key);
	if (f) {
		if (READ_ONCE(f->state) & (FLOW_TWO_WAY | FLOW_PICKED_UP) && f->created != was->created)
			flow_restore(f, was);
		ADD(f->side[0].packets, was->side[0].packets);
		ADD(f->side[0].bytes, was->side[0].bytes);
		ADD(f->side[1].packets, was->side[1].packets);
		ADD(f->side[1].bytes, was->side[1].bytes);
		__sync_fetch_and_or(&f->tcp_flags, was->tcp_flags & ((1 << FLOW_SERVICE_SHIFT) - 1));
		if (f->created == was->created)
			flow_note_service(f, was->tcp_flags >> FLOW_SERVICE_SHIFT);
		if (f->created == was->created)
			__sync_fetch_and_or(&f->state,
					    was->state & (FLOW_REPLIED | FLOW_FIN_0 | FLOW_FIN_1 | FLOW_RST));
		return NO_ENTRY;
	}
	/* Charged as when it was made, whatever the build before said of that. */
	was->state &= ~FLOW_OWNER;
	if (!!(was->state & FLOW_INITIATOR) != !!(was->state & FLOW_PICKED_UP))
		was->state |= FLOW_OWNER;
	if (!flow_owner(was, was->state))
		was->state ^= FLOW_OWNER;
	owner = flow_owner(was, was->state);
	if (!share_take(owner))
		return DROP_FLOW_SHARE;
	if (!slot_take(&at)) {
		share_give(owner);
		return DROP_FLOW_TABLE_FULL;
	}
	was->slot = at;
	slot = bpf_map_lookup_elem(&flow_slots, &at);
	if (!slot || bpf_map_update_elem(&flows, key, was, BPF_NOEXIST)) {
		bpf_map_push_elem(&flow_free, &at, BPF_ANY);
		share_give(owner);
		return DROP_FLOW_TABLE_FULL;
	}
	ADD(node.flows, 1);
	*slot = *key;
	return DROP_NONE;
}

static __always_inline __u32 end_of(__u32 state, __u64 stamp)
{
	return stamp & STAMP_DROP  ? END_REVOKED
	       : state & FLOW_RST  ? END_RST
	       : is_closing(state) ? END_FIN
				   : END_TIMEOUT;
}

/* Marks the entry over and reports it, once. Returns its state then, 0 if somebody else
 * changed it. */
__noinline int flow_close(struct flow *f, struct flow_key *key, __u32 state, __u32 end)
{
	__u32 closed = (state & 0xffff) | FLOW_CLOSED | end << FLOW_END_SHIFT;

	if (!f || !key)
		return 0;
	WRITE_ONCE(f->told, (__u32)node.clock); /* first: the sweep deletes what it sees closed and long ended */
	if (CMPXCHG(f->state, state, closed) != state)
		return 0;
	count(COUNT_FLOW_ENDED);
	flow_emit(f, key, EVENT_ENDED, 0, DIRECTION_NONE);
	return closed;
}

/* Whether a packet that the entry does not answer for may begin a new flow in its place. */
static __always_inline int is_vacant(__u32 state, __u64 stamp, __u64 epoch)
{
	return state & FLOW_CLOSED || is_closing(state) || stamp & STAMP_DROP || stamp >> STAMP_SHIFT != epoch;
}

/* Whether the entry is still the one of the walk's key: a claimed one stays it. */
__noinline int flow_is_found(struct walk *w, struct flow *f)
{
	struct flow_key key;

	if (!w || !f)
		return 0;
	key = w->key;
	return bpf_map_lookup_elem(&flows, &key) == f;
}

__noinline int flow_take_over(struct walk *w, struct flow *f, __u32 owner, __u32 how)
{
	__u32 state, was;
	__u64 stamp;

	if (!w || !f)
		return NO_ENTRY;
	state = READ_ONCE(f->state);
	stamp = READ_ONCE(f->stamp);
	if (state & FLOW_CLAIMED || !stamp || !is_vacant(state, stamp, w->epoch))
		return NO_ENTRY;
	if (!(state & FLOW_CLOSED)) {
		state = flow_close(f, &w->key, state, end_of(state, stamp));
		if (!state)
			return NO_ENTRY;
	}
	if (CMPXCHG(f->state, state, state | FLOW_CLAIMED) != state)
		return NO_ENTRY;
	if (!flow_is_found(w, f)) { /* deleted since, and used again */
		WRITE_ONCE(f->state, state);
		return NO_ENTRY;
	}
	was = flow_owner(f, state);
	if (was != owner) {
		if (!share_take(owner)) {
			WRITE_ONCE(f->state, state);
			return DROP_FLOW_SHARE;
		}
		share_give(was);
	}
	return flow_start(w, f, owner, how);
}
