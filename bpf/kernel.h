/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The few of the kernel's own types that are read, and of these the few fields. Where they
 * are is found out when the programs are loaded (CO-RE). */
#pragma once
#include <linux/types.h>
#include <bpf/bpf_core_read.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct qstr {
	const unsigned char *name;
};
struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
};
struct vfsmount {
	struct dentry *mnt_root;
};
struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};
struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};
struct file {
	struct path f_path;
	void *private_data;
};
struct mm_struct {
	struct file *exe_file;
};
struct kernfs_node {
	struct kernfs_node *parent;
	const char *name;
	__u64 id;
};
struct kernfs_node___615 { /* from 6.15 */
	struct kernfs_node *__parent;
};
struct cgroup {
	struct kernfs_node *kn;
};
struct css_set {
	struct cgroup *dfl_cgrp;
};
struct task_struct {
	int pid;
	int tgid;
	struct task_struct *group_leader;
	__u64 start_boottime;
	__u64 self_exec_id;
	char comm[16];
	struct mm_struct *mm;
	struct css_set *cgroups;
};

struct net {
	__u64 net_cookie;
};
typedef struct {
	struct net *net;
} possible_net_t;
struct in6_addr_ { /* its own field names are macros */
	__u8 bytes[16];
};
struct sock_common {
	unsigned short skc_family;
	__be16 skc_dport;
	__u16 skc_num;
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	struct in6_addr_ skc_v6_daddr;
	struct in6_addr_ skc_v6_rcv_saddr;
	possible_net_t skc_net;
	struct {
		__s64 counter;
	} skc_cookie;
};
struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};
struct inet_sock {
	__be16 inet_sport;
};
struct inet_connection_sock {
	struct inet_sock icsk_inet;
};
struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 srtt_us;
	__u32 total_retrans;
};
struct socket {
	struct sock *sk;
};
struct bpf_iter_meta;
struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct file *file;
};
struct net_device {
	int ifindex;
	possible_net_t nd_net;
};
struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	unsigned char *head;
	__u32 len;
	__u32 mark;
	__u16 network_header;
	__u16 transport_header;
	__be16 protocol;
};

#pragma clang attribute pop
