/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The verdict of a ruleset on a peer. The order is what Go's State.Judge has: the exact
 * port's group, then the wide groups in their order; within a group the least ordinal.
 * Few wide groups are asked one by one. Of many, the port's span says which have the port
 * and the identities' masks which have the peer: the first in both answers.
 */
#pragma once
#include "peer.h"

/* A question to a ruleset, and its answer. */
struct query {
	__u64 word; /* the peer */
	__u32 ruleset;
	__u32 rule; /* answer: the rule that decided */
	__u16 port; /* destination port, 0 where the protocol has none */
	__u8 protocol;
	__u8 allow;   /* answer */
	__u8 missing; /* answer: the ruleset is not there: drop, whatever else */
	__u8 pad[3];
};

static __always_inline __u32 rule_at(__u32 index)
{
	__u32 *rule = bpf_map_lookup_elem(&rule_ids, &index);

	return rule ? *rule : 0;
}

#define NO_FACT 0xffffffff

static __always_inline __u32 fact(__u32 set, __u32 identity, __u8 protocol, __u16 port)
{
	struct fact_key key = { .set = set, .identity = identity, .protocol = protocol, .port = port };
	__u32 *ordinal = bpf_map_lookup_elem(&facts, &key);

	return ordinal ? *ordinal : NO_FACT;
}

/* What finds the span: twice WIDE_MAX and one more are fewer than 2^10 + 1. */
#define SPAN_STEPS 10

/* Rule by which the group allows the peer, 0 = it does not. */
static __always_inline __u32 group_match(struct port_group *g, __u64 word, __u8 protocol, __u16 port)
{
	__u32 identity = identity_of(word), block = word >> 32, ordinal = NO_FACT, other;

	if (g->port_name && fact(g->port_name, identity, protocol, port) == NO_FACT)
		return 0;
	if (g->flags & GROUP_ANY ||
	    (g->flags & GROUP_ALL_PODS && identity >= IDENTITY_FIRST && identity < IDENTITY_BLOCK))
		return rule_at(g->rules);
	if (g->flags & GROUP_LABELS && identity)
		ordinal = fact(g->set, identity, 0, 0);
	if (g->flags & GROUP_BLOCKS && block) {
		other = fact(g->set, block, 0, 0);
		if (other < ordinal)
			ordinal = other;
	}
	return ordinal == NO_FACT ? 0 : rule_at(g->rules + ordinal);
}

/* One wide group; 1 = it answers. */
__noinline int ask_group(struct query *q, __u32 index)
{
	struct port_group *g = bpf_map_lookup_elem(&port_groups, &index);

	if (!q || !g)
		return 1;
	if (g->protocol && (g->protocol != q->protocol || q->port < g->low || q->port > g->high))
		return 0;
	q->rule = group_match(g, q->word, q->protocol, q->port);
	return q->rule != 0;
}

static __always_inline void mask_add(struct wide_mask *to, struct wide_mask *m)
{
	if (m)
		for (int i = 0; i < WIDE_WORDS; i++)
			to->word[i] |= m->word[i];
}

static __always_inline void mask_add_span(struct wide_mask *to, __u32 index)
{
	struct port_span *s = bpf_map_lookup_elem(&port_spans, &index);

	mask_add(to, s ? &s->groups : 0);
}

/* Index of the span that has the port: there is one for every port. */
static __always_inline __u32 span_of(struct ruleset *r, __u32 port)
{
	__u32 at = r->spans + SPANS_FIRST, left = r->span_count, index;
	struct port_span *s;

	for (int i = 0; i < SPAN_STEPS && left > 1; i++, left -= left / 2) {
		index = at + left / 2;
		s = bpf_map_lookup_elem(&port_spans, &index);
		if (s && s->from <= port)
			at = index;
	}
	return at;
}

/* The place of the least bit of a word that has one. */
static __always_inline __u32 first_bit(__u64 word)
{
	__u32 n = 0;

	for (__u32 half = 32; half; half /= 2) {
		if (word & ((1ULL << half) - 1))
			continue;
		word >>= half;
		n += half;
	}
	return n;
}

#define NO_GROUP 0xffffffff

/* Index of the first of many wide groups that has both port and peer. */
__noinline __u32 masked_group(struct query *q, struct ruleset *r)
{
	struct mask_key key = {};
	struct wide_mask peer = {}, port = {};

	if (!q || !r)
		return NO_GROUP;
	key.ruleset = q->ruleset;
	key.identity = identity_of(q->word);
	mask_add_span(&peer, r->spans);
	if (key.identity >= IDENTITY_FIRST && key.identity < IDENTITY_BLOCK)
		mask_add_span(&peer, r->spans + 1);
	if (key.identity)
		mask_add(&peer, bpf_map_lookup_elem(&peer_masks, &key));
	mask_add_span(&port, span_of(r, (__u32)q->protocol << 16 | q->port));
	if (r->names && q->port && key.identity) { /* without a port the key is the peer's */
		key.port = q->port;
		key.protocol = q->protocol;
		mask_add(&port, bpf_map_lookup_elem(&peer_masks, &key));
	}
	key.port = key.protocol = 0;
	key.identity = q->word >> 32;
	if (key.identity)
		mask_add(&peer, bpf_map_lookup_elem(&peer_masks, &key));
	for (__u32 i = 0; i < WIDE_WORDS; i++)
		if (port.word[i] & peer.word[i])
			return r->wide + 64 * i + first_bit(port.word[i] & peer.word[i]);
	return NO_GROUP;
}

/* What a ruleset says of a peer. */
__noinline int judge(struct query *q)
{
	struct ruleset *r;
	__u32 id;

	if (!q)
		return 0;
	q->rule = q->allow = 0;
	id = q->ruleset; /* keys live on the stack: older kernels take them from nowhere else */
	r = bpf_map_lookup_elem(&rulesets, &id);
	q->missing = !r;
	if (!r)
		return 0;
	if (r->exact) {
		struct exact_key key = { .ruleset = q->ruleset, .port = q->port, .protocol = q->protocol };
		struct port_group *g = bpf_map_lookup_elem(&exact_groups, &key);

		if (g)
			q->rule = group_match(g, q->word, q->protocol, q->port);
	}
	if (!q->rule && r->span_count) {
		id = masked_group(q, r);
		if (id != NO_GROUP)
			ask_group(q, id);
	} else if (!q->rule) {
		for (__u32 i = 0; i < SCAN_MAX && i < r->wide_count; i++)
			if (ask_group(q, r->wide + i))
				break;
	}
	q->allow = q->rule ? 1 : r->allow;
	q->rule = q->rule ? q->rule : r->default_rule;
	return 0;
}
