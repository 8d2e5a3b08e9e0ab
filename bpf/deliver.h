/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What becomes of a packet that was judged. */
#pragma once
#include "fragment.h"
#include "way.h"

static __always_inline __u16 mark_read(struct __sk_buff *skb)
{
	return skb->mark >> cfg_mark_shift;
}

static __always_inline void mark_write(struct __sk_buff *skb, __u16 mark)
{
	skb->mark = (skb->mark & ~(0xffffU << cfg_mark_shift)) | (__u32)mark << cfg_mark_shift;
}

/* Makes the frame one from the pod's gateway. */
static __always_inline int address_to(struct __sk_buff *skb, const __u8 *mac)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end)
		return 0;
	__builtin_memcpy(eth->h_dest, mac, 6);
	host_mac(eth->h_source);
	return 1;
}

/* Straight into the pod's namespace. */
static __always_inline int into_pod(struct __sk_buff *skb, const __u8 *mac, __u32 ifindex)
{
	return address_to(skb, mac) ? bpf_redirect_peer(ifindex, 0) : TC_DROP;
}

static __always_inline int redirect(struct __sk_buff *skb, struct flow *f, int side)
{
	int other = (side ^ 1) & 1;

	return into_pod(skb, f->side[other].mac, f->ifindex[other]);
}

/* A packet of a live flow from a pod, by the flow's path. */
static __always_inline int deliver(struct __sk_buff *skb, struct walk *w, struct flow *f)
{
	__u32 state = READ_ONCE(f->state);
	int side = w->side, verdict;

	if (state & FLOW_PATH_BPF)
		return redirect(skb, f, side);
	if (state & FLOW_PATH_NODES) {
		w->way = way_of(f, side ^ 1);
		verdict = by_way(skb, w);
		if (verdict != TC_NEXT)
			return verdict;
	}
	mark_write(skb, f->side[side & 1].mark);
	return TC_NEXT;
}
