/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The node's edge: what leaves by a device that is no pod's, after the node's NAT, and what
 * comes in by an uplink, before it. */
#pragma once
#include "to_pod.h"
#include "tunnel.h"

/* What was judged goes out. */
static __always_inline int leave(struct __sk_buff *skb, __u16 mark)
{
	mark_write(skb, cfg_tunnel_port && is_tunnelled(skb) ? 0 : mark);
	return TC_NEXT;
}

/* A local pod's packet that no hook could judge before NAT named its destination. */
static __always_inline int to_network_slow(struct __sk_buff *skb, struct walk *w, __u32 iface, __u32 sender)
{
	int way = w->reason;

	w->end[0].endpoint = sender;
	if (!way && !peer_of_endpoint(sender, w->packet.tuple.family, w->epoch, &w->end[0]))
		way = walk_drop(w, DROP_NO_ENDPOINT);
	if (!way && w->packet.kind == PACKET_FRAGMENT)
		way = fragment_walk(w, iface, SENDER);
	else if (!way && w->packet.kind != PACKET_FLOW)
		way = walk_drop(w, DROP_ICMP_UNRELATED);
	if (!way && w->hit == HIT_STALE) {
		way = decide_stale(w, walk_entry(w));
		if (way == GONE) /* the sender is there: it is the entry that is another's */
			way = walk_drop(w, DROP_NO_ENDPOINT);
	} else if (!way && w->hit < HIT_STALE) {
		walk_peer(w, 1);
		w->end[1].endpoint = 0; /* a pod's ingress is its own hook's business */
		w->end[1].iface = IFACE_OUTSIDE;
		way = to_tunnel_port(w) ? walk_drop(w, DROP_TUNNEL) : decide_new(w, walk_entry(w), 0);
	}
	walk_settle(skb, w, iface, way);
	if (way != DROP_NONE && way < NO_ENTRY)
		return refuse(skb, w);
	return leave(skb, sender | MARK_EGRESS);
}

/* From outside nobody speaks for this node's pods, for the node, or for loopback, nor to it:
 * with route_localnet, which kube-proxy sets, the stack would let him. */
static __always_inline int outside_check(struct walk *w)
{
	struct end *from = &w->end[0];

	walk_peer(w, 0);
	from->iface = IFACE_OUTSIDE;
	if (from->endpoint || identity_of(from->word) == IDENTITY_HOST)
		return walk_drop(w, DROP_FOREIGN_SOURCE);
	if (w->packet.tuple.family == 4 && w->packet.tuple.saddr[12] == 127)
		return walk_drop(w, DROP_BAD_SOURCE);
	if (w->packet.tuple.family == 4 && w->packet.tuple.daddr[12] == 127)
		return walk_drop(w, DROP_DESTINATION);
	return DROP_NONE;
}

/* An entry that is hit is enforced, wherever its packet goes; the rest is judged behind NAT. */
static __always_inline int from_network_slow(struct __sk_buff *skb, struct walk *w)
{
	int way;

	mark_write(skb, 0);
	if (w->reason || w->packet.kind == PACKET_ARP || w->packet.kind == PACKET_NEIGHBOUR)
		return TC_NEXT;
	way = outside_check(w);
	if (!way && w->hit == HIT_STALE) {
		way = decide_stale(w, walk_entry(w));
		if (is_anew(w, way))
			return TC_NEXT;
		if (!way) {
			walk_settle(skb, w, IFACE_OUTSIDE, way);
			mark_write(skb, MARK_EGRESS | MARK_INGRESS);
		}
	}
	return way ? refuse(skb, w) : TC_NEXT;
}

/* What comes from outside and may be what it says it is. */
static __always_inline int from_outside(struct __sk_buff *skb, struct walk *w)
{
	struct flow *f;

	if (!w->reason && w->packet.kind == PACKET_FLOW) {
		f = walk_flow(w, IFACE_OUTSIDE, RECEIVER);
		if (f && w->hit == HIT_LIVE) {
			walk_live(w, f, IFACE_OUTSIDE);
			mark_write(skb, MARK_EGRESS | MARK_INGRESS);
			return TC_NEXT;
		}
	}
	walk_slow(w);
	return from_network_slow(skb, w);
}

/* Drops what never got to a walk. */
static __always_inline int refuse_for(struct __sk_buff *skb, struct walk *w, int reason)
{
	walk_slow(w);
	walk_drop(w, reason);
	return refuse(skb, w);
}
