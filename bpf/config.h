/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every knob of the kernel programs: set by the loader before they are loaded. */
#pragma once
#include <linux/types.h>

/* Place of our 16 bits (enum mark_bits) in skb->mark. */
volatile const __u32 cfg_mark_shift = 16;
/* 0 = a pod's traffic to its own node is judged by its egress policy; 1 = always allowed. */
volatile const __u32 cfg_node_egress_allow = 0;
/* Flow entries an endpoint always gets; the rest of the table is lent to whoever asks first. */
volatile const __u32 cfg_flow_share = 128;
volatile const __u32 cfg_flow_capacity = 131072;
/* Idle times, ms. */
volatile const __u64 cfg_timeout_syn = 60000;
volatile const __u64 cfg_timeout_tcp = 21600000;
volatile const __u64 cfg_timeout_closing = 10000;
volatile const __u64 cfg_timeout_udp = 60000;
volatile const __u64 cfg_timeout_udp_stream = 180000;
volatile const __u64 cfg_timeout_icmp = 30000;
volatile const __u64 cfg_timeout_other = 600000;
/* From closed to deleted: no program that found the entry still runs then, ms. */
volatile const __u64 cfg_linger = 2000;
/* UDP port of the tunnel between nodes, 0 = there is none: pods may not send to it. */
volatile const __u32 cfg_tunnel_port = 0;
/* Source MAC of frames delivered to pods by redirect: the host sides all have it. */
volatile const __u8 cfg_host_mac[8] = { 0xee, 0xee, 0xee, 0xee, 0xee, 0xee };
/* Seed of the mixes that stand for keys; chosen at random by the loader. */
volatile const __u64 cfg_seed = 0x9e3779b97f4a7c15ULL;
/* The pods' gateways, in wire order: nobody has these addresses, both ends know the MAC. */
volatile const __u8 cfg_gateway4[4] = { 169, 254, 1, 1 };
volatile const __u8 cfg_gateway6[16] = { 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0xec, 0xee, 0xee, 0xff, 0xfe, 0xee, 0xee, 0xee };
/* A flow that goes on is told of again after so long if it has had packets, ms; 0 = never. */
volatile const __u64 cfg_update = 60000;
/* 0 = flows and denials are counted, and no records of them written. */
volatile const __u32 cfg_records = 1;
/* 0 = no new flow to or from another node's pod goes past this node's stack. */
volatile const __u32 cfg_host_routing = 1;
/* 0 = no socket gets a backend for a Service. */
volatile const __u32 cfg_services = 1;
