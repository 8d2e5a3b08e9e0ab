/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP errors pass when they answer a packet of a live flow, come from where that packet
 * went, and go to who sent it. They make nothing and refresh nothing, and only so many a
 * second get through. */
#pragma once
#include "way.h"

/* The tuple of the packet that the error speaks of, as that packet had it. */
__noinline int inner_read(struct __sk_buff *skb, struct walk *w, struct tuple *in)
{
	__u32 at, end, ports = 0;
	struct {
		__u8 type, code;
		__be16 checksum, id;
	} echo;
	struct iphdr v4;
	struct ipv6hdr v6;

	if (!w || !in)
		return 0;
	at = w->packet.l4 + 8;
	end = ETH_HLEN + w->packet.length;
	in->family = w->packet.tuple.family;
	in->pad = 0;
	if (in->family == 4) {
		if (bpf_skb_load_bytes(skb, at, &v4, sizeof(v4)) || *(__u8 *)&v4 != 0x45 ||
		    v4.frag_off & bpf_htons(0x1fff))
			return 0;
		in->protocol = v4.protocol;
		map_v4(in->saddr, v4.saddr);
		map_v4(in->daddr, v4.daddr);
		at += sizeof(v4);
	} else {
		if (bpf_skb_load_bytes(skb, at, &v6, sizeof(v6)) || v6.version != 6)
			return 0;
		in->protocol = v6.nexthdr;
		__builtin_memcpy(in->saddr, &v6.saddr, 16);
		__builtin_memcpy(in->daddr, &v6.daddr, 16);
		at += sizeof(v6);
	}
	in->sport = in->dport = 0;
	if (at > end)
		return 0;
	if (in->protocol == IPPROTO_ICMP || in->protocol == IPPROTO_ICMPV6_) {
		if (at + 8 > end || bpf_skb_load_bytes(skb, at, &echo, sizeof(echo)) || !is_echo(echo.type, in->family))
			return 0;
		echo_ports(in, echo.type == (in->family == 4 ? 8 : 128), bpf_ntohs(echo.id));
	} else if (in->protocol == IPPROTO_TCP || in->protocol == IPPROTO_UDP || in->protocol == 132) {
		if (at + 8 > end || bpf_skb_load_bytes(skb, at, &ports, 4))
			return 0;
		in->sport = bpf_ntohs((__u16)ports);
		in->dport = bpf_ntohs(ports >> 16);
	}
	return 1;
}

/* Whether the flow's end may be sent one more error in this second. */
static __always_inline int error_budget(struct flow *f, int side)
{
	__u32 *errors = &f->errors[side & 1], was = READ_ONCE(*errors), second = node.clock / 1000 << 8;

	if (READ_ONCE(f->state) & (side & 1 ? FLOW_TCP_1 : FLOW_TCP_0))
		return 0; /* the socket that it was for has closed */
	if ((was ^ second) >> 8)
		CMPXCHG(*errors, was, second);
	return (READ_ONCE(*errors) & 0xff) < ERROR_BUDGET && (ADD(*errors, 1) & 0xff) < ERROR_BUDGET;
}

/* Where an error is met: at the hook of the pod that sends it, or of the one that it is for; or before
 * the stack has it, which is where it stays unless its flow is one past the stack. */
enum error_hook { ERROR_TO_POD = 0, ERROR_FROM_POD = 1, ERROR_FROM_NETWORK = 2 };

/* iface: where the error came from. At a pod's own hook the error has to speak of a packet
 * that was sent to that pod; else of one that iface's pod sent. OUTDATED leaves
 * the walk as that packet's. Notes the flow's way. */
__noinline int error_related(struct __sk_buff *skb, struct walk *w, __u32 iface, __u32 hook)
{
	int from_pod = hook == ERROR_FROM_POD;
	struct flow_key key;
	struct tuple in;
	struct flow *f;
	__u64 stamp;
	int side;

	if (!w)
		return DROP_ICMP_UNRELATED;
	if (!inner_read(skb, w, &in) || !same_address(in.saddr, w->packet.tuple.daddr))
		return walk_drop(w, DROP_ICMP_UNRELATED);
	if (from_pod && !same_address(in.daddr, w->packet.tuple.saddr))
		return walk_drop(w, DROP_ICMP_UNRELATED);
	side = flow_key_of(&in, &key);
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f || READ_ONCE(f->ifindex[(from_pod ? side ^ 1 : side) & 1]) != iface)
		return walk_drop(w, DROP_ICMP_UNRELATED);
	w->way = way_of(f, from_pod ? side : side ^ 1);
	if (hook == ERROR_FROM_NETWORK && !w->way)
		return NO_ENTRY;
	stamp = READ_ONCE(f->stamp);
	if (READ_ONCE(f->state) & (FLOW_CLOSED | FLOW_CLAIMED) || !stamp || stamp & STAMP_DROP)
		return walk_drop(w, DROP_ICMP_UNRELATED);
	if (stamp >> STAMP_SHIFT != w->epoch) {
		w->packet.tuple = in;
		w->key = key;
		w->side = side;
		return OUTDATED;
	}
	return error_budget(f, side) ? DROP_NONE : walk_drop(w, DROP_ICMP_RATE);
}

/* Gives the packet its own addresses back. */
__noinline int error_restore(struct __sk_buff *skb, struct walk *w)
{
	struct tuple *t;
	__be32 v4[2];

	if (!w)
		return 0;
	t = &w->packet.tuple;
	t->sport = t->dport = 0;
	if (t->family == 6) {
		t->protocol = IPPROTO_ICMPV6_;
		return bpf_skb_load_bytes(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, saddr), t->saddr, 32);
	}
	t->protocol = IPPROTO_ICMP;
	if (bpf_skb_load_bytes(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, saddr), v4, sizeof(v4)))
		return 0;
	map_v4(t->saddr, v4[0]);
	map_v4(t->daddr, v4[1]);
	return 0;
}

/* A commit may have come between a packet and the error about it: then its flow is judged
 * first. Of the walk's ends neither is left. */
static __always_inline int error_walk(struct __sk_buff *skb, struct walk *w, __u32 iface, enum error_hook hook)
{
	int reason = error_related(skb, w, iface, hook);

	if (reason != OUTDATED)
		return reason;
	decide_stale(w, bpf_map_lookup_elem(&flows, &w->key));
	error_restore(skb, w);
	reason = error_related(skb, w, iface, hook);
	return reason == OUTDATED ? walk_drop(w, DROP_ICMP_UNRELATED) : reason;
}
