//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Services from pods. A socket that names a Service gets one of its backends, so that
 * policy judges the backend; it is shown the Service's address again when it asks who its
 * peer is or who sent a datagram. The kernel holds the socket's lock around each program.
 *
 *   connect        the Service -> a backend, remembered with the socket
 *   sendmsg        likewise for each Service that an unconnected socket sends to
 *   recvmsg        the backend -> the Service that the socket asked for
 *   getpeername    likewise
 *
 * And they note whose socket it is, where no tracepoint tells: of all but TCP (observe.bpf.c).
 *
 *   socket, bind, connect, sendmsg    the newest of these counts
 */
#include "process.h"
#include "service.h"
#include <bpf/bpf_endian.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum { REFUSE = 0, PASS = 1 };
enum { NO_MEMORY = 12, CONNECTION_REFUSED = 111 };
enum { PROTOCOL_TCP = 6, PROTOCOL_UDP = 17, PROTOCOL_MPTCP = 262 };

/* Of connected UDP sockets, by their cookies, for the agent: it ends those whose backend
 * goes, since no program runs when they send. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct translation);
} udp_sockets SEC(".maps");

/* Of two kinds of sockets: v4-mapped addresses on an IPv6 socket are IPv4. */
enum socket_family { V4, V6 };

static __always_inline void name_read(struct bpf_sock_addr *ctx, enum socket_family f, struct frontend_key *k)
{
	__u32 *a = (__u32 *)k->addr;

	a[0] = f == V6 ? ctx->user_ip6[0] : 0;
	a[1] = f == V6 ? ctx->user_ip6[1] : 0;
	a[2] = f == V6 ? ctx->user_ip6[2] : bpf_htonl(0xffff);
	a[3] = f == V6 ? ctx->user_ip6[3] : ctx->user_ip4;
	k->port = bpf_ntohs((__u16)ctx->user_port);
	k->protocol = ctx->protocol == PROTOCOL_MPTCP ? PROTOCOL_TCP : ctx->protocol;
	k->family = a[0] == 0 && a[1] == 0 && a[2] == bpf_htonl(0xffff) ? 4 : 6;
}

static __always_inline void name_write(struct bpf_sock_addr *ctx, enum socket_family f, __u8 *addr, __u16 port)
{
	__u32 *a = (__u32 *)addr;

	if (f == V6) {
		ctx->user_ip6[0] = a[0];
		ctx->user_ip6[1] = a[1];
		ctx->user_ip6[2] = a[2];
		ctx->user_ip6[3] = a[3];
	} else {
		ctx->user_ip4 = a[3];
	}
	ctx->user_port = bpf_htons(port);
}

static __always_inline int refuse(int error)
{
	bpf_set_retval(-error);
	return REFUSE;
}

static __always_inline int asks_for(struct translation *t, struct frontend_key *k)
{
	return t->service_port == k->port && same_address(t->service, k->addr);
}

static __always_inline void remember(struct translation *t, struct frontend_key *k, struct search *s,
				     struct backend_list *head)
{
	__builtin_memcpy(t->service, k->addr, sizeof(t->service));
	__builtin_memcpy(t->backend, s->wanted.addr, sizeof(t->backend));
	t->service_port = k->port;
	t->backend_port = s->wanted.port;
	t->position = (s->position & 0xffff) | (__u32)head->number << 16;
}

static __always_inline int is_named_elsewhere(__u32 protocol)
{
	return !cfg_process || protocol == PROTOCOL_TCP || protocol == PROTOCOL_MPTCP;
}

/* The list of the Service that an endpoint's socket names; 0 = nothing to translate. Whose the
 * socket is has been noted then. */
static __always_inline __u32 named_list(struct bpf_sock_addr *ctx, enum socket_family f, struct frontend_key *k,
					__u64 *netns)
{
	*netns = bpf_get_netns_cookie(ctx);
	if (!bpf_map_lookup_elem(&netns_endpoints, netns))
		return 0;
	if (!is_named_elsewhere(ctx->protocol) && ctx->sk)
		socket_name(ctx->sk, process_named(bpf_get_current_task_btf()));
	name_read(ctx, f, k);
	return service_list(k);
}

static __always_inline int connects(struct bpf_sock_addr *ctx, enum socket_family f)
{
	struct frontend_key to __attribute__((aligned(8))) = {};
	struct search s = {};
	struct translation *t;
	struct backend_list *head;
	__u64 netns, cookie;

	s.list = named_list(ctx, f, &to, &netns);
	if (!s.list) {
		bpf_sk_storage_delete(&connected, ctx->sk);
		return PASS;
	}
	head = list_head(s.list);
	if (!head || !head->count || !choose(&s, head, netns))
		return refuse(CONNECTION_REFUSED);
	t = bpf_sk_storage_get(&connected, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!t)
		return refuse(NO_MEMORY);
	remember(t, &to, &s, head);
	if (to.protocol == PROTOCOL_UDP) {
		cookie = bpf_get_socket_cookie(ctx);
		bpf_map_update_elem(&udp_sockets, &cookie, t, BPF_ANY);
	}
	name_write(ctx, f, t->backend, t->backend_port);
	return PASS;
}

/* The talk with a Service, or the one that has to make way for it. */
static __always_inline struct translation *talk_with(struct talks *all, struct frontend_key *to, int *known)
{
	*known = 1;
	for (int i = 0; i < TALKS_MAX; i++)
		if (asks_for(&all->talk[i], to))
			return &all->talk[i];
	*known = 0;
	return &all->talk[all->next++ % TALKS_MAX];
}

/* What it sends next to a backend was not for the Service. */
static __always_inline void names_itself(struct bpf_sock_addr *ctx, struct frontend_key *to)
{
	struct talks *all = to->family ? bpf_sk_storage_get(&talking, ctx->sk, 0, 0) : 0;

	if (!all)
		return;
	for (int i = 0; i < TALKS_MAX; i++)
		if (leads_to(&all->talk[i], to->addr, to->port))
			all->talk[i].position &= 0xffff;
}

/* An unconnected socket stays with the backend it has while the Service has that. */
static __always_inline int sends(struct bpf_sock_addr *ctx, enum socket_family f)
{
	struct frontend_key to __attribute__((aligned(8))) = {};
	struct search s = {};
	struct translation *t;
	struct backend_list *head;
	struct talks *all;
	__u64 netns;
	int known;

	s.list = named_list(ctx, f, &to, &netns);
	if (!s.list) {
		names_itself(ctx, &to);
		return PASS;
	}
	t = bpf_sk_storage_get(&connected, ctx->sk, 0, 0);
	if (t && ctx->sk->state == BPF_TCP_ESTABLISHED && asks_for(t, &to)) { /* connected: it hears nobody else */
		name_write(ctx, f, t->backend, t->backend_port);
		return PASS;
	}
	head = list_head(s.list);
	if (!head || !head->count)
		return refuse(CONNECTION_REFUSED);
	all = bpf_sk_storage_get(&talking, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!all)
		return refuse(NO_MEMORY);
	t = talk_with(all, &to, &known);
	if (known) {
		__builtin_memcpy(s.wanted.addr, t->backend, sizeof(s.wanted.addr));
		s.wanted.port = t->backend_port;
		s.position = t->position & 0xffff;
		known = still_there(&s, head);
	}
	if (!known && !choose(&s, head, netns))
		return refuse(CONNECTION_REFUSED);
	remember(t, &to, &s, head);
	name_write(ctx, f, t->backend, t->backend_port);
	return PASS;
}

/* The Service's address in place of its backend's. */
static __always_inline int shown(struct bpf_sock_addr *ctx, enum socket_family f, struct translation *t,
				 struct frontend_key *from)
{
	if (!leads_to(t, from->addr, from->port))
		return 0;
	name_write(ctx, f, t->service, t->service_port);
	return 1;
}

static __always_inline int shows(struct bpf_sock_addr *ctx, enum socket_family f, int datagram)
{
	struct frontend_key from __attribute__((aligned(8))) = {};
	struct translation *t;
	struct talks *all;

	name_read(ctx, f, &from);
	t = bpf_sk_storage_get(&connected, ctx->sk, 0, 0);
	if ((t && shown(ctx, f, t, &from)) || !datagram)
		return PASS;
	all = bpf_sk_storage_get(&talking, ctx->sk, 0, 0);
	if (!all)
		return PASS;
	for (int i = 0; i < TALKS_MAX; i++)
		if (shown(ctx, f, &all->talk[i], &from))
			break;
	return PASS;
}

static __always_inline int belongs(struct bpf_sock *sk)
{
	__u64 netns;

	if (is_named_elsewhere(sk->protocol))
		return PASS;
	netns = bpf_get_netns_cookie(sk);
	if (bpf_map_lookup_elem(&netns_endpoints, &netns))
		socket_name(sk, process_named(bpf_get_current_task_btf()));
	return PASS;
}

/* clang-format off */
SEC("cgroup/sock_create") int sock_create(struct bpf_sock *sk) { return belongs(sk); }
SEC("cgroup/post_bind4") int post_bind4(struct bpf_sock *sk) { return belongs(sk); }
SEC("cgroup/post_bind6") int post_bind6(struct bpf_sock *sk) { return belongs(sk); }
SEC("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx) { return connects(ctx, V4); }
SEC("cgroup/connect6") int connect6(struct bpf_sock_addr *ctx) { return connects(ctx, V6); }
SEC("cgroup/sendmsg4") int sendmsg4(struct bpf_sock_addr *ctx) { return sends(ctx, V4); }
SEC("cgroup/sendmsg6") int sendmsg6(struct bpf_sock_addr *ctx) { return sends(ctx, V6); }
SEC("cgroup/recvmsg4") int recvmsg4(struct bpf_sock_addr *ctx) { return shows(ctx, V4, 1); }
SEC("cgroup/recvmsg6") int recvmsg6(struct bpf_sock_addr *ctx) { return shows(ctx, V6, 1); }
SEC("cgroup/getpeername4") int getpeername4(struct bpf_sock_addr *ctx) { return shows(ctx, V4, 0); }
SEC("cgroup/getpeername6") int getpeername6(struct bpf_sock_addr *ctx) { return shows(ctx, V6, 0); }
/* clang-format on */

const struct backend_list *unused_backend_list __attribute__((unused));
