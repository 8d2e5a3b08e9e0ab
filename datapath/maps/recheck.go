package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"net/netip"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// Recheck compares the maps with what was committed, names those that somebody else
// changed, and takes what they hold now as applied, so that the next Commit repairs them.
// Pins that are gone are made again. Of many addresses it looks at a part each time, and at all
// within ten times.
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

// changedByOthers looks at what is small each time; at the addresses a slice a time, and when that
// has come around at what else is large.
func (k *Kernel) changedByOthers() (changed []string, err error) {
	note := func(name string, same bool, failed error) {
		err = errors.Join(err, failed)
		if failed == nil && !same && !slices.Contains(changed, name) {
			changed = append(changed, name)
		}
	}
	epoch := k.Epoch()
	note(MapControl, epoch == k.committed, nil)
	keys, words, around, failed := k.peers.look(k.last.Peers, epoch)
	note(bpf.WeirMapAddresses, keys, failed)
	for _, t := range []interface {
		len() int
		same() (string, bool, error)
	}{k.facts, k.masks, k.frontends, k.origins, k.ways, k.denied, k.rulesets.keys, k.rulesets.exact, k.endpoints.numbers, k.peers.prefixes, k.services.keys, k.services.netns} {
		if around || t.len() <= entriesAtOnce {
			note(t.same())
		}
	}
	if err != nil || len(changed) > 0 {
		return changed, err
	}
	note(bpf.WeirMapPeers, words, nil)
	if around || len(k.rulesets.placed) <= entriesAtOnce {
		same, err := k.rulesets.same()
		note(bpf.WeirMapPortGroups, same, err)
	}
	endpoints, err := k.endpoints.diff(k.last.Endpoints, epoch)
	if err != nil {
		return changed, err
	}
	note(bpf.WeirMapEndpoints, len(endpoints.words)+len(endpoints.fields)+len(endpoints.retire) == 0, nil)
	if around || k.peers.prefixes.len() <= entriesAtOnce {
		note(bpf.WeirMapPeers, k.peers.samePrefixes(k.last.Peers, epoch), nil)
	}
	if around || k.services.keys.len() <= entriesAtOnce {
		services := k.services.diff(k.last.Services, k.last.Endpoints)
		note(bpf.SockMapServiceLists, len(services.words) == 0, nil)
		note(bpf.SockMapBackends, k.services.same(), nil)
	}
	return changed, err
}

const (
	entriesAtOnce   = 4096  // that one system call reads
	addressesAtOnce = 16384 // that one Recheck looks at, or a tenth of them
)

// entries reads a map on from a cursor; what it yields is valid until it goes on. ended: there is no more.
func (t *tracker[K, B, V]) entries(cursor *ebpf.MapBatchCursor, most int, yield func(B, V) bool) (ended bool, err error) {
	size := max(64, min(entriesAtOnce, most, len(t.applied)+1))
	keys, values := make([]B, size), make([]V, size)
	for seen := 0; seen < most; {
		n, err := t.m.BatchLookup(cursor, keys, values, nil)
		if errors.Is(err, unix.ENOSPC) { // a bucket holds more
			keys, values = make([]B, 2*len(keys)), make([]V, 2*len(keys))
			continue
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return false, fmt.Errorf("read map %s: %w", t.name, err)
		}
		for i := range n {
			if !yield(keys[i], values[i]) {
				return false, nil
			}
		}
		if seen += n; err != nil {
			return true, nil
		}
	}
	return false, nil
}

func (t *tracker[K, B, V]) len() int { return len(t.applied) }

// same reports whether the kernel's map has what was written.
func (t *tracker[K, B, V]) same() (string, bool, error) {
	seen := 0
	var cursor ebpf.MapBatchCursor
	ended, err := t.entries(&cursor, math.MaxInt, func(key B, value V) bool {
		v, ok := t.applied[t.decode(key)]
		seen++
		return ok && v == value
	})
	return t.name, ended && seen == len(t.applied), err
}

// look goes on with the addresses: are their keys as written, and does what they lead to say what
// desired says. around: it has come to the end, where keys that are gone are missed.
func (p *peers) look(desired map[netip.Prefix]datapath.Peer, epoch uint64) (keys, words, around bool, err error) {
	if p.looked == nil {
		p.looked, p.cursor = make([]uint64, (p.memory.count+63)/64), ebpf.MapBatchCursor{}
	}
	keys, words = true, true
	around, err = p.addresses.entries(&p.cursor, max(p.atOnce, p.addresses.len()/10+1), func(key bpf.WeirAddressKey, i uint32) bool {
		x := decodeAddress(key)
		if at, ok := p.addresses.applied[x]; !ok || at != i {
			keys = false
			return false
		}
		p.meet(i)
		words = words && p.says(x, i, desired, epoch)
		return true
	})
	if !around {
		return keys, words, false, err
	}
	for _, i := range p.addresses.applied {
		keys = keys && p.looked[i/64]>>(i%64)&1 == 1
	}
	p.looked = nil
	return keys, words, true, err
}

func (p *peers) meet(i uint32) { p.looked[i/64] |= 1 << (i % 64) }

// says reports whether the element of x says what desired says of it, or of what covers it.
func (p *peers) says(x netip.Prefix, i uint32, desired map[netip.Prefix]datapath.Peer, epoch uint64) bool {
	peer, ok := desired[x]
	if !ok {
		over, _ := p.desired.of(x)
		peer = desired[over]
	}
	e := p.memory.at(i)
	word, _, ok := slots{e}.read(epoch)
	return ok && word == peerWord(peer) && e.load(peerEndpoint) == uint64(peer.Endpoint)
}

func (p *peers) samePrefixes(desired map[netip.Prefix]datapath.Peer, epoch uint64) bool {
	for x, i := range p.prefixes.applied {
		if !p.says(x, i, desired, epoch) {
			return false
		}
	}
	return true
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
