/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What leaves by the rings: nothing is dropped without a count, and no event is lost without
 * one. */
#pragma once
#include "budget.h"
#include "socket.h"
#include "walk.h"

#define TC_NEXT -1 /* accept: other people's filters still run */
#define TC_DROP 2

static __always_inline __u32 packets_of(struct packet *p)
{
	return p->segments > 1 ? p->segments : 1;
}

/* The number of the process whose socket a packet left. A SYN+ACK has its listener's; what the
 * kernel says by itself (RST, ICMP) has no process, and an accepted socket no opener: who
 * listens did not have to accept it. */
static __always_inline __u32 sender_process(struct __sk_buff *skb, int answers)
{
	struct bpf_sock *sk = skb->sk, *full;
	__u32 *number, opener;

	if (!sk)
		return 0;
	full = bpf_sk_fullsock(sk);
	if (full && full->protocol == IPPROTO_TCP) {
		opener = answers ? 0 : opener_process(bpf_get_socket_cookie(skb));
		if (answers || opener)
			return opener;
	}
	if (!full)
		full = bpf_get_listener_sock(sk);
	if (!full)
		return 0;
	number = bpf_sk_storage_get(&socket_process, full, 0, 0);
	return number ? *number : 0;
}

/* Of two Services with one backend it is not known which was meant. */
static __always_inline __u32 talk_service(struct talks *all, struct tuple *to)
{
	__u32 found = 0, number, any = 0;

	for (int i = 0; i < TALKS_MAX; i++) {
		if (!leads_to(&all->talk[i], to->daddr, to->dport))
			continue;
		number = all->talk[i].position >> 16;
		if (any && found != number)
			return 0;
		found = number;
		any = 1;
	}
	return found;
}

/* The number of the Service that the socket asked for whose packet it is and got this
 * destination in its place; 0 = it named the destination itself, or that is not known. */
__noinline int sender_service(struct __sk_buff *skb, struct walk *w)
{
	struct bpf_sock *sk = skb->sk, *full;
	struct translation *t;
	struct talks *all;
	struct tuple *to;

	if (!sk || !w || !cfg_services)
		return 0;
	to = &w->packet.tuple;
	if (to->protocol != IPPROTO_TCP && to->protocol != IPPROTO_UDP)
		return 0;
	full = bpf_sk_fullsock(sk);
	if (!full)
		return 0;
	if (to->protocol == IPPROTO_TCP || full->state == BPF_TCP_ESTABLISHED) {
		t = bpf_sk_storage_get(&connected, full, 0, 0);
		if (t && leads_to(t, to->daddr, to->dport))
			return t->position >> 16;
	}
	if (to->protocol == IPPROTO_TCP)
		return 0;
	all = bpf_sk_storage_get(&talking, full, 0, 0);
	return all ? talk_service(all, to) : 0;
}

static __always_inline void denial_emit(struct __sk_buff *skb, struct walk *w)
{
	struct event *e = bpf_ringbuf_reserve(&denial_events, sizeof(*e), 0);

	if (!e) {
		count(COUNT_DENIAL_LOST);
		return;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_ns();
	e->epoch = w->epoch;
	__builtin_memcpy(&e->tuple, &w->packet.tuple, sizeof(e->tuple));
	e->ifindex = w->ifindex;
	e->endpoint[0] = w->end[0].endpoint;
	e->endpoint[1] = w->end[1].endpoint;
	e->identity[0] = identity_of(w->end[0].word);
	e->identity[1] = identity_of(w->end[1].word);
	e->rule[0] = w->rule[0];
	e->rule[1] = w->rule[1];
	e->kind = EVENT_DENIED;
	e->verdict = VERDICT_DROPPED;
	e->reason = w->reason;
	e->direction = w->direction;
	e->judged = (w->rule[0] ? STAMP_EGRESS : 0) | (w->rule[1] ? STAMP_INGRESS : 0);
	e->icmp_type = w->packet.icmp_type;
	e->icmp_code = w->packet.icmp_code;
	e->tcp_flags = w->packet.tcp_flags;
	e->packets[0] = packets_of(&w->packet);
	e->bytes[0] = w->packet.length;
	if (w->end[0].endpoint) {
		e->process[0] = sender_process(skb, 0);
		e->service = sender_service(skb, w);
	}
	bpf_ringbuf_submit(e, 0);
	count(COUNT_DENIAL_EMITTED);
}

/* Counts and records the walk's packet as dropped. Charged to the local sender, else to
 * the pod whose policy denied: a scanner must not blind its victim's log. */
__noinline int refuse(struct __sk_buff *skb, struct walk *w)
{
	struct denial_count_key key = {};

	if (!w)
		return TC_DROP;
	key.endpoint = w->end[0].endpoint ? w->end[0].endpoint : w->end[1].endpoint;
	key.rule = w->direction == DIRECTION_EGRESS ? w->rule[0] : w->direction == DIRECTION_INGRESS ? w->rule[1] : 0;
	key.direction = w->direction;
	key.reason = w->reason;
	denial_count(&key, packets_of(&w->packet), w->packet.length);
	count(COUNT_DROP + w->reason);
	if (w->reason == DROP_NEIGHBOUR || w->reason == DROP_MULTICAST)
		return TC_DROP;             /* every host's chatter: counted, not recorded */
	if (!denial_budget(key.endpoint)) { /* also what is parked keeps to it */
		if (cfg_records)
			count(COUNT_DENIAL_SUPPRESSED);
	} else if (cfg_records) {
		denial_emit(skb, w);
	}
	return TC_DROP;
}

/* The ends of a flow that side a began. */
static __always_inline void event_orient(struct event *e, struct flow *f, struct flow_key *key, int a, int b)
{
	__builtin_memcpy(e->tuple.saddr, key->addr[a], 16);
	__builtin_memcpy(e->tuple.daddr, key->addr[b], 16);
	e->tuple.sport = key->port[a];
	e->tuple.dport = key->port[b];
	e->endpoint[0] = f->endpoint[a];
	e->endpoint[1] = f->endpoint[b];
	e->identity[0] = f->identity[a];
	e->identity[1] = f->identity[b];
	e->packets[0] = READ_ONCE(f->side[a].packets);
	e->packets[1] = READ_ONCE(f->side[b].packets);
	e->bytes[0] = READ_ONCE(f->side[a].bytes);
	e->bytes[1] = READ_ONCE(f->side[b].bytes);
	e->tcp_flags = (f->tcp_flags >> (8 * a) & 0xff) | (f->tcp_flags >> (8 * b) & 0xff) << 8;
	e->service = READ_ONCE(f->tcp_flags) >> FLOW_SERVICE_SHIFT;
	e->ifindex = f->ifindex[a];
	e->process[0] = READ_ONCE(f->process[a]);
	e->process[1] = READ_ONCE(f->process[b]);
	e->tcp[0] = READ_ONCE(f->errors[a]);
	e->tcp[1] = READ_ONCE(f->errors[b]);
}

/* Clock of the flow's newest packet. */
static __always_inline __u64 flow_last(struct flow *f)
{
	__u64 a = READ_ONCE(f->side[0].last), b = READ_ONCE(f->side[1].last);

	return a > b ? a : b;
}

/* An event about a flow, in its initiator's orientation. */
__noinline int flow_emit(struct flow *f, struct flow_key *key, __u32 kind, __u32 reason, __u32 direction)
{
	struct event *e;
	__u32 state;

	if (!f || !key || !cfg_records)
		return 0;
	state = READ_ONCE(f->state);
	e = bpf_ringbuf_reserve(&flow_events, sizeof(*e), 0);
	if (!e) {
		count(COUNT_EVENT_LOST);
		return 0;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_ns();
	e->epoch = READ_ONCE(f->stamp) >> STAMP_SHIFT;
	e->created = f->created;
	e->last = flow_last(f) * 1000000;
	if (e->last < e->created)
		e->last = e->created;
	if (state & FLOW_INITIATOR)
		event_orient(e, f, key, 1, 0);
	else
		event_orient(e, f, key, 0, 1);
	e->tuple.protocol = key->protocol;
	e->tuple.family = key->family;
	e->rule[0] = f->rule[0];
	e->rule[1] = f->rule[1];
	e->kind = kind;
	e->verdict = kind == EVENT_REVOKED ? VERDICT_DROPPED : VERDICT_FORWARDED;
	e->reason = reason;
	e->direction = direction;
	e->judged = (f->rule[0] ? STAMP_EGRESS : 0) | (f->rule[1] ? STAMP_INGRESS : 0);
	e->path = state & (FLOW_PATH_BPF | FLOW_PATH_NODES) ? PATH_BPF : PATH_STACK;
	e->end = kind == EVENT_REVOKED ? END_REVOKED : state >> FLOW_END_SHIFT;
	e->picked_up = !!(state & FLOW_PICKED_UP);
	e->tcp_known = !!(state & (state & FLOW_INITIATOR ? FLOW_TCP_1 : FLOW_TCP_0)) |
		       !!(state & (state & FLOW_INITIATOR ? FLOW_TCP_0 : FLOW_TCP_1)) << 1;
	if (key->protocol == 1 || key->protocol == 58)
		e->icmp_type = key->protocol == 1 ? 8 : 128;
	bpf_ringbuf_submit(e, 0);
	count(COUNT_EVENT_EMITTED);
	return 0;
}

/* Notes whose socket a side's packet left, once it is known of that side. */
__noinline int flow_process(struct __sk_buff *skb, struct flow *f, __u32 side)
{
	__u32 number;

	if (!f || !cfg_records)
		return 0;
	side &= 1;
	if (!f->endpoint[side] || READ_ONCE(f->process[side]))
		return 0;
	number = sender_process(skb, (READ_ONCE(f->state) & FLOW_INITIATOR) != side);
	if (number)
		WRITE_ONCE(f->process[side], number);
	return 0;
}

/* Notes what its initiator's socket had asked for, once. */
static __always_inline void flow_note_service(struct flow *f, __u32 number)
{
	__u32 was = READ_ONCE(f->tcp_flags);

	for (int i = 0; i < 4 && number && !(was >> FLOW_SERVICE_SHIFT); i++) /* flags come from other CPUs */
		if (CMPXCHG(f->tcp_flags, was, was | number << FLOW_SERVICE_SHIFT) == was)
			break;
		else
			was = READ_ONCE(f->tcp_flags);
}
