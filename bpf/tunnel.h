/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where packets from other nodes may come from. A pod's address proves nothing here: what
 * comes out of the tunnel has to come from the node that its sender lives on, and what a
 * pod of another node sends comes by no other way. */
#pragma once
#include "walk.h"
#include <linux/if_packet.h>

/* What older kernels know of it. */
#define EINVAL          22
#define TUNNEL_KEY_SIZE __builtin_offsetof(struct bpf_tunnel_key, local_ipv4)

/* The node behind an address of its own or of its pods, 0 = none. */
static __always_inline struct origin *origin_of(const __u8 *addr, __u8 family)
{
	struct prefix_key key = { .length = 8 + 128, .family = family };

	__builtin_memcpy(key.addr, addr, 16);
	return bpf_map_lookup_elem(&origins, &key);
}

/* The node that a tunnel packet's outer source names, 0 = none; *network is the packet's. */
static __always_inline __u64 tunnel_node(struct __sk_buff *skb, __u32 *network)
{
	struct bpf_tunnel_key key = {};
	struct origin *origin;
	__u8 addr[16] = {};
	__u8 family = 4;

	if (!bpf_skb_get_tunnel_key(skb, &key, TUNNEL_KEY_SIZE, 0)) {
		map_v4(addr, bpf_htonl(key.remote_ipv4));
	} else {
		if (bpf_skb_get_tunnel_key(skb, &key, TUNNEL_KEY_SIZE, BPF_F_TUNINFO_IPV6))
			return 0;
		__builtin_memcpy(addr, key.remote_ipv6, 16);
		family = 6;
	}
	*network = key.tunnel_id;
	origin = origin_of(addr, family);
	return origin && origin->address ? origin->node : 0;
}

/* Whether the packet is about to get the tunnel's headers. The tunnel packet would have its mark,
 * too, and of what is marked the kernel looks up the way each time instead of remembering it. */
__noinline int is_tunnelled(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = {};

	return bpf_skb_get_tunnel_key(skb, &key, TUNNEL_KEY_SIZE, 0) != -EINVAL;
}

/* Whether what came out of the tunnel is what it says it is. */
__noinline int tunnel_check(struct __sk_buff *skb, struct walk *w)
{
	struct origin *from;
	__u32 network = 0;
	__u64 node;

	if (!w)
		return DROP_TUNNEL_SOURCE;
	node = tunnel_node(skb, &network);
	if (network != TUNNEL_NETWORK)
		return DROP_TUNNEL_NETWORK;
	if (!node)
		return DROP_TUNNEL_NODE;
	if (w->reason)
		return w->reason;
	if (w->packet.kind == PACKET_ARP || w->packet.kind == PACKET_NEIGHBOUR)
		return DROP_NEIGHBOUR; /* nobody is on a link with anybody here */
	from = origin_of(w->packet.tuple.saddr, w->packet.tuple.family);
	return from && from->node == node ? DROP_NONE : DROP_TUNNEL_SOURCE;
}

/* What another node's pod sends comes by the tunnel, if there is one. */
__noinline int is_untunnelled(struct walk *w)
{
	struct origin *from;

	if (!w || w->reason || w->packet.kind == PACKET_ARP || w->packet.kind == PACKET_NEIGHBOUR)
		return 0;
	from = origin_of(w->packet.tuple.saddr, w->packet.tuple.family);
	return from && !from->address;
}
