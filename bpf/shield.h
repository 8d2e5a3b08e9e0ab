/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* XDP, before an skb is made: what can be refused by looking at the first headers alone. */
#pragma once
#include "walk.h"

/* Source address and family; a drop reason where the frame is no such thing. */
static __always_inline int shield_source(struct xdp_md *ctx, __u8 *addr, __u8 *family)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *v4 = (void *)(eth + 1);
	struct ipv6hdr *v6 = (void *)(eth + 1);

	*family = 0;
	if ((void *)(eth + 1) > end)
		return DROP_TRUNCATED;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if ((void *)(v4 + 1) > end)
			return DROP_TRUNCATED;
		if (v4->version != 4 || v4->ihl < 5 || bpf_ntohs(v4->tot_len) < v4->ihl * 4)
			return DROP_BAD_HEADER;
		map_v4(addr, v4->saddr);
		*family = 4;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		if ((void *)(v6 + 1) > end)
			return DROP_TRUNCATED;
		if (v6->version != 6)
			return DROP_BAD_HEADER;
		__builtin_memcpy(addr, &v6->saddr, 16);
		*family = 6;
	}
	return DROP_NONE;
}

static __always_inline int shield_drop(int reason)
{
	count(COUNT_DROP + reason);
	return XDP_DROP;
}

static __always_inline int shield_denies(__u8 *addr, __u8 family)
{
	struct prefix_key key = { .length = 8 + 128, .family = family };

	__builtin_memcpy(key.addr, addr, 16);
	return bpf_map_lookup_elem(&shield_deny, &key) != 0;
}

/* On a pod's veth: no frame of a quarantined pod, none with an address that is not its own.
 * Link-local IPv6 is left to from_pod, which lets neighbour discovery through and no more. */
static __always_inline int shield_endpoint(struct xdp_md *ctx)
{
	__u64 addr[2] = {};
	struct endpoint *ep = endpoint_at(endpoint_number(ctx->ingress_ifindex));
	__u8 family;
	int reason = shield_source(ctx, (__u8 *)addr, &family);

	if (reason)
		return shield_drop(reason);
	if (!ep)
		return shield_drop(DROP_NO_ENDPOINT);
	if (ep->flags & ENDPOINT_QUARANTINE)
		return shield_drop(DROP_QUARANTINE);
	if (!family || (family == 6 && *(__u8 *)addr == 0xfe))
		return XDP_PASS;
	return same_address((__u8 *)addr, endpoint_addr(ep, family)) ? XDP_PASS : shield_drop(DROP_SPOOFED_SOURCE);
}

static __always_inline int shield_network(struct xdp_md *ctx)
{
	__u64 addr[2] = {};
	__u8 family;
	int reason = shield_source(ctx, (__u8 *)addr, &family);

	if (reason)
		return shield_drop(reason);
	return family && shield_denies((__u8 *)addr, family) ? shield_drop(DROP_SHIELD) : XDP_PASS;
}
