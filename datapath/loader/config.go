package loader

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
)

// Config is what the programs are loaded with. Zero values mean the defaults of
// bpf/config.h and bpf/maps.h.
type Config struct {
	BPFFSDir        string // on a bpffs; made if its parent is on one
	NodeEgressAllow bool   // a pod may always reach its own node
	MarkShift       uint32 // lowest of our 16 bits in skb->mark
	TunnelPort      uint16 // UDP port of the node's tunnel, 0 = none
	Sizes           Sizes
	CgroupRoot      string // directory of cgroup2 whose processes' sockets get Services translated; none = nobody's
	FlowShare       uint32 // entries each endpoint is sure of
	Timeouts        Timeouts
	NoRecords       bool          // no events of flows and denials are written; what is counted is counted
	NoHostRouting   bool          // no new flow to or from another node's pod goes past this node's stack
	NoProcess       bool          // sockets do not get the name of their process
	Update          time.Duration // how often a long flow is told of; 0 = 1 min, below 0 = never
	Pickup          time.Duration // how long after the flow table was made TCP flows without an entry are picked up; 0 = 10 min, below 0 = never
}

const defaultPickup = 10 * time.Minute

// Timeouts are the flow table's idle times; resolution 100 ms.
type Timeouts struct {
	SYN, TCP, Closing, UDP, UDPStream, ICMP, Other time.Duration
	Linger                                         time.Duration // from closed to deleted
}

func (t Timeouts) set(knobs map[string]any) {
	for name, d := range map[string]time.Duration{
		bpf.WeirVarCfgTimeoutSyn: t.SYN, bpf.WeirVarCfgTimeoutTcp: t.TCP, bpf.WeirVarCfgTimeoutClosing: t.Closing,
		bpf.WeirVarCfgTimeoutUdp: t.UDP, bpf.WeirVarCfgTimeoutUdpStream: t.UDPStream,
		bpf.WeirVarCfgTimeoutIcmp: t.ICMP, bpf.WeirVarCfgTimeoutOther: t.Other, bpf.WeirVarCfgLinger: t.Linger,
	} {
		if d != 0 {
			knobs[name] = uint64(d.Milliseconds())
		}
	}
}

// set writes the knobs and sizes into the spec.
//
// The seed is new at each load. It stands in flow entries' basis, in cached denials and in
// fragments: after an adoption the first is not recognised (those flows are judged in
// full at the next epoch, with the same outcome), the others are misses.
func (c Config) set(spec *ebpf.CollectionSpec) error {
	knobs := map[string]any{bpf.WeirVarCfgSeed: seed()}
	c.Timeouts.set(knobs)
	if c.NodeEgressAllow {
		knobs[bpf.WeirVarCfgNodeEgressAllow] = uint32(1)
	}
	if c.MarkShift != 0 {
		knobs[bpf.WeirVarCfgMarkShift] = c.MarkShift
	}
	if c.TunnelPort != 0 {
		knobs[bpf.WeirVarCfgTunnelPort] = uint32(c.TunnelPort)
	}
	if c.NoHostRouting {
		knobs[bpf.WeirVarCfgHostRouting] = uint32(0)
	}
	if c.FlowShare != 0 {
		knobs[bpf.WeirVarCfgFlowShare] = c.FlowShare
	}
	if c.Update != 0 {
		knobs[bpf.WeirVarCfgUpdate] = uint64(max(c.Update, 0).Milliseconds())
	}
	c.Sizes.set(spec)
	if capacity := c.Sizes[bpf.WeirMapFlows]; capacity != 0 {
		knobs[bpf.WeirVarCfgFlowCapacity] = capacity
		for _, name := range []string{bpf.WeirMapFlows, bpf.WeirMapFlowSlots, bpf.WeirMapFlowFree} {
			spec.Maps[name].MaxEntries = capacity
		}
	}
	for name, value := range knobs {
		v, ok := spec.Variables[name]
		if !ok {
			return fmt.Errorf("set %s: the programs have no such knob", name)
		}
		if err := v.Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return c.firstEpoch(spec)
}

// firstEpoch makes a node that nothing was ever committed on begin at 1.
func (c Config) firstEpoch(spec *ebpf.CollectionSpec) error {
	var node bpf.WeirControl
	node.Epoch = 1
	pickup, err := c.pickupUntil()
	if err != nil {
		return err
	}
	node.PickupUntil = pickup
	node.FlowBorrowLimit = uint64(spec.Maps[bpf.WeirMapFlows].MaxEntries)
	if err := spec.Variables[bpf.WeirVarNode].Set(node); err != nil {
		return fmt.Errorf("set %s: %w", bpf.WeirVarNode, err)
	}
	return nil
}

// pickupUntil is by the programs' clock, which is the kernel's monotonic one.
func (c Config) pickupUntil() (uint64, error) {
	if c.Pickup < 0 {
		return 0, nil
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	return uint64(time.Duration(now.Nano()).Milliseconds() + cmp.Or(c.Pickup, defaultPickup).Milliseconds()), nil
}

func seed() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}
