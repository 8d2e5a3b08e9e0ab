/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Denials again. In one epoch, what would begin a flow and is denied by a ruleset is denied
 * whenever it comes: so it is remembered by what the packet itself says, and the next one is
 * refused without asking who its ends are. The flow table has been asked before: what belongs
 * to an entry is the entry's. Each interface has places of its own, so that nobody can wash out
 * another's.
 */
#pragma once
#include "record.h"

/* Whether the packet is judged as what it says it is, and nothing more is to be done for it. */
static __always_inline int is_refusable(struct walk *w)
{
	struct packet *p = &w->packet;
	__u8 protocol = p->tuple.protocol;

	if (p->kind != PACKET_FLOW || w->hit >= HIT_STALE || p->first_fragment)
		return 0;
	if (protocol == IPPROTO_TCP)
		return is_opener(p);
	return (protocol != IPPROTO_ICMP && protocol != IPPROTO_ICMPV6_) || is_icmp_request(p);
}

static __always_inline struct refusal *refusal_place(struct walk *w, __u8 *addr)
{
	__u64 *peer = (__u64 *)addr;
	__u64 h = mix(cfg_seed ^ (peer[0] + peer[1]), (__u64)w->packet.tuple.dport << 16 | w->packet.tuple.protocol);
	__u32 place = (w->ifindex & (ENDPOINT_MAX - 1)) * REFUSALS + (h >> 40 & (REFUSALS - 1));

	return bpf_map_lookup_elem(&refusals, &place);
}

/* A refusal word by word: the compiler is told that these are its fields. */
typedef __u64 __attribute__((may_alias)) refusal_word;

/* Sums the words, each times a constant of its own, so that none waits for another. */
static __always_inline __u64 refusal_check(struct refusal *r)
{
	refusal_word *word = (refusal_word *)r;
	__u64 sum = cfg_seed;

	for (int i = 0; i < __builtin_offsetof(struct refusal, check) / 8; i++)
		sum += word[i] * (mix(0x9e3779b97f4a7c15ULL, i + 1) | 1);
	return sum;
}

/* Whether the refusal is of a packet like this one, and the hook's pod still who it was. */
static __always_inline int is_refusal_of(struct refusal *r, struct walk *w, __u32 sender)
{
	struct tuple *t = &w->packet.tuple;
	int pod = sender ? 1 : 0;
	struct endpoint *ep;

	if (r->epoch != w->epoch || r->ifindex != w->ifindex || r->sender != sender || r->dport != t->dport ||
	    r->protocol != t->protocol || r->family != t->family ||
	    !same_address(r->peer, sender ? t->saddr : t->daddr) || r->check != refusal_check(r))
		return 0;
	ep = endpoint_at(r->endpoint[pod]);
	return ep && READ_ONCE(ep->ifindex) == w->ifindex && !(ep->flags & ENDPOINT_QUARANTINE) &&
	       same_address(sender ? t->daddr : t->saddr, endpoint_addr(ep, t->family));
}

/* 1: refused, counted and recorded. sender: 0 = the hook's pod. */
__noinline int refused_again(struct __sk_buff *skb, struct walk *w, __u32 sender)
{
	struct refusal *at, r;

	if (!w || !is_refusable(w))
		return 0;
	at = refusal_place(w, sender ? w->packet.tuple.saddr : w->packet.tuple.daddr);
	if (!at || READ_ONCE(at->epoch) != w->epoch)
		return 0;
	for (int i = 0; i < sizeof(r) / 8; i++) /* once: another CPU may be writing it */
		((refusal_word *)&r)[i] = READ_ONCE(((refusal_word *)at)[i]);
	if (!is_refusal_of(&r, w, sender))
		return 0;
	w->end[0].endpoint = r.endpoint[0];
	w->end[1].endpoint = r.endpoint[1];
	w->end[0].word = r.identity[0];
	w->end[1].word = r.identity[1];
	w->rule[0] = r.rule[0];
	w->rule[1] = r.rule[1];
	w->direction = r.direction;
	w->reason = r.reason;
	count(COUNT_DENIAL_CACHED);
	refuse(skb, w);
	return 1;
}

/* Remembers the walk's packet, which was judged as the first of a flow and refused. */
__noinline int refusal_remember(struct walk *w, __u32 sender)
{
	struct refusal r = {}, *at;

	if (!w || (w->reason != DROP_POLICY && w->reason != DROP_UNMANAGED_PEER) || !is_refusable(w))
		return 0;
	r.epoch = w->epoch;
	__builtin_memcpy(r.peer, sender ? w->packet.tuple.saddr : w->packet.tuple.daddr, 16);
	r.ifindex = w->ifindex;
	r.sender = sender;
	r.dport = w->packet.tuple.dport;
	r.protocol = w->packet.tuple.protocol;
	r.family = w->packet.tuple.family;
	r.direction = w->direction;
	r.reason = w->reason;
	r.endpoint[0] = w->end[0].endpoint;
	r.endpoint[1] = w->end[1].endpoint;
	r.identity[0] = identity_of(w->end[0].word);
	r.identity[1] = identity_of(w->end[1].word);
	r.rule[0] = w->rule[0];
	r.rule[1] = w->rule[1];
	r.check = refusal_check(&r);
	at = refusal_place(w, r.peer);
	if (at)
		*at = r;
	return 0;
}
