package maps

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// retireEvery is how many rulesets and endpoints go out of force before anybody looks
// whether the counts of denials by them fill the kernel's table.
const retireEvery = 64

type denialTotals map[bpf.WeirDenialCountKey]bpf.WeirDenialCount

func (t denialTotals) add(key bpf.WeirDenialCountKey, perCPU []bpf.WeirDenialCount) {
	sum := t[key]
	for _, n := range perCPU {
		sum.Packets += n.Packets
		sum.Bytes += n.Bytes
	}
	t[key] = sum
}

// Denials are the exact counts of denied packets: of what is in force since the maps were
// made, of rules out of force as long as this Kernel is open.
func (k *Kernel) Denials() ([]datapath.DenialCount, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	totals := denialTotals{}
	for key, n := range k.retired {
		totals[key] = n
	}
	var key bpf.WeirDenialCountKey
	var perCPU []bpf.WeirDenialCount
	entries := k.maps[bpf.WeirMapDenialCounts].Iterate()
	for entries.Next(&key, &perCPU) {
		totals.add(key, perCPU)
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read map %s: %w", bpf.WeirMapDenialCounts, err)
	}
	var out []datapath.DenialCount
	for key, n := range totals {
		out = append(out, datapath.DenialCount{
			Endpoint: key.Endpoint, Rule: key.Rule,
			Direction: datapath.Direction(key.Direction), Reason: datapath.Reason(key.Reason),
			Packets: n.Packets, Bytes: n.Bytes,
		})
	}
	return out, nil
}

// inForce reports by which rules and for which endpoints packets may still be denied;
// k.mu is held.
func (k *Kernel) inForce() func(bpf.WeirDenialCountKey) bool {
	rules, numbers := map[uint32]bool{}, map[uint32]bool{0: true}
	for _, p := range k.rulesets.placed {
		rules[p.ruleset.Default] = true
		for _, g := range p.ruleset.Groups {
			for _, r := range g.Rules {
				rules[r] = true
			}
		}
	}
	for _, n := range k.endpoints.numbers.applied {
		numbers[n] = true
	}
	return func(key bpf.WeirDenialCountKey) bool {
		return (key.Rule < datapath.RuleFirst || rules[key.Rule]) && numbers[key.Endpoint]
	}
}

// retireDenials takes the counts of what is out of force out of the kernel's table once it
// is half full, as it would get with them: default denies have a new rule whenever the
// policies that isolate a pod change. The table is read beside commits, and written
// between them: what is in force then is never touched.
func (k *Kernel) retireDenials() error {
	m := k.maps[bpf.WeirMapDenialCounts]
	var keys []bpf.WeirDenialCountKey
	var key bpf.WeirDenialCountKey
	var perCPU []bpf.WeirDenialCount
	entries := m.Iterate()
	for entries.Next(&key, &perCPU) {
		keys = append(keys, key)
	}
	if err := entries.Err(); err != nil || len(keys) <= int(m.MaxEntries()/2) {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	if len(k.retired) > len(keys) {
		k.retired = denialTotals{}
	}
	live := k.inForce()
	for _, key := range keys {
		if live(key) {
			continue
		}
		err := m.LookupAndDelete(key, &perCPU)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("retire counts of map %s: %w", bpf.WeirMapDenialCounts, err)
		}
		k.retired.add(key, perCPU)
	}
	return nil
}

// retireLater is retireDenials in the background, when enough has gone out of force.
func (k *Kernel) retireLater() {
	k.mu.Lock()
	due := k.outOfForce >= retireEvery
	if due {
		k.outOfForce = 0
	}
	k.mu.Unlock()
	if !due {
		return
	}
	if err := k.retireDenials(); err != nil {
		slog.Warn("counts of denials by rules out of force stay in the kernel's table", "error", err)
	}
}
