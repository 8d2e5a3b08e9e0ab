/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whose sockets are whose. A socket carries the number of the process that opened it: who
 * connected it or last sent from it, for TCP who made it listen. A process is told from others by
 * what nobody can change (PID, start) and by how often it has become another program; it gets its
 * number, and what else is known of it is noted, when a socket first names it.
 */
#pragma once
#include "access.h"
#include "kernel.h"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* 0 = off: no socket is named, what is known stays. */
volatile const __u32 cfg_process = 1;

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32); /* number */
	__type(value, struct process);
} processes SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024); /* as processes */
	__type(key, struct process_key);
	__type(value, __u32); /* number */
} process_numbers SEC(".maps");
/* How many numbers were given. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} process_count SEC(".maps");

/* A process as it is put together: too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct process);
} process_draft SEC(".maps");

static __always_inline struct process *process_drafted(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&process_draft, &zero);
}

/* A way up from name to name; addresses are the kernel's. */
struct climb {
	__u64 at;  /* struct dentry, struct kernfs_node */
	__u64 vfs; /* struct vfsmount */
	__u32 length;
	__u32 whole;
};

/* Puts a name at the end of a buffer of most bytes, a power of two, and PROCESS_NAME_MAX to
 * spare. 1 = that was the last that has room. */
static __always_inline int name_put(struct climb *c, char *to, __u32 most, const void *name)
{
	__u32 at = c->length;
	long n;

	if (at >= most)
		return 1;
	asm volatile("" : "+r"(at)); /* the verifier of 6.1 wants to see the place masked */
	at &= most - 1;
	n = bpf_probe_read_kernel_str(to + at, PROCESS_NAME_MAX, name);
	if (n <= 0 || n == PROCESS_NAME_MAX)
		return 1;
	c->length += n;
	return 0;
}

/* From a file to the root of the mounts that the process sees. */
static long exe_step(__u32 i, struct climb *c)
{
	struct vfsmount *vfs = (void *)c->vfs;
	struct dentry *d = (void *)c->at, *parent;
	struct process *p = process_drafted();
	struct mount *m, *up;

	if (!p)
		return 1;
	if (d == BPF_CORE_READ(vfs, mnt_root)) {
		m = (void *)vfs - bpf_core_field_offset(struct mount, mnt);
		up = BPF_CORE_READ(m, mnt_parent);
		c->at = (__u64)BPF_CORE_READ(m, mnt_mountpoint);
		c->vfs = (__u64)up + bpf_core_field_offset(struct mount, mnt);
		if (up && up != m)
			return 0;
		c->whole = 1;
		return 1;
	}
	parent = BPF_CORE_READ(d, d_parent);
	c->at = (__u64)parent;
	if (!parent || parent == d) { /* of no path, or unmounted */
		c->whole = 1;
		return 1;
	}
	return name_put(c, p->exe, PROCESS_EXE_MAX, BPF_CORE_READ(d, d_name.name));
}

static __always_inline struct kernfs_node *kernfs_parent(struct kernfs_node *kn)
{
	struct kernfs_node___615 *newer = (void *)kn;

	if (bpf_core_field_exists(newer->__parent))
		return BPF_CORE_READ(newer, __parent);
	return BPF_CORE_READ(kn, parent);
}

/* From a cgroup to the root, which has no name, or as far as there is room. */
static long cgroup_step(__u32 i, struct climb *c)
{
	struct kernfs_node *kn = (void *)c->at, *parent = kernfs_parent(kn);
	struct process *p = process_drafted();

	c->at = (__u64)parent;
	return !p || !parent || name_put(c, p->cgroup, PROCESS_CGROUP_MAX, BPF_CORE_READ(kn, name));
}

/* Who is preempted here finds his CPU's draft busy for others: they stay without a description
 * until their next socket. */
static __always_inline void process_describe(__u32 number, struct process_key *key, struct task_struct *leader)
{
	struct file *exe = BPF_CORE_READ(leader, mm, exe_file);
	struct process *p = process_drafted();
	struct climb c = {};

	if (!p || CMPXCHG(p->busy, 0, 1))
		return;
	p->key = *key;
	bpf_probe_read_kernel_str(p->name, sizeof(p->name), &leader->comm);
	if (exe) {
		c.at = (__u64)BPF_CORE_READ(exe, f_path.dentry);
		c.vfs = (__u64)BPF_CORE_READ(exe, f_path.mnt);
		bpf_loop(PROCESS_DEPTH, exe_step, &c, 0);
	}
	p->exe_length = c.length;
	p->exe_whole = c.whole;
	__builtin_memset(&c, 0, sizeof(c));
	c.at = (__u64)BPF_CORE_READ(leader, cgroups, dfl_cgrp, kn);
	bpf_loop(PROCESS_CGROUPS, cgroup_step, &c, 0);
	p->cgroup_length = c.length;
	bpf_map_update_elem(&processes, &number, p, BPF_ANY);
	WRITE_ONCE(p->busy, 0);
}

static __always_inline __u32 process_number_new(void)
{
	__u32 zero = 0, *count = bpf_map_lookup_elem(&process_count, &zero);

	return count ? (ADD(*count, 1) + 1) & ~PROCESS_HELD : 0;
}

/* The number of a task's process, which is described the first time that it is asked for. */
static __always_inline __u32 process_named(struct task_struct *task)
{
	struct task_struct *leader = task->group_leader;
	struct process_key key = { .start = leader->start_boottime, .pid = leader->tgid, .exec = leader->self_exec_id };
	__u32 *known = bpf_map_lookup_elem(&process_numbers, &key), number;

	number = known ? *known : process_number_new();
	if (!known)
		bpf_map_update_elem(&process_numbers, &key, &number, BPF_ANY);
	if (!known || !bpf_map_lookup_elem(&processes, &number))
		process_describe(number, &key, leader);
	return number;
}
