/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between the kernel programs and Go. Go's types and constants are
 * generated from this header's BTF (see gen.go): nothing here has a twin that is
 * kept by hand. Integers are host order unless a comment says "wire order".
 */
#pragma once
#include <linux/types.h>

/* Sizes that both sides use. */
enum limits {
	ENDPOINT_MAX = 1024, /* endpoint numbers 1..1023; 0 is "none"; must fit 12 bits of the mark */
	SCAN_MAX = 16,       /* wide groups of a ruleset that are asked one by one; where there are more, masks are */
	WIDE_MAX = 256,      /* port groups of one ruleset that no single port finds: ranges, named, any */
	WIDE_WORDS = 4,      /* a bit for each of them */
	SPANS_FIRST = 2,     /* of a ruleset's spans: before them are the groups for any peer, and for all pods */
	DENIED_BUDGET = 100, /* denied packets a second that an endpoint has recorded one by one */
	PARKED_BUDGET = 20,  /* of these, how many are handed to the agent if their peer is not known yet */
	PARKED_SIZE = 512,   /* bytes of a frame that is; a power of two */
	ERROR_BUDGET = 100,  /* ICMP errors a second that each end of a flow may be sent about it */
	REFUSALS = 8,        /* refusals that are remembered for an interface; a power of two */
	FRAGMENTS = 32,      /* fragmented datagrams that an endpoint can have under way */
	FRAGMENTS_OUTSIDE = 4096, /* and the outside; both powers of two */
	TUNNEL_NETWORK = 0x7765,  /* VNI of the tunnel between nodes */
	TALKS_MAX = 16, /* Services that an unconnected socket talks to and gets answers from under their addresses */
};

/* Identity numbers below IDENTITY_FIRST are reserved (the numbers Hubble's clients know); those with IDENTITY_BLOCK
 * set name a policy CIDR (an address block), the others a set of labels. */
enum identity_number {
	IDENTITY_UNKNOWN = 0,
	IDENTITY_HOST = 1,        /* this node's own addresses */
	IDENTITY_WORLD = 2,       /* outside the cluster */
	IDENTITY_UNMANAGED = 3,   /* in the cluster's ranges, not learned (P8) */
	IDENTITY_REMOTE_NODE = 6, /* another node's addresses */
	IDENTITY_FIRST = 256,
	IDENTITY_BLOCK = 0x80000000,
};

/* Rule ids below RULE_FIRST are the same everywhere; the others are the agent's, never
 * given out again. */
enum rule_number {
	RULE_NONE = 0,         /* not judged here */
	RULE_NODE = 1,         /* this node to its own pods: always allowed, as Kubernetes says */
	RULE_SELF = 2,         /* a pod to itself */
	RULE_NOT_ISOLATED = 3, /* no policy isolates the pod in that direction */
	RULE_NODE_EGRESS = 4,  /* a pod to its own node, under --node-egress=allow */
	RULE_FIRST = 256,
};

/* Direction as the pod sees it. */
enum direction { DIRECTION_EGRESS = 0, DIRECTION_INGRESS = 1, DIRECTION_NONE = 2 };

enum verdict { VERDICT_UNKNOWN = 0, VERDICT_FORWARDED = 1, VERDICT_DROPPED = 2, VERDICT_AUDIT = 3 };

/* How packets of a flow reach their receiver; one answer for both directions. */
enum flow_path { PATH_STACK = 0, PATH_BPF = 1 };

enum drop_reason {
	DROP_NONE = 0,
	DROP_POLICY,           /* a ruleset said no; rule id and direction tell which */
	DROP_UNMANAGED_PEER,   /* a ruleset said no to an address the cluster has not shown us yet */
	DROP_NO_ENDPOINT,      /* the interface is not an endpoint (yet, or any more) */
	DROP_NO_RULESET,       /* an endpoint names a ruleset that is not there */
	DROP_SPOOFED_SOURCE,   /* source address is not the endpoint's */
	DROP_BAD_SOURCE,       /* source loopback, multicast, unspecified or v4-mapped in IPv6 */
	DROP_FOREIGN_SOURCE,   /* from outside with the address of a local pod */
	DROP_ETHERTYPE,        /* neither IPv4, IPv6 nor ARP */
	DROP_VLAN,             /* a tagged frame */
	DROP_TRUNCATED,        /* a header does not fit the packet */
	DROP_BAD_HEADER,       /* version or length fields that contradict the packet */
	DROP_IP_OPTIONS,       /* IPv4 header options */
	DROP_EXTENSION_HEADER, /* IPv6 extension headers other than fragment */
	DROP_FRAGMENT_SHORT,   /* a first fragment without its whole transport header */
	DROP_FRAGMENT_UNKNOWN, /* a later fragment whose first was not seen or not allowed */
	DROP_TCP_FLAGS,        /* a combination no TCP sends */
	DROP_TCP_STRAY,        /* SYN+ACK, FIN or RST of no flow, and not allowed as one; data that one way allows */
	DROP_ICMP_TYPE,        /* ICMP that is neither echo nor an error, or a reply of no request */
	DROP_ICMP_UNRELATED,   /* ICMP error about a flow that is not there or not the sender's */
	DROP_NEIGHBOUR,        /* ARP or NDP other than for the pod's own gateway; on a shared link, as somebody else */
	DROP_MULTICAST,        /* to a group or everybody, and control traffic (IGMP, MLD, RA, DHCP) */
	DROP_FAMILY,           /* a family the endpoint has no address of */
	DROP_TUNNEL,           /* tunnel traffic from a pod to a node */
	DROP_FLOW_TABLE_FULL,  /* no room for a new flow */
	DROP_FLOW_SHARE,       /* the endpoint is past its share and there is no free room to borrow */
	DROP_SHIELD,           /* the shield's deny list */
	DROP_QUARANTINE,       /* the endpoint is quarantined */
	DROP_DESTINATION,      /* to a pod with an address not its own; to loopback; from a pod to the link */
	DROP_ICMP_RATE,        /* ICMP errors about one flow past their budget */
	DROP_TUNNEL_NETWORK,   /* out of the tunnel, of a network (VNI) that is not ours */
	DROP_TUNNEL_NODE,      /* out of the tunnel, from an address that is no node's */
	DROP_TUNNEL_SOURCE,    /* out of the tunnel, from a sender that is not of the node that sent it */
	DROP_TUNNEL_BYPASSED,  /* from another node's pod, and not by the tunnel */
	DROP_KERNEL,           /* the kernel's own, outside our hooks: event.kernel_reason says why */
	DROP_REASON_MAX,
};

/* Per-CPU counters, by index. Drops are counted at COUNT_DROP + drop_reason. */
enum counter {
	COUNT_FLOW_NEW = 0,
	COUNT_FLOW_ENDED,
	COUNT_FLOW_REVOKED,
	COUNT_FLOW_RESTAMPED, /* stale, found unchanged */
	COUNT_FLOW_REJUDGED,  /* stale, walked again */
	COUNT_FLOW_PICKED_UP, /* mid-stream TCP rebuilt */
	COUNT_EVENT_EMITTED,  /* flow events written to the ring */
	COUNT_EVENT_LOST,     /* flow events the ring had no room for */
	COUNT_DENIAL_EMITTED,
	COUNT_DENIAL_LOST,       /* denial events the ring had no room for */
	COUNT_DENIAL_SUPPRESSED, /* denied packets past their endpoint's budget: counted, not recorded */
	COUNT_DENIAL_UNCOUNTED,  /* denials that found denial_counts full */
	COUNT_DENIAL_CACHED,     /* denials answered without a scan */
	COUNT_PARKED,            /* first packets handed to the agent: their peer is not known yet */
	COUNT_UNTRACKED,         /* forwarded without a flow entry: strays and races */
	COUNT_FLOW_UPDATED,      /* periodic events of long flows */
	COUNT_DROP = 32,
	COUNT_MAX = 96,
};

/* One packet's or flow's ends, in the order the packet has them. */
struct tuple {
	__u8 saddr[16]; /* IPv4 as ::ffff:a.b.c.d; the family is in family */
	__u8 daddr[16];
	__u16 sport; /* ICMP echo: the id at the asker's end, 0 at the other */
	__u16 dport;
	__u8 protocol;
	__u8 family; /* 4 or 6 */
	__u16 pad;
};

/* Key of a flow: the same for both directions. Side 0 is the smaller (address, port). */
struct flow_key {
	__u8 addr[2][16];
	__u16 port[2];
	__u8 protocol;
	__u8 family;
	__u16 pad;
};

/* Interface classes that stand in a flow entry in place of an ifindex. */
enum iface_class { IFACE_HOST = 0xffffffff, IFACE_OUTSIDE = 0xfffffffe };

/* Low byte of flow.stamp; the epoch is in the upper 56 bits. One word, so verdict
 * and epoch change together. */
enum stamp_bits {
	STAMP_EGRESS = 1,  /* the initiator is a pod of this node and its egress was judged */
	STAMP_INGRESS = 2, /* the responder is a pod of this node and its ingress was judged */
	STAMP_DROP = 4,    /* revoked: never a verdict by itself, its packets are judged again */
	STAMP_SHIFT = 8,
};

/* Our 16 bits of skb->mark, always overwritten by the hook a packet comes in by. The low
 * 12 are the sender's endpoint number. */
enum mark_bits {
	MARK_ENDPOINT = 0x0fff,
	MARK_SHARED = 0x1000, /* both sides are judged, and the sender can address the frame to another's door */
	MARK_OUTSIDE =
		0x2000, /* the node sends it again for the outside; with MARK_INGRESS alone, what the stack never had */
	MARK_EGRESS = 0x4000,  /* the sender's side is judged: to_network passes it */
	MARK_INGRESS = 0x8000, /* the receiver's side is judged too: to_pod passes it */
};

/* flow.state, changed by cmpxchg. */
enum flow_state {
	FLOW_INITIATOR = 1 << 0, /* the side (0 or 1) that began it */
	FLOW_PATH_BPF = 1 << 1,  /* delivered by redirect; else by the stack */
	FLOW_REPLIED = 1 << 2,   /* the responder has answered */
	FLOW_FIN_0 = 1 << 3,     /* FIN from side 0 */
	FLOW_FIN_1 = 1 << 4,
	FLOW_RST = 1 << 5,
	FLOW_CLOSED = 1 << 6, /* over and reported; deleted by the sweep seconds later */
	FLOW_PICKED_UP = 1 << 7,
	FLOW_TWO_WAY = 1 << 9, /* begun mid-stream: who began it is not known, and both ways have to be allowed */
	FLOW_CLAIMED = 1 << 8, /* being taken over or deleted: leave it alone */
	FLOW_OWNER = 1 << 10,  /* the side (0 or 1) whose endpoint is charged for the entry */
	FLOW_TCP_0 = 1 << 11,  /* side 0's socket has closed: errors[0] is how its connection went */
	FLOW_TCP_1 = 1 << 12,
	FLOW_PATH_NODES = 1 << 13, /* between a pod here and another node's, past this node's stack: see struct way */
	FLOW_END_SHIFT = 16,       /* enum flow_end, once closed */
};

/* GONE: a pod of it is not there any more. */
enum flow_end { END_NONE = 0, END_FIN = 1, END_RST = 2, END_TIMEOUT = 3, END_REVOKED = 4, END_GONE = 5 };

struct flow_side {
	__u64 packets;
	__u64 bytes; /* layer 3, headers of segmented packets included */
	__u64 last;  /* clock (ms) of the newest packet from this side */
	__u8 mac[6]; /* of this side's interface, when it is an endpoint; of FLOW_PATH_NODES' other side a way's key */
	__u16 mark;  /* what its packets carry through the stack: enum mark_bits | endpoint number */
};

/* How a TCP connection went for a socket, in 32 bits: segments sent again (65535 = at least), and
 * its smoothed round-trip time in us, a mantissa of 11 bits << an exponent of 5. */
enum flow_tcp {
	TCP_RETRANSMITS_SHIFT = 16,
	TCP_RETRANSMITS_MOST = 0xffff,
	TCP_EXPONENT_SHIFT = 11,
	TCP_MANTISSA = 0x7ff,
};

/* The Service that the initiator's socket had asked for, where sockets translate: its number, 0 = none or not known. */
enum { FLOW_SERVICE_SHIFT = 16 };

/* Entries of another build's table are taken over field by field, by name: a field whose
 * meaning changes gets another name. */
struct flow {
	__u64 stamp;       /* epoch << STAMP_SHIFT | stamp_bits */
	__u64 basis;       /* what the allowing judgement rested on: identities, rulesets, halves */
	__u32 state;       /* enum flow_state */
	__u32 slot;        /* its place in flow_slots */
	__u32 ifindex[2];  /* interface each side's packets come from, or enum iface_class */
	__u32 rule[2];     /* by direction: rule ids */
	__u32 identity[2]; /* by side */
	__u32 endpoint[2]; /* by side: endpoint numbers, 0 = none here */
	__u32 tcp_flags; /* union of flags seen: side 0 in bits 0..7, side 1 in 8..15; from FLOW_SERVICE_SHIFT the Service */
	__u32 told;      /* clock (ms), low half: when closed; before, of the newest periodic event */
	__u64 created;    /* ktime, ns */
	__u32 errors[2];  /* by side that is sent ICMP errors: second (clock) << 8 | how many in it; or enum flow_tcp */
	__u32 process[2]; /* by side: number of the process whose socket it is, 0 = not known */
	struct flow_side side[2];
};

/* Two slots and the epoch each is valid from: the newest with since <= epoch counts. */
#define SINCE_NEVER (~0ULL)
struct slots {
	__u64 since[2];
	__u64 word[2];
};

/* An address's or prefix's entry, reached by index from addresses or prefixes.
 * word = identity | (identity of the longest policy CIDR over it) << 32. */
struct peer_entry {
	struct slots slots;
	__u64 endpoint; /* endpoint number when the address is a local pod's, else 0 */
};

struct address_key {
	__u8 addr[16];
	__u32 family;
};

struct prefix_key {
	__u32 length; /* 8 + bits of addr (IPv4: 8 + 96 + bits) */
	__u8 family;  /* first byte of the key's data: families never cover each other */
	__u8 addr[16];
	__u8 pad[3];
};

/* Another node's address or range of pods: whose way leads there, and what comes out of the tunnel is
 * held against it. */
struct origin {
	__u64 node;    /* a number for the node, never 0 */
	__u64 address; /* 1: the node's own address, 0: its pods' */
};

/* How this node's pods reach another node's, of one family. Key: the low 32 bits of its number
 * (struct origin), of which bit 0 says that the family is 6. Where there is none: by the stack. */
enum way_key { WAY_V6 = 1 };
struct way {
	__u64 node;    /* its whole number: keys may be two nodes' */
	__u32 ifindex; /* of the uplink, or of the tunnel's device */
	__u16 mtu;
	__u8 family;   /* of addr: 4 or 6 */
	__u8 tunnel;   /* addr is the tunnel's far end, not the next hop */
	__u8 addr[16]; /* IPv4 as ::ffff:a.b.c.d */
};

enum endpoint_flags {
	ENDPOINT_NO_REDIRECT = 1, /* deliver by the stack: something sits between veth and pod */
	ENDPOINT_QUARANTINE = 2,  /* nothing in or out */
	ENDPOINT_SHARED = 4,      /* its link is another plugin's: other pods may be on it, by the stack alone */
};

/* An interface of a pod on this node, reached by number. word = egress ruleset |
 * ingress ruleset << 32; 0 = none yet: drop. */
struct endpoint {
	struct slots slots;
	__u32 ifindex; /* host side of the veth; its own key, checked after the last read */
	__u32 flags;
	__u8 mac[8];    /* of the pod's side; bytes 6,7 zero */
	__u8 addr4[16]; /* v4-mapped; zero = none */
	__u8 addr6[16];
	__u64 netns_cookie;
	__u64 pad[3];
};

/* Per endpoint number, written by the programs. */
struct endpoint_state {
	__u64 flows;      /* entries charged to it */
	__u64 window;     /* second (clock) of the denial budget */
	__u64 recorded;   /* denials recorded in that second */
	__u64 suppressed; /* denials not recorded, ever */
};

/* Fact: set S contains identity N. Value = ordinal of the first member that matches.
 * protocol and port are 0 but for sets that are a port's name. */
struct fact_key {
	__u32 set;
	__u32 identity;
	__u16 port;
	__u8 protocol;
	__u8 pad;
};

enum group_flags {
	GROUP_ANY = 1,      /* any address, ordinal 0, no fact */
	GROUP_ALL_PODS = 2, /* every pod's identity, ordinal 0, no fact */
	GROUP_LABELS = 4,   /* set has members by label: ask for the identity */
	GROUP_BLOCKS = 8,   /* set has members by address: ask for the CIDR identity */
};

struct port_group {
	__u32 set;
	__u32 rules;     /* index in rule_ids; rule id = rule_ids[rules + ordinal] */
	__u32 port_name; /* set that is a port's name (egress), 0 = ports are numbers */
	__u16 low;       /* ports low..high */
	__u16 high;
	__u8 protocol; /* 0 = any, and then ports are any */
	__u8 flags;
	__u8 pad[6];
};

/* What a ruleset is, by id; and its exact ports' groups. */
struct ruleset {
	__u32 default_rule;
	__u32 wide; /* index in port_groups of the groups that no single port finds */
	__u16 wide_count;
	__u16 span_count; /* 0: the groups are asked one by one */
	__u32 spans;      /* index in port_spans */
	__u8 allow;       /* the default: 1 = not isolated */
	__u8 exact;       /* has exact ports */
	__u8 names;       /* has wide groups with a port's name */
	__u8 pad;
};

/* Wide groups of a ruleset, a bit each in their order. */
struct wide_mask {
	__u64 word[WIDE_WORDS];
};

/* Ports from one on to the next span's, and the groups that have them. */
struct port_span {
	__u32 from; /* protocol << 16 | port */
	__u32 pad;
	struct wide_mask groups;
};

/* Of a ruleset with spans, the groups whose peer set has the identity; with a protocol and
 * port, those whose port's name means it there. */
struct mask_key {
	__u32 ruleset;
	__u32 identity;
	__u16 port;
	__u8 protocol;
	__u8 pad;
};

struct exact_key {
	__u32 ruleset;
	__u16 port;
	__u8 protocol;
	__u8 pad;
};

/* Addresses whose meaning only the stack's NAT knows (Services, NodePorts). */
struct frontend_key {
	__u8 addr[16]; /* zero address = any address of this node (NodePort, hostPort) */
	__u16 port;
	__u8 protocol;
	__u8 family;
};

/* A process's number is given to it when a socket first names it, and never again. With this bit
 * the process did not open the socket: it is the oldest that held it. */
enum process_number { PROCESS_HELD = 0x80000000 };

struct process_key {
	__u64 start; /* CLOCK_BOOTTIME, ns */
	__u32 pid;   /* in the initial PID namespace */
	__u32 exec;  /* how often it has become another program */
};

/* Room for a process's description; the first two are powers of two. */
enum process_limits {
	PROCESS_EXE_MAX = 256,
	PROCESS_CGROUP_MAX = 128,
	PROCESS_NAME_MAX = 128, /* of one name, its end included */
	PROCESS_DEPTH = 32,     /* names and mounts of a path */
	PROCESS_CGROUPS = 8,
};

/* What is known of a process. Paths are names, each with its end (0), the last one first. */
struct process {
	struct process_key key;
	__u16 exe_length;
	__u16 cgroup_length;
	__u8 exe_whole; /* its path is there up to the root */
	__u8 pad[7];
	__u32 busy; /* in the draft: being written */
	char name[16];
	char exe[PROCESS_EXE_MAX + PROCESS_NAME_MAX];
	char cgroup[PROCESS_CGROUP_MAX + PROCESS_NAME_MAX];
};

/* What a Service's address and port stand for: a list in backends, of a head and then
 * count backends by address and port. A list is immutable while a word names it. */
struct backend_list {
	__u64 service;  /* the Service's port, for affinity: a number that outlives its lists */
	__u32 count;    /* 0: connections are refused */
	__u32 affinity; /* s that a pod stays with its backend, 0 = it does not */
	__u64 number;   /* the Service's, in 16 bits: never another's; 0 = it has none */
};

struct backend {
	__u8 addr[16];
	__u16 port;
	__u16 pad[3];
};

/* What a socket asked for and what it got. */
struct translation {
	__u8 service[16];
	__u8 backend[16];
	__u16 service_port;
	__u16 backend_port;
	__u32 position; /* of the backend in its list at that time, 16 bits | the Service's number << 16 */
};

struct affinity_key {
	__u64 netns; /* cookie */
	__u64 service;
};

struct affinity {
	__u64 last; /* ktime of the newest connection, ns */
	struct backend backend;
	__u32 position;
	__u32 pad;
};

/* A first fragment that was let through. check is a mix of what names the datagram:
 * 0 while the place is written, and where nothing is. */
struct fragment {
	__u64 expires; /* clock, ms */
	__u64 check;
	__u16 sport;
	__u16 dport;
	__u8 icmp_type;
	__u8 pad[3];
};

_Static_assert(sizeof(struct tuple) == 40, "tuple");
_Static_assert(sizeof(struct flow_key) == 40, "flow_key");
_Static_assert(sizeof(struct flow) == 152, "flow");
_Static_assert(sizeof(struct way) == 32, "way");
_Static_assert(sizeof(struct endpoint) == 112, "endpoint");
_Static_assert(sizeof(struct peer_entry) == 40, "peer_entry");
_Static_assert(sizeof(struct port_group) == 24, "port_group");
_Static_assert(sizeof(struct port_span) == 40, "port_span");
_Static_assert(WIDE_WORDS * 64 == WIDE_MAX, "wide_mask");
_Static_assert(sizeof(struct backend_list) == sizeof(struct backend), "backend_list");
_Static_assert(sizeof(struct backend) == 24, "backend");
_Static_assert(sizeof(struct translation) == 40, "translation");
