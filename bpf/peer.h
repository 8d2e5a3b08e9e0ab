/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who an address is, and what an interface is, in one epoch. */
#pragma once
#include "parse.h"

/* One end of a packet. */
struct end {
	__u64 word;     /* identity | block << 32 */
	__u32 endpoint; /* number, 0 = no pod of this node */
	__u32 iface;    /* ifindex, or enum iface_class */
};

static __always_inline __u32 identity_of(__u64 word)
{
	return (__u32)word;
}

static __always_inline struct endpoint *endpoint_at(__u32 number)
{
	return number ? bpf_map_lookup_elem(&endpoints, &number) : 0;
}

/* The endpoint of an interface, 0 = none. Retried once: an entry moves while it is written. */
static __always_inline __u32 endpoint_number(__u32 ifindex)
{
	__u32 *n = bpf_map_lookup_elem(&endpoint_index, &ifindex);
	struct endpoint *ep;

	if (!n)
		n = bpf_map_lookup_elem(&endpoint_index, &ifindex);
	if (!n)
		return 0;
	__u32 number = READ_ONCE(*n);
	ep = endpoint_at(number);
	return ep && READ_ONCE(ep->ifindex) == ifindex ? number : 0;
}

static __always_inline __u8 *endpoint_addr(struct endpoint *ep, __u8 family)
{
	return family == 6 ? ep->addr6 : ep->addr4;
}

static __always_inline int has_family(struct endpoint *ep, __u8 family)
{
	__u64 *a = (__u64 *)endpoint_addr(ep, family);

	return a[0] || a[1];
}

static __always_inline int peer_read(__u32 index, __u64 epoch, __u64 *word, __u32 *endpoint)
{
	struct peer_entry *e = bpf_map_lookup_elem(&peers, &index);

	if (!e || !slots_read(&e->slots, epoch, word))
		return 0;
	*endpoint = READ_ONCE(e->endpoint);
	return 1;
}

/* What an address is: itself, else the longest prefix over it. Leaves word 0 (unknown) for none. */
static __always_inline int peer_at(const __u8 *addr, __u8 family, __u64 epoch, struct end *end)
{
	struct prefix_key prefix = { .length = 8 + 128, .family = family };
	struct address_key key = { .family = family };
	__u32 *index;

	end->word = 0;
	end->endpoint = 0;
	__builtin_memcpy(key.addr, addr, 16);
	index = bpf_map_lookup_elem(&addresses, &key);
	if (index && peer_read(READ_ONCE(*index), epoch, &end->word, &end->endpoint))
		return 1;
	__builtin_memcpy(prefix.addr, addr, 16);
	index = bpf_map_lookup_elem(&prefixes, &prefix);
	return index && peer_read(READ_ONCE(*index), epoch, &end->word, &end->endpoint);
}

/* The end that is endpoint number: by its own address, whatever NAT made of the packet's. */
__noinline int peer_of_endpoint(__u32 number, __u32 family, __u64 epoch, struct end *end)
{
	struct endpoint *ep = endpoint_at(number);

	if (!ep || !end)
		return 0;
	if (!has_family(ep, family))
		family = family == 6 ? 4 : 6;
	peer_at(endpoint_addr(ep, family), family, epoch, end);
	end->endpoint = number;
	end->iface = READ_ONCE(ep->ifindex);
	return end->iface != 0;
}

/* Both rulesets of an endpoint, 0 = none: it has been detached, or has no policy yet. */
static __always_inline __u64 rulesets_of(__u32 number, __u64 epoch)
{
	struct endpoint *ep = endpoint_at(number);
	__u64 word;

	return ep && slots_read(&ep->slots, epoch, &word) ? word : 0;
}

/* Ruleset of one direction of an endpoint, 0 = none. */
static __always_inline __u32 ruleset_of(__u32 number, int direction, __u64 epoch)
{
	__u64 word = rulesets_of(number, epoch);

	return direction == DIRECTION_EGRESS ? (__u32)word : word >> 32;
}
