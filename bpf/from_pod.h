/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a pod sends, at the host side of its veth. The interface says who sends, and the
 * packet has to agree. */
#pragma once
#include "hook.h"
#include "neighbour.h"
#include "park.h"

static __always_inline int is_frontend(struct walk *w, int own_node)
{
	struct frontend_key key = { .port = w->packet.tuple.dport,
				    .protocol = w->packet.tuple.protocol,
				    .family = w->packet.tuple.family };

	if (own_node && bpf_map_lookup_elem(&frontends, &key))
		return 1;
	__builtin_memcpy(key.addr, w->packet.tuple.daddr, 16);
	return bpf_map_lookup_elem(&frontends, &key) != 0;
}

static __always_inline int is_link_local(__u8 *a)
{
	return a[0] == 0xfe && (a[1] & 0xc0) == 0x80;
}

/* Whom a pod's new packet is for. */
__noinline int destination_find(struct walk *w)
{
	struct endpoint *ep;
	struct end *to;
	__u32 identity;

	if (!w)
		return DROP_NO_RULESET;
	to = &w->end[1];
	walk_peer(w, 1);
	identity = identity_of(to->word);
	ep = endpoint_at(to->endpoint);
	if (ep) {
		to->iface = READ_ONCE(ep->ifindex);
		return DROP_NONE;
	}
	to->iface = identity == IDENTITY_HOST ? IFACE_HOST : IFACE_OUTSIDE;
	/* With route_localnet, which kube-proxy sets, a pod could reach the node's own loopback. */
	if (w->packet.tuple.family == 4 && (w->packet.tuple.daddr[12] == 127 || w->packet.tuple.daddr[12] == 0))
		return walk_drop(w, DROP_DESTINATION);
	/* Nobody but the node hears what a pod says to everybody, and its policy would not see it. */
	if (w->packet.tuple.family == 4 ? w->packet.tuple.daddr[12] >= 224 : w->packet.tuple.daddr[0] == 0xff)
		return walk_drop(w, DROP_MULTICAST);
	if (w->packet.tuple.family == 6 && is_odd_address(w->packet.tuple.daddr, 6))
		return walk_drop(w, DROP_BAD_HEADER);
	/* The node by the one name that it has for pods alone: no policy excepts it from a block. */
	if (w->packet.tuple.family == 6 && !cfg_node_egress_allow && is_link_local(w->packet.tuple.daddr))
		return walk_drop(w, DROP_DESTINATION);
	if (to_tunnel_port(w))
		return walk_drop(w, DROP_TUNNEL);
	if (policy_port(w, 1) && is_frontend(w, identity == IDENTITY_HOST))
		return UNDECIDED;
	return DROP_NONE;
}

/* To this node at a port that a NodePort, a hostPort or a Service claims. If nobody
 * translates it the packet ends here, where no hook sees it again: the pod has to be
 * allowed to reach the node there. If somebody does, it is judged once more behind NAT. */
static __always_inline int decide_claimed(struct walk *w)
{
	int reason;

	rulesets_find(w, &w->end[0], &w->end[1]);
	reason = judge_ends(w, &w->end[0], &w->end[1], w->packet.tuple.dport);
	return reason ? reason : UNDECIDED;
}

/* A packet a live entry does not answer for, on its way out of a pod. */
static __always_inline int from_pod_decide(struct __sk_buff *skb, struct walk *w)
{
	struct endpoint *ep = endpoint_at(w->end[0].endpoint);
	struct packet *p = &w->packet;
	int reason;

	if (!ep)
		return walk_drop(w, DROP_NO_ENDPOINT);
	if (ep->flags & ENDPOINT_QUARANTINE)
		return walk_drop(w, DROP_QUARANTINE);
	if (p->kind == PACKET_ARP) {
		reason = neighbour_check(skb, w);
		return reason ? walk_drop(w, reason) : PLAIN;
	}
	if (!has_family(ep, p->tuple.family))
		return walk_drop(w, DROP_FAMILY);
	if (p->kind == PACKET_NEIGHBOUR) {
		reason = neighbour_check(skb, w);
		return reason ? walk_drop(w, reason) : PLAIN;
	}
	if (!same_address(p->tuple.saddr, endpoint_addr(ep, p->tuple.family)))
		return walk_drop(w, DROP_SPOOFED_SOURCE);
	if (!peer_of_endpoint(w->end[0].endpoint, p->tuple.family, w->epoch, &w->end[0]))
		return walk_drop(w, DROP_NO_ENDPOINT);
	if (p->kind == PACKET_ICMP_ERROR) {
		__u32 number = w->end[0].endpoint;

		reason = error_walk(skb, w, w->ifindex, ERROR_FROM_POD);
		peer_of_endpoint(number, p->tuple.family, w->epoch, &w->end[0]);
		return reason ? reason : RELATED;
	}
	if (p->kind == PACKET_FRAGMENT) {
		reason = fragment_walk(w, w->ifindex, SENDER);
		if (reason || w->hit == HIT_LIVE)
			return reason;
	}
	if (w->hit == HIT_STALE) {
		reason = decide_stale(w, walk_entry(w));
		if (!is_anew(w, reason))
			return reason;
		if (p->kind == PACKET_FRAGMENT)
			return walk_drop(w, DROP_FRAGMENT_UNKNOWN);
		peer_of_endpoint(w->end[0].endpoint, p->tuple.family, w->epoch, &w->end[0]);
	}
	reason = destination_find(w);
	if (reason == UNDECIDED && w->end[1].iface == IFACE_HOST)
		return decide_claimed(w);
	if (reason)
		return reason;
	if (w->end[1].iface == IFACE_OUTSIDE && redirects(&w->end[0]))
		way_find(w, 1, 0);
	return decide_new(w, walk_entry(w), 1);
}

/* The mark of a packet without an entry. */
static __always_inline __u16 mark_alone(struct walk *w, int way)
{
	struct endpoint *ep = endpoint_at(w->end[0].endpoint);
	__u16 mark = w->end[0].endpoint;

	if (way == RELATED)
		mark |= MARK_EGRESS | MARK_INGRESS;
	else if (way == NO_ENTRY)
		mark = mark_from(&w->end[0], &w->end[1], 0);
	return ep && ep->flags & ENDPOINT_SHARED ? mark_shared(mark) : mark;
}

static __always_inline int from_pod_slow(struct __sk_buff *skb, struct walk *w)
{
	struct flow *f;
	int way = w->reason, verdict;

	if (!way && refused_again(skb, w, 0)) {
		park(skb, w, 1);
		return TC_DROP;
	}
	w->end[0].endpoint = endpoint_number(w->ifindex);
	w->end[0].iface = w->ifindex;
	if (!way)
		way = from_pod_decide(skb, w);
	f = walk_settle(skb, w, w->ifindex, way);
	if (way == DROP_NONE)
		return f ? deliver(skb, w, f) : TC_DROP;
	if (way < NO_ENTRY) {
		refusal_remember(w, 0);
		refuse(skb, w);
		park(skb, w, 1);
		return TC_DROP;
	}
	if (way == RELATED && w->way) {
		verdict = by_way(skb, w);
		if (verdict != TC_NEXT)
			return verdict;
	}
	if (way != PLAIN)
		mark_write(skb, mark_alone(w, way));
	return TC_NEXT;
}
