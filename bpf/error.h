/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP errors pass when they answer a packet of a live flow, come from where that packet
 * went, and go to who sent it. They make nothing and refresh
 * nothing, and there are only so many a second. */
#pragma once
#include "walk.h"

struct inner {
	struct tuple tuple;
} __attribute__((aligned(8)));

/* The quoted packet lies within the error, with 8 bytes of what its ports are in. */
static __always_inline int inner_read(struct __sk_buff *skb, struct packet *p, struct inner *in)
{
	__u32 at = p->l4 + 8, ports = 0, end = ETH_HLEN + p->length;
	struct {
		__u8 type, code;
		__be16 checksum, id;
	} echo;
	struct iphdr v4;
	struct ipv6hdr v6;

	in->tuple.family = p->tuple.family;
	in->tuple.pad = 0;
	if (p->tuple.family == 4) {
		if (bpf_skb_load_bytes(skb, at, &v4, sizeof(v4)) || *(__u8 *)&v4 != 0x45 ||
		    v4.frag_off & bpf_htons(0x1fff))
			return 0;
		in->tuple.protocol = v4.protocol;
		map_v4(in->tuple.saddr, v4.saddr);
		map_v4(in->tuple.daddr, v4.daddr);
		at += sizeof(v4);
	} else {
		if (bpf_skb_load_bytes(skb, at, &v6, sizeof(v6)) || v6.version != 6)
			return 0;
		in->tuple.protocol = v6.nexthdr;
		__builtin_memcpy(in->tuple.saddr, &v6.saddr, 16);
		__builtin_memcpy(in->tuple.daddr, &v6.daddr, 16);
		at += sizeof(v6);
	}
	in->tuple.sport = in->tuple.dport = 0;
	if (at > end)
		return 0;
	if (in->tuple.protocol == IPPROTO_ICMP || in->tuple.protocol == IPPROTO_ICMPV6_) {
		if (at + 8 > end || bpf_skb_load_bytes(skb, at, &echo, sizeof(echo)) ||
		    !is_echo(echo.type, in->tuple.family))
			return 0;
		echo_ports(&in->tuple, echo.type == (in->tuple.family == 4 ? 8 : 128), bpf_ntohs(echo.id));
	} else if (in->tuple.protocol == IPPROTO_TCP || in->tuple.protocol == IPPROTO_UDP ||
		   in->tuple.protocol == 132) {
		if (at + 8 > end || bpf_skb_load_bytes(skb, at, &ports, 4))
			return 0;
		in->tuple.sport = bpf_ntohs((__u16)ports);
		in->tuple.dport = bpf_ntohs(ports >> 16);
	}
	return 1;
}

/* Whether the flow's end may be sent one more error in this second. */
static __always_inline int error_budget(struct flow *f, int side)
{
	__u32 *errors = &f->errors[side & 1], was = READ_ONCE(*errors), second = node.clock / 1000 << 8;

	if ((was ^ second) >> 8)
		CMPXCHG(*errors, was, second);
	return (READ_ONCE(*errors) & 0xff) < ERROR_BUDGET && (ADD(*errors, 1) & 0xff) < ERROR_BUDGET;
}

/* iface: where the error came from. At a pod's own hook the error has to speak of a packet
 * that was sent to that pod; at the receiver's, of one the receiver sent. */
__noinline int error_related(struct __sk_buff *skb, struct walk *w, __u32 iface, __u32 from_pod)
{
	struct flow_key key;
	struct inner in;
	struct flow *f;
	int side;

	if (!w)
		return DROP_ICMP_UNRELATED;
	if (!inner_read(skb, &w->packet, &in) || !same_address(in.tuple.saddr, w->packet.tuple.daddr))
		return walk_drop(w, DROP_ICMP_UNRELATED);
	if (from_pod && !same_address(in.tuple.daddr, w->packet.tuple.saddr))
		return walk_drop(w, DROP_ICMP_UNRELATED);
	side = flow_key_of(&in.tuple, &key);
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f || READ_ONCE(f->stamp) >> STAMP_SHIFT != w->epoch || READ_ONCE(f->stamp) & STAMP_DROP ||
	    READ_ONCE(f->state) & FLOW_CLOSED)
		return walk_drop(w, DROP_ICMP_UNRELATED);
	if (READ_ONCE(f->ifindex[(from_pod ? side ^ 1 : side) & 1]) != iface)
		return walk_drop(w, DROP_ICMP_UNRELATED);
	return error_budget(f, side) ? DROP_NONE : walk_drop(w, DROP_ICMP_RATE);
}
