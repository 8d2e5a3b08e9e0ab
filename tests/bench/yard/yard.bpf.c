//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What the benchmarks hold Weir against: an empty program, one with one hash lookup (1H),
 * the least that a stateful policy can do (the floor), droppers; the feeder that varies
 * the packet before the program under test has it; and a count of bpf(2)'s map writes. */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define ETH  14
#define SHOT 2

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} target SEC(".maps");

/* 0 leaves the packet alone, 1 takes one of feed_flows at random, 2 the next: number i is
 * written as source port 1024 + i % 60000 and destination port feed_port + i / 60000; with
 * feed_swap the other way round. */
volatile __u32 feed_mode, feed_flows = 1, feed_next, feed_port = 80, feed_swap, feed_mark;
/* 4 or 6: packets are out of feed_network of a tunnel whose other end has feed_outer, of that
 * family, as address; IPv4 as a host's number, in the first word. */
volatile __u32 feed_tunnel, feed_network, feed_outer[4];
static __u64 feed_random = 0x9e3779b97f4a7c15ULL;

#define PORTS 60000

static __always_inline __u32 feed_number(void)
{
	if (feed_mode == 2)
		return feed_next++;
	feed_random ^= feed_random << 13;
	feed_random ^= feed_random >> 7;
	feed_random ^= feed_random << 17;
	return ((feed_random >> 32) * feed_flows) >> 32;
}

/* Runs keep it, so the first packet alone takes the time. What is set is a sender's: its own address is
 * what a receiver reads as the other end's. */
static __noinline int feed_metadata(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = { .tunnel_id = feed_network };
	__u32 family = feed_tunnel;

	feed_tunnel = 0;
	key.local_ipv6[0] = feed_outer[0];
	if (family == 6) {
		key.local_ipv6[1] = feed_outer[1];
		key.local_ipv6[2] = feed_outer[2];
		key.local_ipv6[3] = feed_outer[3];
	}
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), family == 6 ? BPF_F_TUNINFO_IPV6 : 0);
}

SEC("tc") int feed(struct __sk_buff *skb)
{
	__u32 ports = ETH + 20;
	void *data, *end;

	if (feed_tunnel && feed_metadata(skb))
		return 0;
	data = (void *)(long)skb->data, end = (void *)(long)skb->data_end;
	if (data + ETH + 20 + 4 > end)
		return 0;
	skb->mark = feed_mark; /* programs under test set it, and runs keep it */
	if (*(__u16 *)(data + 12) != bpf_htons(0x0800))
		ports = ETH + 40;
	if (data + ports + 4 > end)
		return 0;
	if (feed_mode) {
		__u32 i = feed_number();
		__u16 many = bpf_htons(1024 + i % PORTS), few = bpf_htons(feed_port + i / PORTS);

		*(__u16 *)(data + ports) = feed_swap ? few : many;
		*(__u16 *)(data + ports + 2) = feed_swap ? many : few;
	}
	bpf_tail_call(skb, &target, 0);
	return 0;
}

SEC("tc") int empty(struct __sk_buff *skb)
{
	return -1;
}

/* Parse of the plainest kind: no options, no extension headers. */
struct header {
	__u64 source[2], destination[2]; /* IPv4 in the low word of the second */
	__u16 ports[2];                  /* as they come */
	__u8 protocol;
};

static __always_inline int parse(struct __sk_buff *skb, struct header *h)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (data + ETH + 24 > end)
		return -1;
	if (*(__u16 *)(data + 12) == bpf_htons(0x0800)) {
		if (*(__u8 *)(data + ETH) != 0x45)
			return -1;
		h->source[0] = h->destination[0] = 0;
		h->source[1] = *(__u32 *)(data + ETH + 12);
		h->destination[1] = *(__u32 *)(data + ETH + 16);
		h->protocol = *(__u8 *)(data + ETH + 9);
		h->ports[0] = *(__u16 *)(data + ETH + 20);
		h->ports[1] = *(__u16 *)(data + ETH + 22);
		return 0;
	}
	if (*(__u16 *)(data + 12) != bpf_htons(0x86dd) || data + ETH + 44 > end)
		return -1;
	__builtin_memcpy(h->source, data + ETH + 8, 16);
	__builtin_memcpy(h->destination, data + ETH + 24, 16);
	h->protocol = *(__u8 *)(data + ETH + 6);
	h->ports[0] = *(__u16 *)(data + ETH + 40);
	h->ports[1] = *(__u16 *)(data + ETH + 42);
	return 0;
}

struct policy_key {
	__u32 id, peer;
	__u16 port;
	__u8 protocol, direction;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__type(key, struct policy_key);
	__type(value, __u64);
} policy SEC(".maps");

/* Parse and one hash lookup: 1H. */
SEC("tc") int onehash(struct __sk_buff *skb)
{
	struct header h;
	struct policy_key key = { .id = 1, .direction = 1 };

	if (parse(skb, &h))
		return -1;
	key.port = h.ports[1];
	key.protocol = h.protocol;
	return bpf_map_lookup_elem(&policy, &key) ? -1 : SHOT;
}

/* The floor: parse, one flow entry, counters, the epoch, a coarse clock, redirect_peer. A
 * miss looks both ends up, asks four policies a direction, makes an entry for each
 * direction and tells of it by the ring. */
struct flow_key {
	__u64 addr[4];
	__u16 port[2];
	__u32 protocol;
};
struct flow_value {
	__u64 packets, bytes, last;
	__u32 epoch, ifindex;
	__u8 mac[12];
	__u32 pad;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 10); /* who measures it makes room: a full one is dear */
	__type(key, struct flow_key);
	__type(value, struct flow_value);
} floor_flows SEC(".maps");

struct end_key {
	__u64 addr[2];
};
struct end {
	__u32 ifindex, id;
	__u8 mac[12];
	__u32 pad;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, struct end_key);
	__type(value, struct end);
} floor_ends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} floor_events SEC(".maps");
struct floor_event {
	__u64 time;
	struct flow_key key;
	__u32 ids[2];
	__u8 rest[80]; /* as large as a flow record */
};

volatile __u32 floor_epoch = 7;

static __always_inline void flow_key(struct flow_key *k, struct header *h, int back)
{
	k->addr[back ? 2 : 0] = h->source[0];
	k->addr[back ? 3 : 1] = h->source[1];
	k->addr[back ? 0 : 2] = h->destination[0];
	k->addr[back ? 1 : 3] = h->destination[1];
	k->port[back] = h->ports[0];
	k->port[!back] = h->ports[1];
	k->protocol = h->protocol;
}

static __always_inline int deliver(struct __sk_buff *skb, struct flow_value *v)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (data + ETH > end || !v->ifindex)
		return 0;
	__builtin_memcpy(data, v->mac, 12);
	return bpf_redirect_peer(v->ifindex, 0);
}

static __always_inline int allowed(__u32 id, __u32 peer, __u16 port, __u8 protocol, __u8 direction)
{
	struct policy_key key = { .id = id, .peer = peer, .port = port, .protocol = protocol, .direction = direction };

	if (bpf_map_lookup_elem(&policy, &key))
		return 1;
	key.port = key.protocol = 0;
	if (bpf_map_lookup_elem(&policy, &key))
		return 1;
	key.peer = 0, key.port = port, key.protocol = protocol;
	if (bpf_map_lookup_elem(&policy, &key))
		return 1;
	key.port = key.protocol = 0;
	return bpf_map_lookup_elem(&policy, &key) != 0;
}

static __noinline int floor_first(struct __sk_buff *skb, struct header *h)
{
	struct flow_value v = { .packets = 1, .epoch = floor_epoch };
	struct end *to, *from;
	struct flow_key key;
	struct floor_event *e;

	if (!h)
		return SHOT;
	to = bpf_map_lookup_elem(&floor_ends, (struct end_key *)h->destination);
	from = bpf_map_lookup_elem(&floor_ends, (struct end_key *)h->source);
	if (!to || !from || !allowed(from->id, to->id, h->ports[1], h->protocol, 0) ||
	    !allowed(to->id, from->id, h->ports[1], h->protocol, 1))
		return SHOT;
	v.bytes = skb->len;
	v.last = bpf_ktime_get_ns();
	v.ifindex = from->ifindex;
	__builtin_memcpy(v.mac, from->mac, 12);
	flow_key(&key, h, 1);
	bpf_map_update_elem(&floor_flows, &key, &v, BPF_ANY);
	v.ifindex = to->ifindex;
	__builtin_memcpy(v.mac, to->mac, 12);
	flow_key(&key, h, 0);
	bpf_map_update_elem(&floor_flows, &key, &v, BPF_ANY);
	e = bpf_ringbuf_reserve(&floor_events, sizeof(*e), 0);
	if (e) {
		e->time = v.last;
		e->key = key;
		e->ids[0] = from->id;
		e->ids[1] = to->id;
		__builtin_memset(e->rest, 0, sizeof(e->rest));
		bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	}
	return deliver(skb, &v);
}

SEC("tc") int least(struct __sk_buff *skb)
{
	struct header h = {};
	struct flow_key key;
	struct flow_value *v;

	if (parse(skb, &h))
		return 0;
	flow_key(&key, &h, 0);
	v = bpf_map_lookup_elem(&floor_flows, &key);
	if (!v || v->epoch != floor_epoch)
		return floor_first(skb, &h);
	v->packets++;
	v->bytes += skb->len;
	v->last = bpf_ktime_get_coarse_ns();
	return deliver(skb, v);
}

/* Live frames that XDP is run with go out by this device, each as new: who routed one
 * counted its TTL down. */
volatile __u32 send_to, send_checksum;
SEC("xdp") int send(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (data + ETH + 20 > end)
		return XDP_ABORTED;
	*(__u8 *)(data + ETH + 8) = 64;
	*(__u16 *)(data + ETH + 10) = send_checksum;
	return bpf_redirect(send_to, 0);
}

/* The end of the line for datagrams in the test of their rate: port 7001. */
volatile __u64 sink_count;
SEC("tc") int sink(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 at = ETH;

	if (data + ETH + 24 > end)
		return -1;
	if (*(__u16 *)(data + 12) != bpf_htons(0x0800) || *(__u8 *)(data + at + 9) != 17)
		return -1;
	if (*(__u16 *)(data + at + 22) != bpf_htons(7001))
		return -1;
	__sync_fetch_and_add(&sink_count, 1);
	return SHOT;
}

/* Map writes by bpf(2) of one process: calls, and entries where one call has many. */
volatile __u32 count_process; /* in the namespace that device and inode name */
volatile __u64 count_device, count_inode;
volatile __u64 count_updates, count_deletes, count_batches, count_batched;
#define COMMAND_UPDATE       2
#define COMMAND_DELETE       3
#define COMMAND_UPDATE_BATCH 26
#define BATCH_COUNT          32 /* offset of batch.count in union bpf_attr */

SEC("raw_tp/sys_enter") int count_writes(struct bpf_raw_tracepoint_args *ctx)
{
	/* struct pt_regs of x86-64: rdi at 112, rsi at 104. */
	__u64 command = 0, attr = 0;
	__u32 n = 0;

	struct bpf_pidns_info process = {};

	if (ctx->args[1] != 321 || bpf_get_ns_current_pid_tgid(count_device, count_inode, &process, sizeof(process)) ||
	    process.tgid != count_process)
		return 0;
	bpf_probe_read_kernel(&command, 8, (void *)ctx->args[0] + 112);
	bpf_probe_read_kernel(&attr, 8, (void *)ctx->args[0] + 104);
	if ((__u32)command == COMMAND_UPDATE) {
		__sync_fetch_and_add(&count_updates, 1);
	} else if ((__u32)command == COMMAND_DELETE) {
		__sync_fetch_and_add(&count_deletes, 1);
	} else if ((__u32)command == COMMAND_UPDATE_BATCH) {
		bpf_probe_read_user(&n, 4, (void *)attr + BATCH_COUNT);
		__sync_fetch_and_add(&count_batches, 1);
		__sync_fetch_and_add(&count_batched, n);
	}
	return 0;
}
