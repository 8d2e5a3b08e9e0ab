/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The verdict of a ruleset on a peer. The order is what Go's State.Judge has: the exact
 * port's group, then the scanned groups in their order; within a group the least ordinal.
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

/* A query on its way through the groups that are scanned. Apart from it for the stack's sake:
 * on older kernels every frame takes a multiple of 32 bytes, and all have 512 together. */
struct scan {
	__u64 word;
	__u32 rule;
	__u32 begin;
	__u32 end;
	__u16 port;
	__u8 protocol;
	__u8 pad;
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

/* One scanned group; 1 = it answers. */
__noinline int scan_group(struct scan *s, __u32 index)
{
	struct port_group *g = bpf_map_lookup_elem(&port_groups, &index);

	if (!s || !g)
		return 1;
	if (g->protocol && (g->protocol != s->protocol || s->port < g->low || s->port > g->high))
		return 0;
	s->rule = group_match(g, s->word, s->protocol, s->port);
	return s->rule != 0;
}

static long scan_chunk(__u32 i, struct scan *s)
{
	__u32 index = s->begin + i * SCAN_CHUNK;
	struct port_group *g;

	if (index >= s->end)
		return 1;
	g = bpf_map_lookup_elem(&port_groups, &index);
	if (!g)
		return 1;
	if (s->port < g->hull_low || s->port > g->hull_high)
		return 0;
	for (i = 0; i < SCAN_CHUNK && index < s->end; i++, index++)
		if (scan_group(s, index))
			return 1;
	return 0;
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
	if (!q->rule && r->scan_count) {
		struct scan s = {
			.word = q->word,
			.begin = r->scan,
			.end = r->scan + r->scan_count,
			.port = q->port,
			.protocol = q->protocol,
		};

		bpf_loop(SCAN_MAX / SCAN_CHUNK, scan_chunk, &s, 0);
		q->rule = s.rule;
	}
	q->allow = q->rule ? 1 : r->allow;
	q->rule = q->rule ? q->rule : r->default_rule;
	return 0;
}
