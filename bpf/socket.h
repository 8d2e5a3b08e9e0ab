/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a socket carries, and whose sockets count. */
#pragma once
#include "access.h"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* Network namespaces of this agent's endpoints: nobody else's sockets are touched. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENDPOINT_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);   /* cookie */
	__type(value, __u32); /* endpoint number */
} netns_endpoints SEC(".maps");

/* The number of the process that opened a socket (enum process_number). */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} socket_process SEC(".maps");

/* sk: a kernel's socket or a struct bpf_sock, as the program has it. */
static __always_inline void socket_name(void *sk, __u32 process)
{
	__u32 *has = bpf_sk_storage_get(&socket_process, sk, &process, BPF_SK_STORAGE_GET_F_CREATE);

	if (has && *has != process)
		*has = process;
}

/* The same of TCP sockets that connect, in a place by their cookie until they are closed: a
 * connection is often over before its storage would have paid. Who finds the place taken has
 * storage. What is left of the cookie << 32 | number, 0 = free. */
enum { OPENERS = 4096 }; /* a power of two */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, OPENERS);
	__type(key, __u32);
	__type(value, __u64);
} tcp_openers SEC(".maps");

static __always_inline __u64 *opener_place(__u64 cookie)
{
	__u32 at = cookie & (OPENERS - 1);

	return bpf_map_lookup_elem(&tcp_openers, &at);
}

static __always_inline __u64 opener_word(__u64 cookie, __u32 process)
{
	return cookie / OPENERS << 32 | process;
}

static __always_inline int is_opener_of(__u64 word, __u64 cookie)
{
	return (__u32)word && word >> 32 == (__u32)(cookie / OPENERS);
}

static __always_inline __u32 opener_process(__u64 cookie)
{
	__u64 *place = cookie ? opener_place(cookie) : 0, word = place ? READ_ONCE(*place) : 0;

	return is_opener_of(word, cookie) ? (__u32)word : 0;
}

/* 0 = the place is another socket's. */
static __always_inline int opener_put(__u64 cookie, __u32 process)
{
	__u64 *place = opener_place(cookie);

	return place && process && CMPXCHG(*place, 0, opener_word(cookie, process)) == 0;
}

static __always_inline void opener_free(__u64 cookie)
{
	__u64 *place = cookie ? opener_place(cookie) : 0;

	if (place && is_opener_of(READ_ONCE(*place), cookie))
		WRITE_ONCE(*place, 0);
}

/* What a socket is connected to. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct translation);
} connected SEC(".maps");

/* What an unconnected socket sends to: the newest Services. */
struct talks {
	__u32 next;
	__u32 pad;
	struct translation talk[TALKS_MAX];
};
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct talks);
} talking SEC(".maps");

static __always_inline int leads_to(struct translation *t, __u8 *addr, __u16 port)
{
	return t->backend_port == port && same_address(t->backend, addr);
}
