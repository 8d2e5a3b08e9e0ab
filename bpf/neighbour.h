/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A pod may ask for its gateway and answer for itself; it has permanent neighbours for all
 * it needs, so everything else of ARP and NDP is an attack or noise. On a link that is shared
 * it asks for whom it likes, and speaks as nobody but itself. */
#pragma once
#include "walk.h"

#define ARP_REQUEST 1
#define ARP_REPLY   2

struct arp_ipv4 {
	__be16 hardware;
	__be16 protocol;
	__u8 lengths[2];
	__be16 op;
	__u8 sha[6];
	__u8 sip[4];
	__u8 tha[6];
	__u8 tip[4];
} __attribute__((packed));

/* A probe for an address before its use has no sender (RFC 5227). */
static __always_inline int arp_on_shared(struct arp_ipv4 *arp, struct endpoint *ep)
{
	__u32 own = *(__u32 *)(ep->addr4 + 12), from = *(__u32 *)arp->sip;

	if (!own || (arp->op != bpf_htons(ARP_REQUEST) && arp->op != bpf_htons(ARP_REPLY)))
		return DROP_NEIGHBOUR;
	return from == own || (!from && *(__u32 *)arp->tip == own) ? DROP_NONE : DROP_NEIGHBOUR;
}

static __always_inline int arp_check(struct __sk_buff *skb, struct endpoint *ep)
{
	struct arp_ipv4 arp;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
		return DROP_TRUNCATED;
	if (arp.hardware != bpf_htons(1) || arp.protocol != bpf_htons(ETH_P_IP) || arp.lengths[0] != 6 ||
	    arp.lengths[1] != 4)
		return DROP_NEIGHBOUR; /* its addresses are elsewhere */
	if (ep && ep->flags & ENDPOINT_SHARED)
		return arp_on_shared(&arp, ep);
	if (!ep || *(__u32 *)arp.sip != *(__u32 *)(ep->addr4 + 12))
		return DROP_NEIGHBOUR;
	if (arp.op == bpf_htons(ARP_REPLY))
		return DROP_NONE;
	return arp.op == bpf_htons(ARP_REQUEST) && *(__u32 *)arp.tip == *(volatile __u32 *)cfg_gateway4
		       ? DROP_NONE
		       : DROP_NEIGHBOUR;
}

/* The link-local address that a pod's interface makes of its MAC (EUI-64). */
static __always_inline int is_name_on_link(const __u64 *addr, const __u8 *mac)
{
	const __u8 *a = (const __u8 *)(addr + 1);

	return addr[0] == bpf_cpu_to_be64(0xfe80ULL << 48) && a[0] == (mac[0] ^ 2) && a[1] == mac[1] &&
	       a[2] == mac[2] && a[3] == 0xff && a[4] == 0xfe && a[5] == mac[3] && a[6] == mac[4] && a[7] == mac[5];
}

/* A solicitation without a source asks whether an address is free: of its own alone. */
static __always_inline int ndp_on_shared(struct walk *w, struct endpoint *ep, int own)
{
	const __u64 *from = (const __u64 *)w->packet.tuple.saddr;
	int self = same_address((const __u8 *)from, ep->addr6) || is_name_on_link(from, ep->mac);

	if (w->packet.icmp_type == 135 ? self || (own && !from[0] && !from[1]) : self && own)
		return DROP_NONE;
	return DROP_NEIGHBOUR;
}

/* Neighbour solicitation for the gateway, advertisement of the pod's own address: whole, from
 * this link (RFC 4861, 7.1), and in no fragment (RFC 6980). */
static __always_inline int ndp_check(struct __sk_buff *skb, struct walk *w, struct endpoint *ep)
{
	__u32 at = w->packet.l4 + 8;
	__u64 target[2];
	int own, gateway;
	__u8 hops = 0;

	if (at + sizeof(target) > ETH_HLEN + w->packet.length || bpf_skb_load_bytes(skb, at, target, sizeof(target)))
		return DROP_TRUNCATED;
	bpf_skb_load_bytes(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, hop_limit), &hops, 1);
	if (!ep || hops != 255 || w->packet.icmp_code || w->packet.first_fragment)
		return DROP_NEIGHBOUR;
	own = same_address((__u8 *)target, ep->addr6);
	if (ep->flags & ENDPOINT_SHARED)
		return ndp_on_shared(w, ep, own || is_name_on_link(target, ep->mac));
	gateway = target[0] == *(volatile __u64 *)cfg_gateway6 && target[1] == *(volatile __u64 *)(cfg_gateway6 + 8);
	return w->packet.icmp_type == 135 ? (gateway ? DROP_NONE : DROP_NEIGHBOUR) : (own ? DROP_NONE : DROP_NEIGHBOUR);
}

/* ARP or NDP from a pod. A function of its own for its buffers' sake. */
__noinline int neighbour_check(struct __sk_buff *skb, struct walk *w)
{
	struct endpoint *ep;

	if (!w)
		return DROP_NEIGHBOUR;
	ep = endpoint_at(w->end[0].endpoint);
	return w->packet.kind == PACKET_ARP ? arp_check(skb, ep) : ndp_check(skb, w, ep);
}
