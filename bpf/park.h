/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The first packets of pods that the cluster has not shown this node yet. They are dropped
 * like any that no rule allows, and a few are handed to the agent: it sends them again when it
 * has learned who their peer is, and they are judged anew. */
#pragma once
#include "record.h"

/* A SYN, or a datagram: what its sender does not know to be lost before a second has gone. */
static __always_inline int is_beginning(struct packet *p)
{
	return p->kind == PACKET_FLOW && !p->first_fragment && (is_opener(p) || p->tuple.protocol == IPPROTO_UDP);
}

/* which: the end that is not known. */
static __always_inline void park(struct __sk_buff *skb, struct walk *w, int which)
{
	__u32 number = w->end[which ^ 1].endpoint, length = skb->len;
	struct endpoint_state *s;
	struct parked *p;

	if (w->reason != DROP_UNMANAGED_PEER || !is_beginning(&w->packet))
		return;
	s = bpf_map_lookup_elem(&endpoint_states, &number);
	if (!s || READ_ONCE(s->recorded) > PARKED_BUDGET || length == 0 || length > PARKED_SIZE)
		return;
	p = bpf_ringbuf_reserve(&parked_frames, sizeof(*p), 0);
	if (!p)
		return;
	p->ifindex = w->ifindex;
	p->length = length;
	p->family = w->packet.tuple.family;
	p->from_pod = which;
	p->way = w->way != 0;
	__builtin_memset(p->pad, 0, sizeof(p->pad));
	__builtin_memcpy(p->peer, which ? w->packet.tuple.daddr : w->packet.tuple.saddr, 16);
	length = ((length - 1) & (PARKED_SIZE - 1)) + 1; /* it is: the verifier of 6.1 wants to see it */
	if (bpf_skb_load_bytes(skb, 0, p->frame, length)) {
		bpf_ringbuf_discard(p, 0);
		return;
	}
	bpf_ringbuf_submit(p, 0);
	count(COUNT_PARKED);
}
