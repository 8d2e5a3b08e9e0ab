/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Later fragments have no ports: they borrow those of their first, which was judged, and
 * then need its flow entry like any packet. Out of order = drop, counted. */
#pragma once
#include "walk.h"

#define FRAGMENT_LIFE 2000 /* ms */

static __always_inline __u64 fragment_check(struct packet *p, __u32 iface)
{
	__u64 *s = (__u64 *)p->tuple.saddr, *d = (__u64 *)p->tuple.daddr, h = cfg_seed;

	h = mix(mix(mix(mix(h, s[0]), s[1]), d[0]), d[1]);
	h = mix(mix(h, (__u64)p->fragment_id << 32 | iface), p->tuple.protocol << 8 | p->tuple.family);
	return h ? h : 1;
}

/* The datagram's place among its sender's: iface is an endpoint's, or the outside's. */
static __always_inline struct fragment *fragment_place(__u32 iface, __u64 check)
{
	__u32 number = endpoint_number(iface), place = check >> 32;

	place = number ? FRAGMENTS_OUTSIDE + number * FRAGMENTS + (place & (FRAGMENTS - 1))
		       : place & (FRAGMENTS_OUTSIDE - 1);
	return bpf_map_lookup_elem(&fragments, &place);
}

/* Remembers a first fragment that was let through; forgets one that was not. */
__noinline int fragment_first(struct walk *w, __u32 iface, __u32 allowed)
{
	struct fragment *f;
	struct packet *p;
	__u64 check;

	if (!w)
		return 0;
	p = &w->packet;
	check = fragment_check(p, iface);
	f = fragment_place(iface, check);
	if (!f || (!allowed && READ_ONCE(f->check) != check))
		return 0;
	WRITE_ONCE(f->check, 0);
	if (!allowed)
		return 0;
	WRITE_ONCE(f->expires, node.clock + FRAGMENT_LIFE);
	WRITE_ONCE(f->sport, p->tuple.sport);
	WRITE_ONCE(f->dport, p->tuple.dport);
	WRITE_ONCE(f->icmp_type, p->icmp_type);
	WRITE_ONCE(f->check, check);
	return 0;
}

__noinline int fragment_later(struct walk *w, __u32 iface)
{
	struct fragment *f;
	struct packet *p;
	__u64 check;

	if (!w)
		return DROP_FRAGMENT_UNKNOWN;
	p = &w->packet;
	check = fragment_check(p, iface);
	f = fragment_place(iface, check);
	if (!f || READ_ONCE(f->check) != check || READ_ONCE(f->expires) < node.clock)
		return DROP_FRAGMENT_UNKNOWN;
	p->tuple.sport = READ_ONCE(f->sport);
	p->tuple.dport = READ_ONCE(f->dport);
	p->icmp_type = READ_ONCE(f->icmp_type);
	if (p->tuple.protocol == IPPROTO_TCP)
		p->tcp_flags = TCP_ACK;
	return READ_ONCE(f->check) == check ? DROP_NONE : DROP_FRAGMENT_UNKNOWN;
}
