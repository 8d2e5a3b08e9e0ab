// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include "contract.h"
#include "config.h"
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tc") int from_pod(struct __sk_buff *skb) { return 2; }
SEC("tc") int to_pod(struct __sk_buff *skb) { return 2; }
SEC("tc") int to_network(struct __sk_buff *skb) { return 2; }
SEC("tc") int from_network(struct __sk_buff *skb) { return 2; }
SEC("xdp") int shield_pod(struct xdp_md *ctx) { return XDP_DROP; }
SEC("xdp") int shield_uplink(struct xdp_md *ctx) { return XDP_DROP; }
SEC("syscall") int arm_sweep(void *ctx) { return 0; }

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
EXPORT(enum, flow_state);
EXPORT(enum, flow_end);
EXPORT(enum, endpoint_flags);
EXPORT(enum, group_flags);
EXPORT(enum, event_kind);
EXPORT(struct, event);
EXPORT(struct, slots);
