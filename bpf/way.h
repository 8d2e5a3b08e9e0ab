/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Between pods of two nodes, past the nodes' stacks. A flow has its path here from its first packet
 * on, both directions one, so that the stack's connection tracking sees a flow whole or not at all.
 * Where anything is unclear it is the stack's. */
#pragma once
#include "decide.h"
#include "tunnel.h"

#define AF_INET  2
#define AF_INET6 10

/* What may begin such a flow: what the stack's NAT cannot know already. TCP tells by its SYN. Entries
 * of UDP outlive those of the stack, but not where the table was made anew. */
static __always_inline int may_pass_stack(struct packet *p)
{
	if (!cfg_host_routing || p->kind != PACKET_FLOW || p->first_fragment)
		return 0;
	if (p->tuple.protocol == IPPROTO_UDP)
		return node.clock >= node.pickup_until;
	return is_opener(p) || (is_icmp(p) && is_icmp_request(p));
}

/* Notes the way to the other node that has the walk's source (0) or destination (1) among its pods.
 * ifindex: the device that it has to be by, 0 = any. Returns its key, 0 = none. */
__noinline int way_find(struct walk *w, __u32 which, __u32 ifindex)
{
	struct origin *origin;
	struct way *way;
	__u32 key;

	if (!w || !may_pass_stack(&w->packet))
		return 0;
	origin = origin_of(which & 1 ? w->packet.tuple.daddr : w->packet.tuple.saddr, w->packet.tuple.family);
	if (!origin || origin->address)
		return 0;
	key = ((__u32)origin->node & ~WAY_V6) | (w->packet.tuple.family == 6 ? WAY_V6 : 0);
	way = bpf_map_lookup_elem(&ways, &key);
	if (!way || way->node != origin->node || (ifindex && way->ifindex != ifindex))
		return 0;
	w->way = key;
	return key;
}

/* The key of the way that a flow's outside has, if the path is such a one; 0 = it is not. */
static __always_inline __u32 way_of(struct flow *f, int side)
{
	__u32 key;

	if (!(READ_ONCE(f->state) & FLOW_PATH_NODES) || READ_ONCE(f->ifindex[side & 1]) != IFACE_OUTSIDE)
		return 0;
	__builtin_memcpy(&key, f->side[side & 1].mac, sizeof(key));
	return key;
}

/* Whether a packet came by the walk's way, for this node, and whole: the stack's business is what comes
 * by another device, and what has to be put together. */
__noinline int came_by_way(struct __sk_buff *skb, struct walk *w)
{
	struct way *way;
	__u32 key;

	if (!w || w->packet.first_fragment || skb->pkt_type != PACKET_HOST)
		return 0;
	key = w->way;
	way = key ? bpf_map_lookup_elem(&ways, &key) : 0;
	return way && way->ifindex == skb->ifindex;
}

/* A packet that stands for many is as long as the longest of them. */
static __always_inline __u32 length_sent(struct __sk_buff *skb, struct packet *p)
{
	__u32 header;

	if (p->segments <= 1)
		return p->length;
	header = (p->length - (skb->len - ETH_HLEN)) / (p->segments - 1); /* of each of the others */
	return header + skb->gso_size;
}

static __always_inline int to_next_hop(struct way *way)
{
	struct bpf_redir_neigh hop = { .nh_family = way->family == 6 ? AF_INET6 : AF_INET };

	if (way->family == 6)
		__builtin_memcpy(hop.ipv6_nh, way->addr, 16);
	else
		__builtin_memcpy(&hop.ipv4_nh, way->addr + 12, 4);
	return bpf_redirect_neigh(way->ifindex, &hop, sizeof(hop), 0);
}

static __always_inline void host_mac(__u8 *to)
{
	*(__u32 *)to = *(volatile __u32 *)cfg_host_mac;
	*(__u16 *)(to + 4) = *(volatile __u16 *)(cfg_host_mac + 4);
}

/* As the stack's own routes through the tunnel have it: checksums over IPv6 alone, and of what the pod
 * wrote as hardware addresses nothing. */
static __always_inline int to_far_end(struct __sk_buff *skb, struct way *way)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct bpf_tunnel_key key = { .tunnel_id = TUNNEL_NETWORK };
	__u64 flags = way->family == 6 ? BPF_F_TUNINFO_IPV6 : BPF_F_ZERO_CSUM_TX;
	__be32 v4;

	if ((void *)(eth + 1) > end)
		return TC_DROP;
	host_mac(eth->h_dest);
	host_mac(eth->h_source);
	if (way->family == 6) {
		__builtin_memcpy(key.remote_ipv6, way->addr, 16);
	} else {
		__builtin_memcpy(&v4, way->addr + 12, sizeof(v4));
		key.remote_ipv4 = bpf_ntohl(v4);
	}
	if (bpf_skb_set_tunnel_key(skb, &key, TUNNEL_KEY_SIZE, flags))
		return TC_DROP;
	return bpf_redirect(way->ifindex, 0);
}

/* Sends the packet on by the walk's way. TC_NEXT: the stack has to, and nothing is done yet. What is too
 * long for the way the stack cuts up, or tells its sender of; it may want all pieces of a datagram for
 * that. */
__noinline int by_way(struct __sk_buff *skb, struct walk *w)
{
	struct way *way;
	__u32 key;

	if (!w || w->packet.first_fragment || w->packet.kind == PACKET_FRAGMENT)
		return TC_NEXT;
	key = w->way;
	way = key ? bpf_map_lookup_elem(&ways, &key) : 0;
	if (!way || length_sent(skb, &w->packet) > way->mtu)
		return TC_NEXT;
	skb->mark &= ~(0xffffU << cfg_mark_shift);
	return way->tunnel ? to_far_end(skb, way) : to_next_hop(way);
}
