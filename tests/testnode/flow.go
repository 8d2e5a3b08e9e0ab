package testnode

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/maps"
)

// FlowKey is the key of a flow, and the side of it that source is.
func FlowKey(source, destination netip.AddrPort, protocol uint8) (key bpf.WeirFlowKey, side int) {
	key.Protocol, key.Family = protocol, 6
	if source.Addr().Is4() {
		key.Family = 4
	}
	a, b := source.Addr().As16(), destination.Addr().As16()
	// The kernel compares addresses as it loads them: two little-endian words.
	for _, word := range []int{7, 15} {
		for i := word; side == 0 && i > word-8; i-- {
			side = int(a[i]) - int(b[i])
		}
	}
	if side == 0 {
		side = int(source.Port()) - int(destination.Port())
	}
	if side > 0 {
		key.Addr, key.Port = [2][16]byte{b, a}, [2]uint16{destination.Port(), source.Port()}
		return key, 1
	}
	key.Addr, key.Port = [2][16]byte{a, b}, [2]uint16{source.Port(), destination.Port()}
	return key, 0
}

// Tables are the node's maps that tests read one entry of. For one goroutine.
type Tables struct {
	flows, denials, control *ebpf.Map
	perCPU                  []bpf.WeirDenialCount
}

// Tables opens them.
func (n *Node) Tables() (*Tables, error) {
	t := &Tables{}
	for name, m := range map[string]**ebpf.Map{
		bpf.WeirMapFlows: &t.flows, bpf.WeirMapDenialCounts: &t.denials, maps.MapControl: &t.control,
	} {
		var err error
		if *m, err = ebpf.LoadPinnedMap(maps.Path(n.Config.BPFFSDir, name), nil); err != nil {
			return nil, errors.Join(fmt.Errorf("open map %s: %w", name, err), t.Close())
		}
	}
	return t, nil
}

// Close lets go of them.
func (t *Tables) Close() error {
	return errors.Join(t.flows.Close(), t.denials.Close(), t.control.Close())
}

// Flow reads the entry of key; ok is false where there is none.
func (t *Tables) Flow(key *bpf.WeirFlowKey, flow *bpf.WeirFlow) (ok bool, err error) {
	err = t.flows.Lookup(key, flow)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Denied reads how many packets were denied as key says.
func (t *Tables) Denied(key *bpf.WeirDenialCountKey) (packets uint64, err error) {
	byCPU, err := t.DeniedByCPU(key)
	for _, n := range byCPU {
		packets += n.Packets
	}
	return packets, err
}

// DeniedByCPU is Denied by the CPU that judged them; good until the next call.
func (t *Tables) DeniedByCPU(key *bpf.WeirDenialCountKey) ([]bpf.WeirDenialCount, error) {
	err := t.denials.Lookup(key, &t.perCPU)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		clear(t.perCPU)
		return t.perCPU, nil
	}
	return t.perCPU, err
}

// Refusals are the denials that are remembered by their packets' own fields.
func (n *Node) Refusals() ([]bpf.WeirRefusal, error) {
	m, err := ebpf.LoadPinnedMap(maps.Path(n.Config.BPFFSDir, bpf.WeirMapRefusals), nil)
	if err != nil {
		return nil, fmt.Errorf("open map %s: %w", bpf.WeirMapRefusals, err)
	}
	defer m.Close()
	var all []bpf.WeirRefusal
	var place uint32
	var r bpf.WeirRefusal
	entries := m.Iterate()
	for entries.Next(&place, &r) {
		if r.Epoch != 0 {
			all = append(all, r)
		}
	}
	return all, entries.Err()
}

// ForgetDenials empties what is remembered of denials by identities.
func (n *Node) ForgetDenials() error {
	m, err := ebpf.LoadPinnedMap(maps.Path(n.Config.BPFFSDir, bpf.WeirMapDenials), nil)
	if err != nil {
		return fmt.Errorf("open map %s: %w", bpf.WeirMapDenials, err)
	}
	defer m.Close()
	var key bpf.WeirDenialKey
	for err = m.NextKey(nil, &key); err == nil; err = m.NextKey(nil, &key) {
		if err := m.Delete(key); err != nil {
			return fmt.Errorf("empty map %s: %w", bpf.WeirMapDenials, err)
		}
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}
