package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
)

// Recheck compares the maps with what was committed, names those that somebody else
// changed, and takes what they hold now as applied, so that the next Commit repairs them.
// Pins that are gone are made again.
func (k *Kernel) Recheck() (damaged []string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed || k.last == nil {
		return nil, nil
	}
	if damaged, err = k.pinAgain(); err != nil {
		return damaged, err
	}
	if err := k.settle(); err != nil {
		return damaged, err
	}
	changed, err := k.changedByOthers()
	if err != nil || len(changed) == 0 {
		return damaged, err
	}
	if epoch := k.Epoch(); epoch != k.committed {
		k.control.store(controlEpoch, max(epoch, k.committed))
	}
	k.anew, k.committed = true, k.Epoch()
	k.peers.free, k.peers.limbo, k.rulesets.limbo = nil, nil, nil
	k.rulesets.groupSpace.used, k.rulesets.spanSpace.used, k.rulesets.ruleSpace.used = nil, nil, nil
	return append(damaged, changed...), k.adopt()
}

func (k *Kernel) pinAgain() (damaged []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(k.maps)) {
		path := PathIn(k.dir, k.set, name)
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		fresh, err := k.maps[name].Clone() // the map itself believes that it is pinned
		if err == nil {
			err = errors.Join(fresh.Pin(path), fresh.Close())
		}
		if err != nil {
			return damaged, fmt.Errorf("pin map %s again: %w", name, err)
		}
		damaged = append(damaged, "pin of "+name)
	}
	return damaged, nil
}

func (k *Kernel) changedByOthers() (changed []string, err error) {
	note := func(name string, same bool, failed error) {
		err = errors.Join(err, failed)
		if failed == nil && !same {
			changed = append(changed, name)
		}
	}
	note(MapControl, k.Epoch() == k.committed, nil)
	for _, t := range []interface {
		same() (string, bool, error)
	}{k.facts, k.masks, k.frontends, k.origins, k.rulesets.keys, k.rulesets.exact, k.endpoints.numbers, k.peers.addresses, k.peers.prefixes, k.services.keys, k.services.netns} {
		note(t.same())
	}
	if err != nil || len(changed) > 0 {
		return changed, err
	}
	same, err := k.rulesets.same()
	note(bpf.WeirMapPortGroups, same, err)
	c, err := k.plan(k.last, nil)
	if err != nil {
		return changed, err
	}
	note(bpf.WeirMapEndpoints, len(c.endpoints.words)+len(c.endpoints.fields)+len(c.endpoints.retire) == 0, nil)
	note(bpf.WeirMapPeers, len(c.peers.changed) == 0, nil)
	note(bpf.SockMapServiceLists, len(c.services.words) == 0, nil)
	note(bpf.SockMapBackends, k.services.same(), nil)
	return changed, nil
}

// entriesAtOnce is how many one system call reads.
const entriesAtOnce = 4096

// same reports whether the kernel's map has what was written.
func (t *tracker[K, B, V]) same() (string, bool, error) {
	keys, values := make([]B, entriesAtOnce), make([]V, entriesAtOnce)
	var cursor ebpf.MapBatchCursor
	for seen := 0; ; {
		n, err := t.m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return t.name, false, fmt.Errorf("read map %s: %w", t.name, err)
		}
		for i := range n {
			if v, ok := t.applied[t.decode(keys[i])]; !ok || v != values[i] {
				return t.name, false, nil
			}
		}
		if seen += n; err != nil {
			return t.name, seen == len(t.applied), nil
		}
	}
}

// same reads every ruleset's groups and rule ids; the keys are known to be as written.
func (s *rulesets) same() (bool, error) {
	fresh := &rulesets{
		exact: s.exact, groups: s.groups, spans: s.spans, rules: s.rules,
		groupSpace: s.groupSpace.empty(), spanSpace: s.spanSpace.empty(), ruleSpace: s.ruleSpace.empty(),
	}
	for id, p := range s.placed {
		now, ok, err := fresh.read(s.keys.applied[id], p.exact)
		if err != nil || !ok || !equal(now.ruleset, p.ruleset) {
			return false, err
		}
	}
	return true, nil
}
