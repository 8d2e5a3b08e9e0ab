/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What Services stand for, and the choice of a backend. */
#pragma once
#include "access.h"
#include "socket.h"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend_key);
	__type(value, __u32); /* index in service_lists */
} services SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384 + 1); /* services */
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64); /* its list's head in backends, 0 = none: not translated */
} service_lists SEC(".maps"); /* mmap; index 0 is never used */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps"); /* mmap; extents, one per list; index 0 is never used */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinities SEC(".maps");

/* The list that an address and port stand for; 0 = it is no Service's. */
static __always_inline __u32 service_list(struct frontend_key *to)
{
	__u32 *index = bpf_map_lookup_elem(&services, to), i;
	__u64 *word;

	if (!index)
		return 0;
	i = *index;
	word = bpf_map_lookup_elem(&service_lists, &i);
	return word ? (__u32)READ_ONCE(*word) : 0;
}

static __always_inline struct backend_list *list_head(__u32 list)
{
	return bpf_map_lookup_elem(&backends, &list);
}

static __always_inline struct backend *backend_at(__u32 list, __u32 position)
{
	__u32 i = list + 1 + position;

	return bpf_map_lookup_elem(&backends, &i);
}

/* A search for a backend in a list. */
struct search {
	struct backend wanted;
	__u32 list;
	__u32 position;
	int found;
} __attribute__((aligned(8)));

static __always_inline int is_backend(struct backend *b, struct backend *wanted)
{
	return b && b->port == wanted->port && same_address(b->addr, wanted->addr);
}

static long search_step(__u32 i, struct search *s)
{
	if (!is_backend(backend_at(s->list, i), &s->wanted))
		return 0;
	s->position = i;
	s->found = 1;
	return 1;
}

/* Whether a list has the backend; at first where it was in the list it came from. */
static __always_inline int still_there(struct search *s, struct backend_list *head)
{
	__u32 count = head->count;

	if (s->position < count && is_backend(backend_at(s->list, s->position), &s->wanted))
		return 1;
	bpf_loop(count, search_step, s, 0);
	return s->found;
}

/* Any backend of a list that has some. */
static __always_inline int choose_any(struct search *s, struct backend_list *head)
{
	struct backend *b;

	s->position = bpf_get_prandom_u32() % head->count;
	b = backend_at(s->list, s->position);
	if (!b)
		return 0;
	s->wanted = *b;
	return 1;
}

/* The backend that a pod's namespace is to get, as its affinity says. */
static __always_inline int choose(struct search *s, struct backend_list *head, __u64 netns)
{
	struct affinity_key key = { .netns = netns, .service = head->service };
	struct affinity *known, fresh = {};
	__u64 now = bpf_ktime_get_ns();

	if (!head->affinity)
		return choose_any(s, head);
	known = bpf_map_lookup_elem(&affinities, &key);
	if (known && (__s64)(now - READ_ONCE(known->last)) < (__s64)(head->affinity * 1000000000ULL)) {
		s->wanted = known->backend; /* may be torn: only what the list has counts */
		s->position = known->position;
		if (still_there(s, head)) {
			WRITE_ONCE(known->last, now);
			return 1;
		}
	}
	if (!choose_any(s, head))
		return 0;
	fresh.last = now;
	fresh.backend = s->wanted;
	fresh.position = s->position;
	bpf_map_update_elem(&affinities, &key, &fresh, BPF_ANY);
	return 1;
}
