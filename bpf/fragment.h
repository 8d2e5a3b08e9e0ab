/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Later fragments have no ports: they borrow those of their first, which was judged, and
 * then need its flow entry like any packet. Out of order = drop, counted. */
#pragma once
#include "walk.h"

#define FRAGMENT_LIFE 2000 /* ms */

static __always_inline void fragment_key_of(struct packet *p, __u32 iface, struct fragment_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	__builtin_memcpy(key->saddr, p->tuple.saddr, 16);
	__builtin_memcpy(key->daddr, p->tuple.daddr, 16);
	key->ifindex = iface;
	key->id = p->fragment_id;
	key->protocol = p->tuple.protocol;
	key->family = p->tuple.family;
}

static __always_inline __u64 fragment_check(struct fragment_key *key)
{
	__u64 *s = (__u64 *)key->saddr, *d = (__u64 *)key->daddr;

	return mix(mix(mix(mix(mix(cfg_seed, s[0]), s[1]), d[0]), d[1]), (__u64)key->id << 32 | key->ifindex);
}

/* Remembers a first fragment that was let through; forgets one that was not. */
__noinline int fragment_first(struct walk *w, __u32 iface, __u32 allowed)
{
	struct fragment_key key;
	struct fragment f = {};
	struct packet *p;

	if (!w)
		return 0;
	p = &w->packet;
	f.expires = node.clock + FRAGMENT_LIFE;
	f.sport = p->tuple.sport;
	f.dport = p->tuple.dport;
	f.icmp_type = p->icmp_type;

	fragment_key_of(p, iface, &key);
	f.check = fragment_check(&key);
	if (allowed)
		bpf_map_update_elem(&fragments, &key, &f, BPF_ANY);
	else
		bpf_map_delete_elem(&fragments, &key);
	return 0;
}

__noinline int fragment_later(struct walk *w, __u32 iface)
{
	struct fragment_key key;
	struct fragment *f;
	struct packet *p;

	if (!w)
		return DROP_FRAGMENT_UNKNOWN;
	p = &w->packet;
	fragment_key_of(p, iface, &key);
	f = bpf_map_lookup_elem(&fragments, &key);
	if (!f || READ_ONCE(f->expires) < node.clock)
		return DROP_FRAGMENT_UNKNOWN;
	p->tuple.sport = READ_ONCE(f->sport);
	p->tuple.dport = READ_ONCE(f->dport);
	p->icmp_type = READ_ONCE(f->icmp_type);
	if (p->tuple.protocol == IPPROTO_TCP)
		p->tcp_flags = TCP_ACK;
	return READ_ONCE(f->check) == fragment_check(&key) ? DROP_NONE : DROP_FRAGMENT_UNKNOWN;
}
