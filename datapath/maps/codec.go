package maps

import (
	"net/netip"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// mappedBits is what v4-mapped addresses have before the IPv4 part.
const mappedBits = 96

func address16(a netip.Addr) (out [16]uint8) {
	if a.IsValid() {
		out = a.As16()
	}
	return out
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return 4
	}
	return 6
}

// address is the inverse of address16 and family.
func address(b [16]uint8, family uint8) netip.Addr {
	a := netip.AddrFrom16(b)
	if family == 4 {
		return a.Unmap()
	}
	return a
}

func encodeAddress(p netip.Prefix) bpf.WeirAddressKey {
	return bpf.WeirAddressKey{Addr: address16(p.Addr()), Family: uint32(family(p.Addr()))}
}

func decodeAddress(k bpf.WeirAddressKey) netip.Prefix {
	a := address(k.Addr, uint8(k.Family))
	return netip.PrefixFrom(a, a.BitLen())
}

func encodePrefix(p netip.Prefix) bpf.WeirPrefixKey {
	length := 8 + uint32(p.Bits())
	if p.Addr().Is4() {
		length += mappedBits
	}
	return bpf.WeirPrefixKey{Length: length, Family: family(p.Addr()), Addr: address16(p.Addr())}
}

func decodePrefix(k bpf.WeirPrefixKey) netip.Prefix {
	bits := int(k.Length) - 8
	if k.Family == 4 {
		bits -= mappedBits
	}
	return netip.PrefixFrom(address(k.Addr, k.Family), bits)
}

func encodeFact(f datapath.Fact) bpf.WeirFactKey {
	return bpf.WeirFactKey{Set: f.Set, Identity: uint32(f.Identity), Port: f.Port, Protocol: f.Protocol}
}

func decodeFact(k bpf.WeirFactKey) datapath.Fact {
	return datapath.Fact{Set: k.Set, Identity: identity.Number(k.Identity), Port: k.Port, Protocol: k.Protocol}
}

func encodeMask(k datapath.MaskKey) bpf.WeirMaskKey {
	return bpf.WeirMaskKey{Ruleset: k.Ruleset, Identity: uint32(k.Identity), Port: k.Port, Protocol: k.Protocol}
}

func decodeMask(k bpf.WeirMaskKey) datapath.MaskKey {
	return datapath.MaskKey{Ruleset: k.Ruleset, Identity: identity.Number(k.Identity), Port: k.Port, Protocol: k.Protocol}
}

// An unspecified address stands for any of the node's own, of one family: all zero.
func encodeFrontend(f datapath.Frontend) bpf.WeirFrontendKey {
	k := bpf.WeirFrontendKey{Port: f.Port, Protocol: f.Protocol, Family: family(f.Addr)}
	if !f.Addr.IsUnspecified() {
		k.Addr = address16(f.Addr)
	}
	return k
}

func decodeFrontend(k bpf.WeirFrontendKey) datapath.Frontend {
	a := address(k.Addr, k.Family)
	if k.Family == 4 && k.Addr == [16]uint8{} {
		a = netip.IPv4Unspecified()
	}
	return datapath.Frontend{Addr: a, Port: k.Port, Protocol: k.Protocol}
}

func encodeOrigin(o datapath.Origin) bpf.WeirOrigin {
	out := bpf.WeirOrigin{Node: o.Node}
	if o.Address {
		out.Address = 1
	}
	return out
}

// wayKey is the kernel's: two nodes may have the same.
func wayKey(k datapath.WayKey) uint32 {
	key := uint32(k.Node) &^ uint32(bpf.WeirWayKeyWAY_V6)
	if k.V6 {
		key |= uint32(bpf.WeirWayKeyWAY_V6)
	}
	return key
}

func encodeWay(k datapath.WayKey, w datapath.Way) bpf.WeirWay {
	out := bpf.WeirWay{Node: k.Node, Ifindex: w.Ifindex, Mtu: w.MTU, Family: family(w.Addr), Addr: address16(w.Addr)}
	if w.Tunnel {
		out.Tunnel = 1
	}
	return out
}

// peerWord is what a peer's slot holds.
func peerWord(p datapath.Peer) uint64 { return uint64(p.Identity) | uint64(p.Block)<<32 }

// endpointWord is what an endpoint's slot holds.
func endpointWord(e datapath.Endpoint) uint64 { return uint64(e.Egress) | uint64(e.Ingress)<<32 }

// encodeEndpoint is everything of an endpoint but its slots.
func encodeEndpoint(e datapath.Endpoint) bpf.WeirEndpoint {
	out := bpf.WeirEndpoint{
		Ifindex: e.Ifindex, NetnsCookie: e.NetnsCookie,
		Addr4: address16(e.Addr4), Addr6: address16(e.Addr6),
	}
	copy(out.Mac[:], e.MAC[:])
	if e.NoRedirect {
		out.Flags |= uint32(bpf.WeirEndpointFlagsENDPOINT_NO_REDIRECT)
	}
	if e.Shared {
		out.Flags |= uint32(bpf.WeirEndpointFlagsENDPOINT_SHARED)
	}
	return out
}

func encodeGroup(g datapath.PortGroup, rules uint32) bpf.WeirPortGroup {
	out := bpf.WeirPortGroup{Set: g.Set, Rules: rules, PortName: g.PortName, Low: g.Low, High: g.High, Protocol: g.Protocol}
	set := func(on bool, flag bpf.WeirGroupFlags) {
		if on {
			out.Flags |= uint8(flag)
		}
	}
	set(g.AnyPeer, bpf.WeirGroupFlagsGROUP_ANY)
	set(g.AllPods, bpf.WeirGroupFlagsGROUP_ALL_PODS)
	set(g.Labels, bpf.WeirGroupFlagsGROUP_LABELS)
	set(g.Blocks, bpf.WeirGroupFlagsGROUP_BLOCKS)
	return out
}

func decodeGroup(g bpf.WeirPortGroup, rules []uint32) datapath.PortGroup {
	has := func(f bpf.WeirGroupFlags) bool { return g.Flags&uint8(f) != 0 }
	return datapath.PortGroup{
		Protocol: g.Protocol, Low: g.Low, High: g.High, PortName: g.PortName, Set: g.Set, Rules: rules,
		AnyPeer: has(bpf.WeirGroupFlagsGROUP_ANY), AllPods: has(bpf.WeirGroupFlagsGROUP_ALL_PODS),
		Labels: has(bpf.WeirGroupFlagsGROUP_LABELS), Blocks: has(bpf.WeirGroupFlagsGROUP_BLOCKS),
	}
}

func decodeFlow(k bpf.WeirFlowKey, v bpf.WeirFlow) Flow {
	has := func(f bpf.WeirFlowState) bool { return v.State&uint32(f) != 0 }
	f := Flow{
		Protocol: k.Protocol,
		Epoch:    v.Stamp >> bpf.WeirStampBitsSTAMP_SHIFT,
		Begun:    int(v.State & uint32(bpf.WeirFlowStateFLOW_INITIATOR)),
		BPF:      has(bpf.WeirFlowStateFLOW_PATH_BPF | bpf.WeirFlowStateFLOW_PATH_NODES),
		Closed:   has(bpf.WeirFlowStateFLOW_CLOSED),
		Dropped:  v.Stamp&uint64(bpf.WeirStampBitsSTAMP_DROP) != 0,
		Judged:   uint8(v.Stamp) & uint8(bpf.WeirStampBitsSTAMP_EGRESS|bpf.WeirStampBitsSTAMP_INGRESS),
		Endpoint: v.Endpoint, Owner: v.Endpoint[v.State/uint32(bpf.WeirFlowStateFLOW_OWNER)&1], Rule: v.Rule,
	}
	for side := range f.Ends {
		f.Ends[side] = netip.AddrPortFrom(address(k.Addr[side], k.Family), k.Port[side])
		f.Identity[side] = identity.Number(v.Identity[side])
		f.Packets[side], f.Bytes[side] = v.Side[side].Packets, v.Side[side].Bytes
	}
	return f
}
