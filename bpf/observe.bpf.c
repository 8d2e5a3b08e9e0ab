//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What the kernel tells about pods' sockets and packets outside our hooks. Tracepoints see the
 * whole machine: what is not in the namespace of one of this agent's endpoints is left at once.
 *
 *   set_state      TCP: who connects and who listens; how a connection went, at its end
 *   kernel_drop    packets that the kernel drops, and its reason
 *   name_sockets   sockets older than these programs: the oldest process that holds them
 */
#include "budget.h"
#include "flow.h"
#include "process.h"
#include "socket.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Reasons that are none, by number (a bit each): what was consumed, what nobody gave a reason
 * for, and what TC and XDP dropped: our own is recorded where it is done. */
volatile const __u64 cfg_reasons_left[4];
/* The reason of packets that no socket is there for. */
volatile const __u32 cfg_reason_no_socket;
/* Whether kfree_skb tells the socket that a packet was for. */
volatile const __u32 cfg_reason_socket;
/* The network namespace of the pods' host sides (cookie). */
volatile const __u64 cfg_netns;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct kernel_drop_key);
	__type(value, struct denial_count);
} kernel_drops SEC(".maps");

enum { TCP_ESTABLISHED = 1, TCP_SYN_SENT = 2, TCP_CLOSE = 7, TCP_LISTEN = 10 };
enum { INET = 2, INET6 = 10 };

/* The endpoint whose pod has the socket, 0 = none. */
static __always_inline __u32 socket_endpoint(struct sock *sk)
{
	__u64 netns = sk->__sk_common.skc_net.net->net_cookie;
	__u32 *number = bpf_map_lookup_elem(&netns_endpoints, &netns);

	return number ? *number : 0;
}

/* The tuple of what a socket sends that is TCP's; 0 = it is no IP socket. */
static __always_inline int socket_tuple(struct sock *sk, struct tcp_sock *tcp, struct tuple *t)
{
	struct sock_common *c = &sk->__sk_common;

	if (c->skc_family == INET) {
		map_v4(t->saddr, c->skc_rcv_saddr);
		map_v4(t->daddr, c->skc_daddr);
	} else if (c->skc_family == INET6) {
		bpf_probe_read_kernel(t->saddr, 16, &c->skc_v6_rcv_saddr);
		bpf_probe_read_kernel(t->daddr, 16, &c->skc_v6_daddr);
	} else {
		return 0;
	}
	t->sport = bpf_ntohs(tcp->inet_conn.icsk_inet.inet_sport); /* its number is gone when it closes */
	t->dport = bpf_ntohs(c->skc_dport);
	t->protocol = IPPROTO_TCP;
	t->family = *(__u64 *)t->saddr == 0 && *(__u32 *)(t->saddr + 8) == bpf_htonl(0xffff) ? 4 : 6;
	t->pad = 0;
	return 1;
}

static __always_inline __u32 connection_packed(__u32 rtt, __u32 retransmits)
{
	__u32 exponent = 0;

	for (int i = 0; i < 21 && rtt > TCP_MANTISSA; i++, exponent++)
		rtt >>= 1;
	if (retransmits > TCP_RETRANSMITS_MOST)
		retransmits = TCP_RETRANSMITS_MOST;
	return retransmits << TCP_RETRANSMITS_SHIFT | exponent << TCP_EXPONENT_SHIFT | rtt;
}

/* Notes in the flow's entry how the connection goes. The entry is there until seconds after
 * both ends have closed, so that its last event has it. */
static __always_inline void connection_note(struct sock *sk, __u32 endpoint)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct flow_key key;
	struct tuple t = {};
	struct flow *f;
	int side;

	if (!tcp || !socket_tuple(sk, tcp, &t))
		return;
	side = flow_key_of(&t, &key) & 1;
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f || f->endpoint[side] != endpoint)
		return;
	WRITE_ONCE(f->errors[side], connection_packed(tcp->srtt_us >> 3, tcp->total_retrans));
	__sync_fetch_and_or(&f->state, side ? FLOW_TCP_1 : FLOW_TCP_0);
}

/* The process is the one that calls connect. A socket that has storage already keeps to it. */
static __always_inline void opener_name(struct sock *sk)
{
	__u32 process = process_named(bpf_get_current_task_btf());

	if (bpf_sk_storage_get(&socket_process, sk, 0, 0) || !opener_put(bpf_get_socket_cookie(sk), process))
		socket_name(sk, process);
}

SEC("tp_btf/inet_sock_set_state") int set_state(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	int is = ctx[2];
	__u32 endpoint;

	if (is != TCP_SYN_SENT && is != TCP_LISTEN && is != TCP_CLOSE)
		return 0;
	if (is == TCP_CLOSE) /* its pod may be gone */
		opener_free(sk->__sk_common.skc_cookie.counter);
	endpoint = socket_endpoint(sk);
	if (!endpoint)
		return 0;
	if (is == TCP_CLOSE)
		connection_note(sk, endpoint);
	else if (!cfg_process)
		return 0;
	else if (is == TCP_SYN_SENT)
		opener_name(sk);
	else /* the process is the one that calls listen */
		socket_name(sk, process_named(bpf_get_current_task_btf()));
	return 0;
}

/* The endpoint in whose namespace a device is, or whose host side it is; 0 = none. Pointers are
 * not trusted: a queued packet has other things in their place. */
static __always_inline __u32 device_endpoint(struct net_device *dev)
{
	__u64 netns = BPF_CORE_READ(dev, nd_net.net, net_cookie);
	__u32 *number = bpf_map_lookup_elem(&netns_endpoints, &netns);

	if (number)
		return *number;
	return netns == cfg_netns ? endpoint_number(BPF_CORE_READ(dev, ifindex)) : 0;
}

static __always_inline __u32 packet_endpoint(struct sk_buff *skb, struct sock *sk)
{
	__u64 netns;
	__u32 *number;

	if (sk) {
		netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie);
		number = bpf_map_lookup_elem(&netns_endpoints, &netns);
		return number ? *number : 0;
	}
	return device_endpoint(BPF_CORE_READ(skb, dev));
}

/* What the packet says it is, as far as it does: it may be broken. */
static __always_inline void packet_tuple(struct sk_buff *skb, struct event *e)
{
	__u16 at = BPF_CORE_READ(skb, network_header);
	unsigned char *head = BPF_CORE_READ(skb, head);
	struct tuple *t = &e->tuple;
	struct ipv6hdr v6;
	struct iphdr v4;
	__be16 ports[2];
	__u32 length;

	if (at == 0xffff || bpf_probe_read_kernel(&v4, sizeof(v4), head + at))
		return;
	if (v4.version == 4) {
		map_v4(t->saddr, v4.saddr);
		map_v4(t->daddr, v4.daddr);
		t->protocol = v4.protocol;
		length = v4.ihl * 4;
		if (v4.frag_off & bpf_htons(0x1fff))
			length = 0;
	} else if (v4.version == 6 && !bpf_probe_read_kernel(&v6, sizeof(v6), head + at)) {
		__builtin_memcpy(t->saddr, &v6.saddr, 16);
		__builtin_memcpy(t->daddr, &v6.daddr, 16);
		t->protocol = v6.nexthdr;
		length = sizeof(v6);
	} else {
		return;
	}
	t->family = v4.version;
	if (!length || bpf_probe_read_kernel(ports, sizeof(ports), head + at + length))
		return;
	if (t->protocol == IPPROTO_TCP || t->protocol == IPPROTO_UDP || t->protocol == 132) {
		t->sport = bpf_ntohs(ports[0]);
		t->dport = bpf_ntohs(ports[1]);
	} else if (t->protocol == IPPROTO_ICMP || t->protocol == IPPROTO_ICMPV6_) {
		e->icmp_type = bpf_ntohs(ports[0]) >> 8;
		e->icmp_code = bpf_ntohs(ports[0]) & 0xff;
	}
}

/* Who pings by a raw socket has got a copy; the packet itself goes to sockets of another kind. */
static __always_inline int is_echo_reply(struct sk_buff *skb)
{
	struct event e = {};

	packet_tuple(skb, &e);
	return (e.tuple.protocol == IPPROTO_ICMP && e.icmp_type == 0) ||
	       (e.tuple.protocol == IPPROTO_ICMPV6_ && e.icmp_type == 129);
}

static __always_inline __u32 identity_at(__u8 *addr, __u8 family)
{
	struct end end;

	peer_at(addr, family, node.epoch, &end);
	return identity_of(end.word);
}

static __always_inline void drop_emit(struct sk_buff *skb, __u32 endpoint, __u32 reason, __u32 length)
{
	struct event *e = bpf_ringbuf_reserve(&denial_events, sizeof(*e), 0);
	struct endpoint *ep = endpoint_at(endpoint);
	int sent;

	if (!e) {
		count(COUNT_DENIAL_LOST);
		return;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_ns();
	e->epoch = node.epoch;
	packet_tuple(skb, e);
	sent = ep && e->tuple.family && same_address(e->tuple.saddr, endpoint_addr(ep, e->tuple.family));
	e->endpoint[sent ? 0 : 1] = endpoint;
	if (e->tuple.family) {
		e->identity[0] = identity_at(e->tuple.saddr, e->tuple.family);
		e->identity[1] = identity_at(e->tuple.daddr, e->tuple.family);
	}
	e->kind = EVENT_DENIED;
	e->verdict = VERDICT_DROPPED;
	e->reason = DROP_KERNEL;
	e->kernel_reason = reason;
	e->direction = DIRECTION_NONE;
	e->packets[0] = 1;
	e->bytes[0] = length;
	bpf_ringbuf_submit(e, 0);
	count(COUNT_DENIAL_EMITTED);
}

static __always_inline void drop_count(__u32 endpoint, __u32 reason, __u32 length)
{
	struct kernel_drop_key key = { .endpoint = endpoint, .reason = reason };
	struct denial_count_key by = { .endpoint = endpoint, .reason = DROP_KERNEL, .direction = DIRECTION_NONE };
	struct denial_count *n = bpf_map_lookup_elem(&kernel_drops, &key), zero = {};

	if (!n) {
		bpf_map_update_elem(&kernel_drops, &key, &zero, BPF_NOEXIST);
		n = bpf_map_lookup_elem(&kernel_drops, &key);
	}
	if (n) {
		n->packets += 1;
		n->bytes += length;
	}
	denial_count(&by, 1, length);
	count(COUNT_DROP + DROP_KERNEL);
}

/* Runs for every packet that is dropped on the machine: whose it is is asked first. */
SEC("raw_tp/kfree_skb") int kernel_drop(struct bpf_raw_tracepoint_args *ctx)
{
	struct sk_buff *skb = (void *)ctx->args[0];
	__u32 reason = ctx->args[2], endpoint, length;

	if (reason < 256 && cfg_reasons_left[reason >> 6 & 3] >> (reason & 63) & 1)
		return 0;
	endpoint = packet_endpoint(skb, cfg_reason_socket ? (void *)ctx->args[3] : 0);
	if (!endpoint || (reason == cfg_reason_no_socket && is_echo_reply(skb)))
		return 0;
	length = BPF_CORE_READ(skb, len);
	drop_count(endpoint, reason, length);
	if (!cfg_records)
		return 0;
	if (denial_budget(endpoint))
		drop_emit(skb, endpoint, reason, length);
	else
		count(COUNT_DENIAL_SUPPRESSED);
	return 0;
}

/* Run by the agent, for sockets that nobody saw open. A child inherits sockets from its parent:
 * of several that hold one the oldest counts, and is not said to have opened it. */
SEC("iter/task_file") int name_sockets(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	struct process *was;
	__u32 *has, number;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || (sk->__sk_common.skc_family != INET && sk->__sk_common.skc_family != INET6) || !socket_endpoint(sk))
		return 0;
	if (opener_process(sk->__sk_common.skc_cookie.counter))
		return 0;
	has = bpf_sk_storage_get(&socket_process, sk, 0, 0);
	if (has && !(*has & PROCESS_HELD))
		return 0;
	number = has ? *has & ~PROCESS_HELD : 0;
	was = bpf_map_lookup_elem(&processes, &number);
	if (was && was->key.start <= task->group_leader->start_boottime)
		return 0;
	socket_name(sk, process_named(task) | PROCESS_HELD);
	return 0;
}
