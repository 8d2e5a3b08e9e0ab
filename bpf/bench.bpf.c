//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Yardsticks for `make bench`, and the feeder that varies the packet before it hands it to
 * the program under test. */
#include "parse.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} bench_target SEC(".maps");

/* 0 leaves the packet alone, 1 takes one of bench_flows (at most 64,000) at random, 2 the
 * next: they differ in the source port (IPv4). 3 is 2 by the destination port. */
volatile __u32 bench_mode, bench_flows = 1, bench_next;
static __u64 bench_random = 0x9e3779b97f4a7c15ULL;

SEC("tc") int feed(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 i = 0;

	if (data + 42 > end)
		return 0;
	skb->mark = 0;
	if (bench_mode == 1) {
		bench_random ^= bench_random << 13;
		bench_random ^= bench_random >> 7;
		bench_random ^= bench_random << 17;
		i = ((bench_random >> 32) * bench_flows) >> 32;
	} else if (bench_mode >= 2) {
		i = bench_next++;
	}
	if (bench_mode == 3)
		*(__u16 *)(data + 36) = bpf_htons(1024 + i);
	else if (bench_mode)
		*(__u16 *)(data + 34) = bpf_htons(1024 + i);
	bpf_tail_call(skb, &bench_target, 0);
	return 0;
}

SEC("tc") int empty(struct __sk_buff *skb)
{
	return -1;
}

struct bench_key {
	__u32 id;
	__u16 dport;
	__u8 protocol;
	__u8 direction;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct bench_key);
	__type(value, __u64);
} bench_policy SEC(".maps");

/* Parse of the plainest kind and one hash lookup: 1H. */
SEC("tc") int onehash(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	struct bench_key key = { .id = 1, .direction = 1 };

	if (data + 38 > end || *(__u16 *)(data + 12) != bpf_htons(ETH_P_IP) || ip->ihl != 5)
		return -1;
	key.dport = *(__u16 *)(data + 36);
	key.protocol = ip->protocol;
	return bpf_map_lookup_elem(&bench_policy, &key) ? -1 : 2;
}
