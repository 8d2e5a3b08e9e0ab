/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From frame to packet. The contract: parse returns DROP_NONE only for what it understood
 * whole, and everything else has its reason. Offsets are only taken from headers that were
 * checked to fit both the buffer and the length the IP header states.
 */
#pragma once
#include "access.h"
#include "maps.h"
#include <bpf/bpf_endian.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define IPPROTO_ICMPV6_ 58
#define TCP_FIN         1
#define TCP_SYN         2
#define TCP_RST         4
#define TCP_PSH         8
#define TCP_ACK         16
#define TCP_URG         32

enum packet_kind {
	PACKET_FLOW,       /* has a tuple that a flow can have */
	PACKET_FRAGMENT,   /* a later fragment: addresses and fragment_id, no ports */
	PACKET_ICMP_ERROR, /* speaks of another packet, at l4 + 8 */
	PACKET_ARP,
	PACKET_NEIGHBOUR, /* NDP */
};

struct packet {
	struct tuple tuple;
	__u32 length; /* layer 3, headers of every segment included */
	__u32 segments;
	__u32 fragment_id;
	__u16 l4; /* offset of the transport header in the frame */
	__u8 kind;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 first_fragment;
	__u8 pad[5];
} __attribute__((aligned(8)));

static __always_inline void map_v4(__u8 *to, __be32 addr)
{
	*(__u64 *)to = 0;
	*(__u32 *)(to + 8) = bpf_htonl(0xffff);
	*(__u32 *)(to + 12) = addr;
}

static __always_inline int parse_tcp(struct packet *p, struct tcphdr *tcp, void *end, __u32 room)
{
	__u8 flags;

	if ((void *)(tcp + 1) > end || room < sizeof(*tcp))
		return DROP_TRUNCATED;
	flags = ((__u8 *)tcp)[13] & 0x3f;
	p->tcp_flags = flags;
	p->tuple.sport = bpf_ntohs(tcp->source);
	p->tuple.dport = bpf_ntohs(tcp->dest);
	if (tcp->doff < 5 || tcp->doff * 4 > room)
		return DROP_BAD_HEADER;
	/* No flags, or SYN with FIN or RST, or FIN without ACK: no TCP sends these. */
	if (!flags || (flags & TCP_SYN && flags & (TCP_FIN | TCP_RST)) ||
	    (flags & (TCP_FIN | TCP_ACK | TCP_RST)) == TCP_FIN || !(flags & (TCP_SYN | TCP_ACK | TCP_RST)))
		return DROP_TCP_FLAGS;
	if (p->segments > 1)
		p->length += (p->segments - 1) * (p->l4 - ETH_HLEN + tcp->doff * 4);
	return DROP_NONE;
}

static __always_inline int is_icmp_request(struct packet *p)
{
	return p->icmp_type == (p->tuple.family == 4 ? 8 : 128);
}

/* An echo's id is the asker's port: two hosts may ask each other with one id. */
static __always_inline void echo_ports(struct tuple *t, int request, __u16 id)
{
	t->sport = request ? id : 0;
	t->dport = request ? 0 : id;
}

static __always_inline int is_echo(__u8 type, __u8 family)
{
	return family == 6 ? type == 128 || type == 129 : type == 8 || type == 0;
}

static __always_inline int parse_icmp(struct packet *p, __u8 *icmp, void *end, __u32 room)
{
	int v6 = p->tuple.family == 6;

	if (icmp + 8 > (__u8 *)end || room < 8)
		return DROP_TRUNCATED;
	p->icmp_type = icmp[0];
	p->icmp_code = icmp[1];
	if (is_echo(icmp[0], p->tuple.family)) {
		echo_ports(&p->tuple, is_icmp_request(p), bpf_ntohs(*(__u16 *)(icmp + 4)));
		return DROP_NONE;
	}
	if (v6 ? (icmp[0] >= 1 && icmp[0] <= 4) : (icmp[0] == 3 || icmp[0] == 11 || icmp[0] == 12)) {
		p->kind = PACKET_ICMP_ERROR;
		return DROP_NONE;
	}
	if (v6 && (icmp[0] == 135 || icmp[0] == 136)) {
		p->kind = PACKET_NEIGHBOUR;
		return DROP_NONE;
	}
	if (v6 && ((icmp[0] >= 130 && icmp[0] <= 134) || icmp[0] == 137 || icmp[0] == 143))
		return DROP_MULTICAST;
	return DROP_ICMP_TYPE;
}

/* room: bytes of the IP payload from l4 on. */
static __always_inline int parse_transport(struct packet *p, void *l4, void *end, __u32 room)
{
	struct udphdr *udp = l4;

	switch (p->tuple.protocol) {
	case IPPROTO_TCP:
		return parse_tcp(p, l4, end, room);
	case IPPROTO_UDP:
		if ((void *)(udp + 1) > end || room < sizeof(*udp))
			return DROP_TRUNCATED;
		/* A first fragment has less than its datagram's length; nothing else has. */
		if (p->segments <= 1 &&
		    (bpf_ntohs(udp->len) < sizeof(*udp) || (bpf_ntohs(udp->len) > room && !p->first_fragment)))
			return DROP_BAD_HEADER;
		p->tuple.sport = bpf_ntohs(udp->source);
		p->tuple.dport = bpf_ntohs(udp->dest);
		if (p->segments > 1)
			p->length += (p->segments - 1) * (p->l4 - ETH_HLEN + sizeof(*udp));
		return DROP_NONE;
	case 132: /* SCTP: common header, 12 bytes, ports first */
		if (l4 + 12 > end || room < 12)
			return DROP_TRUNCATED;
		p->tuple.sport = bpf_ntohs(udp->source);
		p->tuple.dport = bpf_ntohs(udp->dest);
		return DROP_NONE;
	case IPPROTO_ICMP:
		return p->tuple.family == 4 ? parse_icmp(p, l4, end, room) : DROP_BAD_HEADER;
	case IPPROTO_ICMPV6_:
		return p->tuple.family == 6 ? parse_icmp(p, l4, end, room) : DROP_BAD_HEADER;
	}
	return DROP_NONE;
}

/* A first fragment has to hold its transport header: what is cut short there is an attack. */
static __always_inline int fragment_reason(struct packet *p, int reason)
{
	return p->first_fragment && reason == DROP_TRUNCATED ? DROP_FRAGMENT_SHORT : reason;
}

static __always_inline int parse_v4(struct packet *p, struct iphdr *ip, void *end, __u32 available)
{
	__u32 total, offset;

	if ((void *)(ip + 1) > end)
		return DROP_TRUNCATED;
	p->tuple.family = 4;
	p->tuple.protocol = ip->protocol;
	map_v4(p->tuple.saddr, ip->saddr);
	map_v4(p->tuple.daddr, ip->daddr);
	if ((*(__u8 *)ip & 0xf0) == 0x40 && ip->ihl > 5) /* IGMP: every host's chatter bears a router alert */
		return ip->protocol == IPPROTO_IGMP ? DROP_MULTICAST : DROP_IP_OPTIONS;
	if (*(__u8 *)ip != 0x45)
		return DROP_BAD_HEADER;
	total = bpf_ntohs(ip->tot_len);
	if (!total && p->segments > 1)
		total = available;
	if (total < sizeof(*ip) || total > available)
		return DROP_TRUNCATED;
	p->length = total;
	p->l4 = ETH_HLEN + sizeof(*ip);
	offset = bpf_ntohs(ip->frag_off);
	if (offset & 0x3fff) {
		p->fragment_id = ip->id;
		if (offset & 0x1fff) {
			p->kind = PACKET_FRAGMENT;
			/* Offset 1 would overwrite the flags of a TCP header that was judged. */
			return ip->protocol == IPPROTO_TCP && (offset & 0x1fff) == 1 ? DROP_FRAGMENT_SHORT : DROP_NONE;
		}
		p->first_fragment = 1;
	}
	return fragment_reason(p, parse_transport(p, ip + 1, end, total - sizeof(*ip)));
}

struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};

static __always_inline int is_extension(__u8 next)
{
	return next == 0 || next == 43 || next == 44 || next == 51 || next == 60 || next == 135 || next == 139 ||
	       next == 140 || next == 253 || next == 254;
}

static __always_inline int parse_v6(struct packet *p, struct ipv6hdr *ip, void *end, __u32 available)
{
	struct fragment_header *f = (void *)(ip + 1);
	__u32 total;

	if ((void *)(ip + 1) > end)
		return DROP_TRUNCATED;
	p->tuple.family = 6;
	p->tuple.protocol = ip->nexthdr;
	__builtin_memcpy(p->tuple.saddr, &ip->saddr, 16);
	__builtin_memcpy(p->tuple.daddr, &ip->daddr, 16);
	if (ip->version != 6)
		return DROP_BAD_HEADER;
	total = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	if (total == sizeof(*ip) && p->segments > 1)
		total = available;
	if (total > available)
		return DROP_TRUNCATED;
	p->length = total;
	p->l4 = ETH_HLEN + sizeof(*ip);
	if (ip->nexthdr != 44) {
		if (ip->nexthdr == 0 && p->tuple.daddr[0] == 0xff)
			return DROP_MULTICAST; /* MLD: every host's chatter bears a router alert */
		if (is_extension(ip->nexthdr))
			return DROP_EXTENSION_HEADER;
		return parse_transport(p, ip + 1, end, total - sizeof(*ip));
	}
	if ((void *)(f + 1) > end || total < sizeof(*ip) + sizeof(*f))
		return DROP_FRAGMENT_SHORT;
	p->tuple.protocol = f->next;
	p->fragment_id = f->id;
	p->l4 += sizeof(*f);
	if (is_extension(f->next))
		return DROP_EXTENSION_HEADER;
	if (f->offset & bpf_htons(0xfff8)) {
		p->kind = PACKET_FRAGMENT;
		return f->next == IPPROTO_TCP && bpf_ntohs(f->offset) >> 3 == 1 ? DROP_FRAGMENT_SHORT : DROP_NONE;
	}
	p->first_fragment = 1;
	return fragment_reason(p, parse_transport(p, f + 1, end, total - sizeof(*ip) - sizeof(*f)));
}

/* Enough for Ethernet, IPv6, a fragment header and a TCP header. */
#define HEADERS (ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(struct fragment_header) + sizeof(struct tcphdr))

static __always_inline int parse(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth;
	__u32 have = end - data, len = skb->len;

	if (have < HEADERS && have < len) {
		bpf_skb_pull_data(skb, len < HEADERS ? len : HEADERS);
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	eth = data;
	p->tuple.sport = p->tuple.dport = 0;
	p->tuple.protocol = p->tuple.family = p->tuple.pad = 0;
	p->length = len;
	p->segments = skb->gso_segs;
	p->fragment_id = p->l4 = 0;
	p->kind = PACKET_FLOW;
	p->tcp_flags = p->icmp_type = p->icmp_code = p->first_fragment = 0;
	if ((void *)(eth + 1) > end)
		return DROP_TRUNCATED;
	if (skb->vlan_present)
		return DROP_VLAN;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return parse_v4(p, (void *)(eth + 1), end, len - ETH_HLEN);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return parse_v6(p, (void *)(eth + 1), end, len - ETH_HLEN);
	if (eth->h_proto == bpf_htons(ETH_P_ARP)) {
		p->kind = PACKET_ARP;
		return DROP_NONE;
	}
	return eth->h_proto == bpf_htons(ETH_P_8021Q) || eth->h_proto == bpf_htons(ETH_P_8021AD) ? DROP_VLAN
												 : DROP_ETHERTYPE;
}
