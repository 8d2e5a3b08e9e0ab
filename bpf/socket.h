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
