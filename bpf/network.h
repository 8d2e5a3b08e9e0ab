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

/* On by the flow's path. */
static __always_inline int arrive(struct __sk_buff *skb, struct walk *w, struct flow *f)
{
	w->way = way_of(f, w->side);
	if (w->way && came_by_way(skb, w)) {
		mark_write(skb, 0);
		return redirect(skb, f, w->side);
	}
	mark_write(skb, MARK_EGRESS | MARK_INGRESS);
	return TC_NEXT;
}

/* What no entry answers for, from another node's pod to one here, is judged as at that pod's own hook,
 * which does not see it. What is not quite that goes by the stack. */
static __always_inline int admit(struct __sk_buff *skb, struct walk *w)
{
	int error = w->packet.kind == PACKET_ICMP_ERROR, way;
	struct endpoint *ep;
	struct flow *f = 0;

	if (skb->pkt_type != PACKET_HOST || (!error && !way_find(w, 0, skb->ifindex)))
		return TC_NEXT;
	walk_peer(w, 1);
	ep = endpoint_at(w->end[1].endpoint);
	if (!ep || !redirects(&w->end[1]) || ep->flags & ENDPOINT_QUARANTINE ||
	    !has_family(ep, w->packet.tuple.family) ||
	    !same_address(w->packet.tuple.daddr, endpoint_addr(ep, w->packet.tuple.family)))
		return TC_NEXT;
	w->ifindex = READ_ONCE(ep->ifindex);
	if (error) {
		if (is_odd_address(w->packet.tuple.saddr, w->packet.tuple.family) ||
		    error_walk(skb, w, w->ifindex, ERROR_FROM_NETWORK) || !came_by_way(skb, w))
			return TC_NEXT;
		return into_pod(skb, ep->mac, w->ifindex);
	}
	if (!refused_again(skb, w, IFACE_OUTSIDE)) {
		if (ends_find(w, IFACE_OUTSIDE, 0))
			return TC_NEXT;
		way = decide_new(w, walk_entry(w), 0);
		if (way == DROP_NONE)
			f = walk_settle(skb, w, IFACE_OUTSIDE, way);
		if (f)
			return redirect(skb, f, w->side);
		if (way == DROP_NONE || way >= NO_ENTRY)
			return TC_NEXT;
		refusal_remember(w, IFACE_OUTSIDE);
		refuse(skb, w);
	}
	if (address_to(skb, ep->mac))
		park(skb, w, 0);
	return TC_DROP;
}

/* An entry that is hit is enforced, wherever its packet goes; the rest is judged behind NAT. */
static __always_inline int from_network_slow(struct __sk_buff *skb, struct walk *w)
{
	struct flow *f;
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
			f = walk_settle(skb, w, IFACE_OUTSIDE, way);
			return f ? arrive(skb, w, f) : TC_NEXT;
		}
	}
	return way ? refuse(skb, w) : admit(skb, w);
}

/* What comes from outside and may be what it says it is. */
static __always_inline int from_outside(struct __sk_buff *skb, struct walk *w)
{
	struct flow *f;

	if (!w->reason && w->packet.kind == PACKET_FLOW) {
		f = walk_flow(w, IFACE_OUTSIDE, RECEIVER);
		if (f && w->hit == HIT_LIVE) {
			walk_live(w, f, IFACE_OUTSIDE);
			return arrive(skb, w, f);
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
