/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the node's stack hands to a pod. Who sent it is told by the mark of the hook it came
 * in by, or by where the stack got it; never by its address. */
#pragma once
#include "hook.h"
#include "park.h"

/* The sender, when no endpoint's mark says so: the node itself, or the outside. */
static __always_inline int sender_find(struct walk *w, __u32 iface)
{
	struct end *from = &w->end[0];

	walk_peer(w, 0);
	from->iface = iface;
	if (iface == IFACE_HOST) {
		from->word = (from->word >> 32 << 32) | IDENTITY_HOST;
		from->endpoint = 0;
		return DROP_NONE;
	}
	if (from->endpoint)
		return walk_drop(w, DROP_FOREIGN_SOURCE);
	if (is_odd_address(w->packet.tuple.saddr, w->packet.tuple.family))
		return walk_drop(w, DROP_BAD_SOURCE);
	return DROP_NONE;
}

/* Both ends of a packet at a pod's door; from is the endpoint number of its mark. */
__noinline int ends_find(struct walk *w, __u32 iface, __u32 from)
{
	if (!w)
		return DROP_NO_ENDPOINT;
	if (!peer_of_endpoint(endpoint_number(w->ifindex), w->packet.tuple.family, w->epoch, &w->end[1]))
		return walk_drop(w, DROP_NO_ENDPOINT);
	if (!from)
		return sender_find(w, iface);
	return peer_of_endpoint(from, w->packet.tuple.family, w->epoch, &w->end[0]) ? DROP_NONE
										    : walk_drop(w, DROP_NO_ENDPOINT);
}

/* Whether the entry's judgement is about the pod at whose door this is: it is not when its
 * address was taken for somebody else's. */
static __always_inline int is_judged_for(struct walk *w, struct flow *f)
{
	int receiver = w->side ^ 1;

	return f && READ_ONCE(f->stamp) &
			    ((READ_ONCE(f->state) & FLOW_INITIATOR) == receiver ? STAMP_EGRESS : STAMP_INGRESS);
}

static __always_inline int to_pod_decide(struct __sk_buff *skb, struct walk *w, __u32 iface, __u32 from)
{
	struct endpoint *ep = endpoint_at(w->end[1].endpoint);
	struct packet *p = &w->packet;
	int reason;

	if (!ep)
		return walk_drop(w, DROP_NO_ENDPOINT);
	if (ep->flags & ENDPOINT_QUARANTINE)
		return walk_drop(w, DROP_QUARANTINE);
	if (p->kind == PACKET_ARP ||
	    p->kind == PACKET_NEIGHBOUR) /* of pods, from_pod has seen that they say the truth */
		return iface == IFACE_HOST || ep->flags & ENDPOINT_SHARED ? PLAIN : walk_drop(w, DROP_NEIGHBOUR);
	if (!has_family(ep, p->tuple.family))
		return walk_drop(w, DROP_FAMILY);
	if (!same_address(p->tuple.daddr, endpoint_addr(ep, p->tuple.family)))
		return walk_drop(w, DROP_DESTINATION);
	if (mark_read(skb) & MARK_SHARED)
		return PLAIN; /* its IP destination was judged, its MAC was the sender's choice: this is the door */
	reason = ends_find(w, iface, from);
	if (reason)
		return reason;
	if (p->kind == PACKET_ICMP_ERROR) {
		if (iface == IFACE_HOST)
			return PLAIN;
		reason = error_walk(skb, w, w->ifindex, ERROR_TO_POD);
		ends_find(w, iface, from);
		return reason ? reason : PLAIN;
	}
	if (p->kind == PACKET_FRAGMENT) {
		reason = fragment_walk(w, iface, RECEIVER);
		if (reason || w->hit == HIT_LIVE)
			return reason;
	}
	if (w->hit == HIT_STALE) {
		reason = decide_stale(w, walk_entry(w));
		if (!reason && !is_judged_for(w, walk_entry(w)))
			reason = GONE;
		if (!is_anew(w, reason))
			return reason;
		if (p->kind == PACKET_FRAGMENT)
			return walk_drop(w, DROP_FRAGMENT_UNKNOWN);
		reason = ends_find(w, iface, from);
		if (reason)
			return reason;
	}
	if ((mark_read(skb) & (MARK_OUTSIDE | MARK_INGRESS)) == (MARK_OUTSIDE | MARK_INGRESS))
		way_find(w, 0, 0); /* parked before the stack had it, which is not to hear of its answers alone */
	return decide_new(w, walk_entry(w), 0);
}

static __always_inline int to_pod_slow(struct __sk_buff *skb, struct walk *w, __u32 iface, __u32 sender)
{
	int way = w->reason;

	if (!way && iface && !(mark_read(skb) & MARK_SHARED) && refused_again(skb, w, iface)) {
		park(skb, w, 0);
		return TC_DROP;
	}
	w->end[1].endpoint = endpoint_number(w->ifindex);
	w->end[1].iface = w->ifindex;
	if (!way)
		way = to_pod_decide(skb, w, iface, sender);
	walk_settle(skb, w, iface, way);
	if (way == DROP_NONE || way >= NO_ENTRY)
		return TC_NEXT;
	if (iface)
		refusal_remember(w, iface);
	refuse(skb, w);
	park(skb, w, 0);
	return TC_DROP;
}

/* Where the packet came from, as flow entries name it. */
static __always_inline __u32 sender_iface(struct __sk_buff *skb, __u16 mark)
{
	__u32 sender = mark & MARK_ENDPOINT;
	struct endpoint *ep = endpoint_at(sender);

	if (sender)
		return ep ? READ_ONCE(ep->ifindex) : 0;
	return skb->ingress_ifindex || mark & MARK_OUTSIDE ? IFACE_OUTSIDE : IFACE_HOST;
}
