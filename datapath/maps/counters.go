package maps

import (
	"fmt"
	"iter"
	"net/netip"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// Counters are the kernel's own, summed over CPUs.
func (k *Kernel) Counters() (datapath.Counters, error) {
	var sums [bpf.WeirCounterCOUNT_MAX]uint64
	var perCPU []uint64
	for i := range sums {
		if err := k.maps[bpf.WeirMapCounters].Lookup(uint32(i), &perCPU); err != nil {
			return datapath.Counters{}, fmt.Errorf("read map %s: %w", bpf.WeirMapCounters, err)
		}
		for _, n := range perCPU {
			sums[i] += n
		}
	}
	c := datapath.Counters{
		FlowsNew:          sums[bpf.WeirCounterCOUNT_FLOW_NEW],
		FlowsEnded:        sums[bpf.WeirCounterCOUNT_FLOW_ENDED],
		FlowsRevoked:      sums[bpf.WeirCounterCOUNT_FLOW_REVOKED],
		FlowsRestamped:    sums[bpf.WeirCounterCOUNT_FLOW_RESTAMPED],
		FlowsRejudged:     sums[bpf.WeirCounterCOUNT_FLOW_REJUDGED],
		FlowsPickedUp:     sums[bpf.WeirCounterCOUNT_FLOW_PICKED_UP],
		EventsEmitted:     sums[bpf.WeirCounterCOUNT_EVENT_EMITTED],
		EventsLost:        sums[bpf.WeirCounterCOUNT_EVENT_LOST],
		DenialsEmitted:    sums[bpf.WeirCounterCOUNT_DENIAL_EMITTED],
		DenialsLost:       sums[bpf.WeirCounterCOUNT_DENIAL_LOST],
		DenialsSuppressed: sums[bpf.WeirCounterCOUNT_DENIAL_SUPPRESSED],
		DenialsUncounted:  sums[bpf.WeirCounterCOUNT_DENIAL_UNCOUNTED],
		DenialsCached:     sums[bpf.WeirCounterCOUNT_DENIAL_CACHED],
		Parked:            sums[bpf.WeirCounterCOUNT_PARKED],
		Untracked:         sums[bpf.WeirCounterCOUNT_UNTRACKED],
		FlowsUpdated:      sums[bpf.WeirCounterCOUNT_FLOW_UPDATED],
		Drops:             map[datapath.Reason]uint64{},
	}
	var err error
	if c.KernelDrops, err = k.kernelDrops(); err != nil {
		return datapath.Counters{}, err
	}
	for i, n := range sums[bpf.WeirCounterCOUNT_DROP:] {
		if n > 0 {
			c.Drops[datapath.Reason(i)] = n
		}
	}
	return c, nil
}

// kernelDrops are summed over endpoints and CPUs; nil where the kernel's drops are not observed.
func (k *Kernel) kernelDrops() (map[string]uint64, error) {
	m := k.maps[bpf.ObserveMapKernelDrops]
	if m == nil {
		return nil, nil
	}
	out := map[string]uint64{}
	var key bpf.ObserveKernelDropKey
	var perCPU []bpf.WeirDenialCount
	entries := m.Iterate()
	for entries.Next(&key, &perCPU) {
		for _, n := range perCPU {
			out[KernelReason(key.Reason)] += n.Packets
		}
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read map %s: %w", bpf.ObserveMapKernelDrops, err)
	}
	return out, nil
}

// FlowsOf returns how many flow entries are charged to an endpoint number.
func (k *Kernel) FlowsOf(endpoint uint32) (uint64, error) {
	var state bpf.WeirEndpointState
	if err := k.maps[bpf.WeirMapEndpointStates].Lookup(endpoint, &state); err != nil {
		return 0, fmt.Errorf("read map %s: endpoint %d: %w", bpf.WeirMapEndpointStates, endpoint, err)
	}
	return state.Flows, nil
}

// FlowCount is how many entries the flow table has.
func (k *Kernel) FlowCount() uint64 { return k.control.load(controlFlows) }

// FlowCapacity is how many it may have.
func (k *Kernel) FlowCapacity() uint64 { return uint64(k.maps[bpf.WeirMapFlows].MaxEntries()) }

// Flow is an entry of the flow table; arrays are by side, 0 the smaller
// (address, port), but for Rule, which is by direction.
type Flow struct {
	Ends     [2]netip.AddrPort
	Protocol uint8
	Epoch    uint64
	Begun    int // the side that began it
	BPF      bool
	Closed   bool
	Dropped  bool // revoked
	Judged   uint8
	Identity [2]identity.Number
	Endpoint [2]uint32
	Owner    uint32
	Rule     [2]uint32
	Packets  [2]uint64
	Bytes    [2]uint64
}

// Flows yields the flow table, which changes meanwhile: an entry may be missed or
// come twice. An error ends it.
func (k *Kernel) Flows() iter.Seq2[Flow, error] {
	return func(yield func(Flow, error) bool) {
		var key bpf.WeirFlowKey
		var value bpf.WeirFlow
		entries := k.maps[bpf.WeirMapFlows].Iterate()
		for entries.Next(&key, &value) {
			if !yield(decodeFlow(key, value), nil) {
				return
			}
		}
		if err := entries.Err(); err != nil {
			yield(Flow{}, fmt.Errorf("read map %s: %w", bpf.WeirMapFlows, err))
		}
	}
}
