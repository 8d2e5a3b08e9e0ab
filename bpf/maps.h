/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every map, with its default size; the loader may resize those it has a knob for and
 * pins all by name. Those marked mmap are written by the agent word by word. */
#pragma once
#include "event.h"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* The page of words that a store changes for the whole node (mmap). */
struct control {
	__u64 epoch;             /* the one in force; written by the agent alone */
	__u64 clock;             /* ms; written by the sweep's timer, 100 ms apart */
	__u64 flow_borrow_limit; /* capacity - share * endpoints: entries that may be borrowed */
	__u64 flow_borrowed;     /* sum over endpoints of max(0, flows - share) */
	__u64 flow_slot_next;    /* first of flow_slots never used */
	__u64 sweep_position;    /* next slot of the sweep */
	__u64 sweep_ticks;       /* ticks of the timer since it was armed: it lives */
	__u64 flows;             /* entries in the table */
	__u64 pickup_until;      /* clock; TCP flows whose entries are lost are picked up before it */
	__u64 abi;               /* of the programs that were last loaded on these maps */
};
SEC(".data.control") volatile struct control node;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* A flow's key by slot: what the sweep walks. A family of 0: the slot is free. The flow says which
 * slot is its own, so a key that is being written is nobody's. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 131072);
	__type(key, __u32);
	__type(value, struct flow_key);
} flow_slots SEC(".maps");
/* Slots that were used and are free again. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 131072);
	__type(value, __u32);
} flow_free SEC(".maps");

/* The timer that ages the flow table and moves the clock, with or without an agent. */
struct sweep {
	struct bpf_timer timer;
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sweep);
} sweep_timer SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENDPOINT_MAX);
	__type(key, __u32);   /* ifindex */
	__type(value, __u32); /* endpoint number */
} endpoint_index SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ENDPOINT_MAX);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct endpoint);
} endpoints SEC(".maps"); /* mmap */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ENDPOINT_MAX);
	__type(key, __u32);
	__type(value, struct endpoint_state);
} endpoint_states SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address_key);
	__type(value, __u32); /* index in peers */
} addresses SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_key);
	__type(value, __u32); /* index in peers */
} prefixes SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 131072 + 16384 + 1); /* addresses, prefixes */
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct peer_entry);
} peers SEC(".maps"); /* mmap; index 0 is never used */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fact_key);
	__type(value, __u32); /* ordinal */
} facts SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); /* ruleset id */
	__type(value, struct ruleset);
} rulesets SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct exact_key);
	__type(value, struct port_group);
} exact_groups SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 32768);
	__type(key, __u32);
	__type(value, struct port_group);
} port_groups SEC(".maps"); /* extents, one per ruleset */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct port_span);
} port_spans SEC(".maps"); /* mmap; extents, one per ruleset that has masks */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct mask_key);
	__type(value, struct wide_mask);
} peer_masks SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u32);
} rule_ids SEC(".maps"); /* mmap; extents, one per port group */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend_key);
	__type(value, __u32); /* 1 */
} frontends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct denial_key);
	__type(value, struct denial);
} denials SEC(".maps");
/* Refusals, by place: an interface has REFUSALS of its own, unless it shares them with those whose
 * index differs by a multiple of ENDPOINT_MAX. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ENDPOINT_MAX *REFUSALS);
	__type(key, __u32);
	__type(value, struct refusal);
} refusals SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct denial_count_key);
	__type(value, struct denial_count);
} denial_counts SEC(".maps");
/* First fragments, by place: a sender's newest takes the place of one of its own. The
 * outside has the first FRAGMENTS_OUTSIDE places, each endpoint FRAGMENTS of the rest. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FRAGMENTS_OUTSIDE + ENDPOINT_MAX * FRAGMENTS);
	__type(key, __u32);
	__type(value, struct fragment);
} fragments SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNT_MAX);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_key);
	__type(value, __u32); /* 1 = drop */
} shield_deny SEC(".maps");

/* The other nodes' addresses and their ranges of pods, where Weir makes the routes to them. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_key);
	__type(value, struct origin);
} origins SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); /* of the node, see struct way */
	__type(value, struct way);
} ways SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 2 << 20);
} flow_events SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} denial_events SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 << 10);
} parked_frames SEC(".maps");
