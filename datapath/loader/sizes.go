package loader

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
)

// Sizes are how many entries maps hold, by name; rings in bytes. What is not named has
// its size of bpf/maps.h. The maps of endpoints and of their
// fragments and refusals have none to choose: endpoint numbers are 10 bits.
type Sizes map[string]uint32

// sizable are the maps that have a size to choose, and whether it is a ring's.
var sizable = map[string]bool{
	bpf.WeirMapFlows: false, bpf.WeirMapAddresses: false, bpf.WeirMapPrefixes: false, bpf.WeirMapFacts: false,
	bpf.WeirMapRulesets: false, bpf.WeirMapExactGroups: false, bpf.WeirMapPortGroups: false, bpf.WeirMapRuleIds: false,
	bpf.WeirMapPortSpans: false, bpf.WeirMapPeerMasks: false, bpf.WeirMapFrontends: false, bpf.WeirMapOrigins: false, bpf.WeirMapWays: false, bpf.WeirMapDenials: false, bpf.WeirMapDenialCounts: false,
	bpf.SockMapServices: false, bpf.SockMapBackends: false, bpf.SockMapAffinities: false, bpf.SockMapUdpSockets: false, bpf.SockMapProcesses: false, bpf.ObserveMapKernelDrops: false,
	bpf.WeirMapShieldDeny: false, bpf.WeirMapFlowEvents: true, bpf.WeirMapDenialEvents: true, bpf.WeirMapParkedFrames: true,
}

const (
	leastEntries = 16
	mostEntries  = 1 << 24
	mostBytes    = 1 << 30
)

// ParseSizes reads NAME=ENTRIES, e.g. facts=262144.
func ParseSizes(texts []string) (Sizes, error) {
	out := Sizes{}
	for _, text := range texts {
		name, number, _ := strings.Cut(text, "=")
		ring, ok := sizable[name]
		if !ok {
			return nil, fmt.Errorf("%q: write NAME=ENTRIES, NAME one of %s", text, strings.Join(slices.Sorted(maps.Keys(sizable)), ", "))
		}
		n, err := strconv.ParseUint(number, 10, 32)
		least, most := uint64(leastEntries), uint64(mostEntries)
		if ring {
			least, most = uint64(os.Getpagesize()), mostBytes
		}
		if err != nil || n < least || n > most {
			return nil, fmt.Errorf("%q: must be a number from %d to %d", text, least, most)
		}
		if ring && n&(n-1) != 0 {
			return nil, fmt.Errorf("%q: bytes of a ring must be a power of two", text)
		}
		out[name] = uint32(n)
	}
	return out, nil
}

// set sizes those of the maps that the spec has.
func (s Sizes) set(spec *ebpf.CollectionSpec) {
	for name, n := range s {
		if m := spec.Maps[name]; m != nil {
			m.MaxEntries = n
		}
	}
	// An address or prefix has a peer, an address and port of a Service a list; index 0 is none.
	if m := spec.Maps[bpf.WeirMapPeers]; m != nil {
		m.MaxEntries = 1 + spec.Maps[bpf.WeirMapAddresses].MaxEntries + spec.Maps[bpf.WeirMapPrefixes].MaxEntries
	}
	if m := spec.Maps[bpf.SockMapProcessNumbers]; m != nil {
		m.MaxEntries = spec.Maps[bpf.SockMapProcesses].MaxEntries
	}
	if m := spec.Maps[bpf.SockMapServiceLists]; m != nil {
		m.MaxEntries = 1 + spec.Maps[bpf.SockMapServices].MaxEntries
	}
}
