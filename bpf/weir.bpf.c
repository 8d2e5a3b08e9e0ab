//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The node's programs, one set for all pods.
 *
 *    pod A                        node                          network
 *     eth0 --> veth  from_pod --(redirect_peer)--> eth0 of pod B
 *                            |--(redirect_neigh)--> uplink or tunnel, to another node's pod
 *                            \--> stack --> to_network --> uplink
 *     eth0 <-- veth  to_pod  <--- stack <-- from_network <-- uplink; from_tunnel <-- tunnel
 *     eth0 <-----(redirect_peer, from another node's pod)-----/
 *
 * An established packet costs one lookup in flows, or by the stack one more look at its
 * mark. Everything else is decide.h.
 */
#include "from_pod.h"
#include "network.h"
#include "shield.h"
#include "sweep.h"
#include "to_pod.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tc") int from_pod(struct __sk_buff *skb)
{
	struct walk w;
	struct flow *f;

	if (!walk_begin(skb, &w) && w.packet.kind == PACKET_FLOW) {
		f = walk_flow(&w, w.ifindex, SENDER);
		if (f && w.hit == HIT_LIVE) {
			if (is_answer(READ_ONCE(f->state), w.side))
				flow_process(skb, f, w.side); /* the first answer names who listens */
			walk_live(&w, f, w.ifindex);
			return deliver(skb, &w, f);
		}
	}
	walk_slow(&w);
	return from_pod_slow(skb, &w);
}

SEC("tc") int to_pod(struct __sk_buff *skb)
{
	__u16 mark = mark_read(skb);
	__u32 sender = mark & MARK_ENDPOINT, iface;
	struct walk w;
	struct flow *f;

	if ((mark & (MARK_EGRESS | MARK_INGRESS | MARK_SHARED)) == (MARK_EGRESS | MARK_INGRESS))
		return TC_NEXT;
	iface = sender_iface(skb, mark);
	if (!walk_begin(skb, &w) && w.packet.kind == PACKET_FLOW) {
		f = walk_flow(&w, iface, DOOR);
		if (f && w.hit == HIT_LIVE && !(mark_read(skb) & MARK_SHARED)) {
			walk_live(&w, f, iface);
			return TC_NEXT;
		}
	}
	walk_slow(&w);
	return to_pod_slow(skb, &w, iface, sender);
}

SEC("tc") int to_network(struct __sk_buff *skb)
{
	__u16 mark = mark_read(skb);
	__u32 sender = mark & MARK_ENDPOINT, iface;
	struct walk w;
	struct flow *f;

	if (!sender)
		return TC_NEXT;
	if (mark & MARK_EGRESS)
		return leave(skb, mark);
	iface = sender_iface(skb, mark);
	if (!walk_begin(skb, &w) && w.packet.kind == PACKET_FLOW) {
		f = walk_flow(&w, iface, SENDER);
		if (f && w.hit == HIT_LIVE) {
			walk_live(&w, f, iface);
			return leave(skb, sender | MARK_EGRESS);
		}
	}
	walk_slow(&w);
	return to_network_slow(skb, &w, iface, sender);
}

SEC("tc") int from_network(struct __sk_buff *skb)
{
	struct walk w;

	walk_begin(skb, &w);
	if (cfg_tunnel_port && is_untunnelled(&w))
		return refuse_for(skb, &w, DROP_TUNNEL_BYPASSED);
	return from_outside(skb, &w);
}

/* Nobody but the nodes' tunnels ever addresses a frame to this device: what the program
 * does not take for itself the stack does not see either. */
SEC("tc") int from_tunnel(struct __sk_buff *skb)
{
	struct walk w;
	int reason;

	walk_begin(skb, &w);
	reason = tunnel_check(skb, &w);
	if (reason)
		return refuse_for(skb, &w, reason);
	if (bpf_skb_change_type(skb, PACKET_HOST))
		return TC_DROP;
	return from_outside(skb, &w);
}

SEC("xdp") int shield_pod(struct xdp_md *ctx)
{
	return shield_endpoint(ctx);
}

SEC("xdp") int shield_uplink(struct xdp_md *ctx)
{
	return shield_network(ctx);
}

/* Arms the sweep's timer, or hands it to this build of the programs. Run once at load, as a
 * TC program: those that sleep may not touch all maps on older kernels. */
SEC("tc") int arm_sweep(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct sweep *s = bpf_map_lookup_elem(&sweep_timer, &zero);

	if (!s)
		return 1;
	node.clock = bpf_ktime_get_ns() / 1000000;
	bpf_timer_init(&s->timer, &sweep_timer, CLOCK_MONOTONIC); /* EBUSY: it is there */
	bpf_timer_set_callback(&s->timer, sweep_tick);
	return bpf_timer_start(&s->timer, 0, 0);
}

/* Sends a parked frame again on the way that it was on: cb[0] is the interface, cb[1] tells
 * whether it came from the pod. Run by the agent. */
SEC("tc") int resend(struct __sk_buff *skb)
{
	return bpf_clone_redirect(skb, skb->cb[0], skb->cb[1] ? BPF_F_INGRESS : 0) ? 1 : 0;
}

/* Takes over a flow: the packet is 14 bytes of no meaning, a struct flow_key, a struct flow.
 * Run by the loader, see flow_import. */
SEC("tc") int import_flow(struct __sk_buff *skb)
{
	struct flow_key key;
	struct flow was;

	if (bpf_skb_load_bytes(skb, 14, &key, sizeof(key)) ||
	    bpf_skb_load_bytes(skb, 14 + sizeof(key), &was, sizeof(was)))
		return DROP_TRUNCATED;
	return flow_import(&key, &was);
}

/* Named here so that their BTF, and so their Go types, exist. */
#define EXPORT(KIND, NAME) const KIND NAME *unused_##NAME __attribute__((unused))
EXPORT(enum, limits);
EXPORT(enum, identity_number);
EXPORT(enum, rule_number);
EXPORT(enum, verdict);
EXPORT(enum, direction);
EXPORT(enum, flow_path);
EXPORT(enum, drop_reason);
EXPORT(enum, counter);
EXPORT(enum, iface_class);
EXPORT(enum, stamp_bits);
EXPORT(enum, mark_bits);
EXPORT(enum, flow_state);
EXPORT(enum, flow_end);
EXPORT(enum, way_key);
EXPORT(enum, endpoint_flags);
EXPORT(enum, group_flags);
EXPORT(enum, event_kind);
EXPORT(enum, process_number);
EXPORT(enum, flow_tcp);
EXPORT(enum, process_limits);
EXPORT(struct, process);
EXPORT(struct, event);
EXPORT(struct, parked);
EXPORT(struct, slots);
