//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What links hold. A stub reads one word and jumps: storing that word switches every
 * pod of the node to another build of the programs at once. An empty place drops.
 */
#include "contract.h"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Places of the hooks in the prog arrays: 2 * hook + (abi & 1). */
enum hook {
	HOOK_FROM_POD,
	HOOK_TO_POD,
	HOOK_TO_NETWORK,
	HOOK_FROM_NETWORK,
	HOOK_SHIELD_POD,
	HOOK_SHIELD_UPLINK,
	HOOK_MAX,
	/* Programs of TC and of XDP have an array each: that of the shield is free in the
	 * other, and the arrays stay as large as those of builds without a tunnel. */
	HOOK_FROM_TUNNEL = HOOK_SHIELD_POD,
};

#define PLACES 64 /* with room for hooks to come: links hold on to what they jump by */
_Static_assert(2 * HOOK_MAX <= PLACES, "places");

SEC(".data.abi") volatile __u64 abi; /* mmap */

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, PLACES);
	__type(key, __u32);
	__type(value, __u32);
} tc_progs SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, PLACES);
	__type(key, __u32);
	__type(value, __u32);
} xdp_progs SEC(".maps");

/* Two jumps to constant places, not one to a computed place: the kernel patches those into
 * the code, where the other would be an indirect call for every packet. */
#define STUB(NAME, TYPE, CTX, PROGS, HOOK, DROP)                         \
	SEC(TYPE) int NAME(struct CTX *ctx)                              \
	{                                                                \
		if (abi & 1)                                             \
			bpf_tail_call_static(ctx, &PROGS, 2 * HOOK + 1); \
		else                                                     \
			bpf_tail_call_static(ctx, &PROGS, 2 * HOOK);     \
		return DROP;                                             \
	}

STUB(stub_from_pod, "tc", __sk_buff, tc_progs, HOOK_FROM_POD, 2)
STUB(stub_to_pod, "tc", __sk_buff, tc_progs, HOOK_TO_POD, 2)
STUB(stub_to_network, "tc", __sk_buff, tc_progs, HOOK_TO_NETWORK, 2)
STUB(stub_from_network, "tc", __sk_buff, tc_progs, HOOK_FROM_NETWORK, 2)
STUB(stub_from_tunnel, "tc", __sk_buff, tc_progs, HOOK_FROM_TUNNEL, 2)
STUB(stub_shield_pod, "xdp", xdp_md, xdp_progs, HOOK_SHIELD_POD, XDP_DROP)
STUB(stub_shield_uplink, "xdp", xdp_md, xdp_progs, HOOK_SHIELD_UPLINK, XDP_DROP)

const enum hook *unused_hook __attribute__((unused));
