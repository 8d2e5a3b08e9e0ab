/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is told and what is remembered of packets: events, counts of denials, refusals, frames
 * that are kept. A part of the contract with Go. */
#pragma once
#include "contract.h"

/* A judgement that denied. basis stands for both identities, blocks and rulesets. */
struct denial_key {
	__u64 basis;
	__u16 dport;
	__u8 protocol;
	__u8 family;
	__u32 pad;
};

struct denial {
	__u64 epoch;
	__u64 check; /* mix of the key: an entry recycled under its reader does not fit */
	__u32 rule[2];
	__u8 direction;
	__u8 reason;
	__u8 pad[6];
};

/* A packet that began nothing because a ruleset said no, by its own fields: the next like it is
 * known before anybody is looked up. */
struct refusal {
	__u64 epoch;
	__u8 peer[16]; /* address of the end that is not the hook's pod */
	__u32 ifindex; /* of the hook */
	__u32 sender;  /* 0: that interface's pod; else where the packet came from, as flow entries name it */
	__u16 dport;
	__u8 protocol;
	__u8 family;
	__u8 direction;
	__u8 reason;
	__u16 pad;
	__u32 endpoint[2]; /* source, destination */
	__u32 identity[2];
	__u32 rule[2]; /* by direction */
	__u64 check;   /* of all of it: what two CPUs wrote at once does not fit */
};

struct denial_count_key {
	__u32 endpoint;
	__u32 rule;
	__u8 direction;
	__u8 reason;
	__u16 pad;
};

struct denial_count {
	__u64 packets;
	__u64 bytes;
};

/* What the kernel dropped of an endpoint's packets, and its own reason (enum skb_drop_reason). */
struct kernel_drop_key {
	__u32 endpoint;
	__u32 reason;
};

enum event_kind { EVENT_NEW = 1, EVENT_ENDED = 2, EVENT_REVOKED = 3, EVENT_DENIED = 4, EVENT_UPDATE = 5 };

/* What leaves by the rings. tuple is in the initiator's orientation for flows, the
 * packet's for denials. */
struct event {
	__u64 time; /* ktime (CLOCK_MONOTONIC), ns */
	__u64 epoch;
	__u64 created; /* ktime of the flow's first packet, ns; also tells flows of one tuple apart */
	__u64 last;    /* ktime of its newest packet, ns (to the clock's 100 ms), not before created */
	struct tuple tuple;
	__u32 ifindex;     /* where the packet was seen */
	__u32 endpoint[2]; /* source, destination: numbers, 0 = none here */
	__u32 identity[2]; /* source, destination */
	__u32 rule[2];     /* by direction; 0 = not judged here */
	__u8 kind;
	__u8 verdict;
	__u8 reason;    /* enum drop_reason */
	__u8 direction; /* the side that denied; DIRECTION_NONE otherwise */
	__u8 judged;    /* STAMP_EGRESS | STAMP_INGRESS that really had a ruleset here */
	__u8 path;
	__u8 end; /* enum flow_end */
	__u8 icmp_type;
	__u16 tcp_flags; /* of the packet (NEW, DENIED) or the union by source | destination << 8 (ENDED) */
	__u8 icmp_code;
	__u8 picked_up;
	__u64 packets[2]; /* by source, destination */
	__u64 bytes[2];
	__u32 process[2];    /* by source, destination: numbers, 0 = not known */
	__u32 tcp[2];        /* likewise: enum flow_tcp, for those that tcp_known has a bit for (1, 2) */
	__u32 kernel_reason; /* enum skb_drop_reason of the running kernel, for DROP_KERNEL */
	__u16 tcp_known;
	__u16 service; /* that the source's socket had asked for: its number, 0 = none or not known */
};

/* A frame of a peer that is not known yet, see park.h. */
struct parked {
	__u32 ifindex; /* of the hook, on the host side of a pod's veth */
	__u32 length;
	__u8 peer[16]; /* that address */
	__u8 family;
	__u8 from_pod; /* the pod sent it; else it was for the pod */
	__u8 way;      /* it was met before the stack had it: its flow is to be one past the stack */
	__u8 pad[5];
	__u8 frame[PARKED_SIZE];
};

_Static_assert(sizeof(struct event) == 168, "event");
_Static_assert(sizeof(struct refusal) == 72, "refusal");
