package maps

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

var errClosed = errors.New("maps are closed")

// Commit makes the node enforce s from one epoch on and returns that epoch (the present
// one when nothing changed that needs another). On an error nothing changed; a
// *datapath.FullError names the map that s does not fit.
func (k *Kernel) Commit(s *datapath.State) (uint64, error) {
	return k.commitDelta(s, nil)
}

// CommitDelta does so where s differs from the State before only where d says. It compares
// everything all the same after an error, and where others changed the maps.
func (k *Kernel) CommitDelta(s *datapath.State, d *datapath.Delta) (uint64, error) {
	return k.commitDelta(s, d)
}

func (k *Kernel) commitDelta(s *datapath.State, d *datapath.Delta) (uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return 0, errClosed
	}
	if k.last == nil || k.unknown {
		d = nil
	}
	k.unknown = true
	k.patient = false
	epoch, err := k.commit(s, d)
	if full := new(datapath.FullError); errors.As(err, &full) && k.garbage() {
		if err = k.settle(); err == nil {
			epoch, err = k.commit(s, nil)
		}
	}
	k.collectLater(k.patient && err == nil)
	if err != nil {
		return k.Epoch(), fmt.Errorf("commit: %w", err)
	}
	return epoch, nil
}

// commit in the order of DESIGN: what is new and unreachable; what is staged; the epoch;
// what is stale.
func (k *Kernel) commit(s *datapath.State, d *datapath.Delta) (uint64, error) {
	k.tick++
	c, err := k.plan(s, d)
	if err != nil {
		return 0, err
	}
	if c.needsGrace() {
		if err := k.settle(); err != nil {
			return 0, err
		}
		if c, err = k.plan(s, d); err != nil {
			return 0, err
		}
	}
	if err := c.write(); err != nil {
		return 0, errors.Join(err, c.rollback())
	}
	if c.bump {
		k.control.store(controlEpoch, c.epoch+1)
	}
	k.services.reveal(&c.services, k.tick)
	c.markStale()
	k.patient = c.patient()
	if !c.sameEndpoints {
		k.seen = maps.Clone(s.Endpoints)
	}
	k.anew, k.unknown, k.last, k.committed = false, false, s, k.Epoch()
	return k.committed, nil
}

// commit is one difference on its way into the kernel.
type commit struct {
	k     *Kernel
	s     *datapath.State
	epoch uint64 // in force
	bump  bool

	facts     delta[datapath.Fact, uint32]
	masks     delta[datapath.MaskKey, datapath.Mask]
	frontends delta[datapath.Frontend, uint32]
	rulesets  map[uint32]datapath.Ruleset // to put, canonical
	unwanted  []uint32                    // rulesets
	gone      []datapath.Frontend         // removed by write
	seen      bool                        // write changed frontends
	endpoints endpointDelta

	sameEndpoints bool // as in the commit before: they are not compared

	peers    peerDelta
	origins  delta[netip.Prefix, bpf.WeirOrigin]
	ways     delta[uint32, bpf.WeirWay]
	services serviceDelta // in force apart from the epoch: policy judges what they lead to

	staged []stagedSlot
	ends   []stagedEndpoint
}

type stagedSlot struct {
	slots slots
	i     int
}

// stagedEndpoint is what a peer's element said before.
type stagedEndpoint struct {
	e   element
	was uint64
}

// plan compares s with the kernel, where d says or, without it or after damage, everywhere.
func (k *Kernel) plan(s *datapath.State, d *datapath.Delta) (*commit, error) {
	c := &commit{k: k, s: s, epoch: k.Epoch()}
	var err error
	c.sameEndpoints = d != nil && !k.anew && len(k.endpoints.retired)+len(k.endpoints.numbers.stale) == 0 && maps.Equal(k.seen, s.Endpoints)
	if !c.sameEndpoints {
		if c.endpoints, err = k.endpoints.diff(s.Endpoints, c.epoch); err != nil {
			return nil, err
		}
	}
	if d == nil || k.anew {
		err = c.compareAll()
	} else {
		err = c.compare(d)
	}
	if err != nil {
		return nil, err
	}
	c.bump = len(c.endpoints.words) > 0 || len(c.endpoints.rewrite) > 0 || c.peers.words ||
		!c.frontends.empty() || k.anew && c.repairs()
	return c, c.fits()
}

func (c *commit) compare(d *datapath.Delta) error {
	k, s := c.k, c.s
	c.facts = k.facts.diffKeys(d.Facts, in(s.Facts))
	c.masks = k.masks.diffKeys(slices.Collect(maps.Keys(d.Masks)), func(key datapath.MaskKey) (datapath.Mask, bool) {
		return d.Masks[key], d.Masks[key] != datapath.Mask{}
	})
	c.frontends = k.frontends.diffKeys(d.Frontends, func(f datapath.Frontend) (uint32, bool) { return 1, has(s.Frontends)(f) })
	if d.Origins {
		c.compareOrigins()
	}
	if d.Ways {
		c.compareWays()
	}
	c.rulesets = map[uint32]datapath.Ruleset{}
	for _, id := range d.Rulesets {
		if r, wanted := s.Rulesets[id]; !wanted {
			c.leaveRuleset(id)
		} else if err := c.wantRuleset(id, r); err != nil {
			return err
		}
	}
	c.peers = k.peers.diffKeys(d.Peers, s.Peers, c.epoch)
	c.services = k.services.diffKeys(d.Services, s.Services)
	if !c.sameEndpoints {
		c.services.netns = k.services.diffNetns(s.Endpoints)
	}
	return nil
}

func in[K comparable, V any](m map[K]V) func(K) (V, bool) {
	return func(k K) (V, bool) { v, ok := m[k]; return v, ok }
}

func (c *commit) compareAll() error {
	k, s := c.k, c.s
	c.facts = k.facts.diff(maps.All(s.Facts), has(s.Facts))
	masks := s.Masks()
	c.masks = k.masks.diff(maps.All(masks), has(masks))
	c.frontends = k.frontends.diff(func(yield func(datapath.Frontend, uint32) bool) {
		for f := range s.Frontends {
			if !yield(f, 1) {
				return
			}
		}
	}, has(s.Frontends))
	c.compareOrigins()
	c.compareWays()
	if err := c.compareRulesets(); err != nil {
		return err
	}
	c.peers = k.peers.diff(s.Peers, c.epoch)
	c.services = k.services.diff(s.Services, s.Endpoints)
	return nil
}

func (c *commit) compareOrigins() {
	c.origins = c.k.origins.diff(func(yield func(netip.Prefix, bpf.WeirOrigin) bool) {
		for x, o := range c.s.Origins {
			if !yield(x, encodeOrigin(o)) {
				return
			}
		}
	}, has(c.s.Origins))
}

func (c *commit) compareWays() {
	desired := c.k.waysOf(c.s)
	c.ways = c.k.ways.diff(maps.All(desired), has(desired))
}

// waysOf are the ways by the kernel's key. Of two nodes with the same key the one whose way is there
// keeps it, and the other's pods, like those of nodes that do not fit, are reached by the stack.
func (k *Kernel) waysOf(s *datapath.State) map[uint32]bpf.WeirWay {
	there := func(key datapath.WayKey) bool {
		w, ok := k.ways.applied[wayKey(key)]
		return ok && w.Node == key.Node
	}
	keys := slices.SortedFunc(maps.Keys(s.Ways), func(a, b datapath.WayKey) int {
		switch {
		case there(a) == there(b):
			return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(wayKey(a), wayKey(b)))
		case there(a):
			return -1
		}
		return 1
	})
	out, room := map[uint32]bpf.WeirWay{}, k.ways.size()-len(k.ways.applied)
	for _, key := range keys {
		at := wayKey(key)
		_, taken := out[at]
		if _, replaces := k.ways.applied[at]; !taken && !replaces {
			room--
		}
		if !taken && room >= 0 {
			out[at] = encodeWay(key, s.Ways[key])
		}
	}
	return out
}

func has[K comparable, V any](m map[K]V) func(K) bool {
	return func(k K) bool { _, ok := m[k]; return ok }
}

// repairs reports whether anything at all differs: after Open, or where a ruleset had to
// be written again, that is damage, whose verdicts must not live on in flow entries.
func (c *commit) repairs() bool {
	return !c.facts.empty() || !c.masks.empty() || len(c.rulesets) > 0 || len(c.unwanted) > 0 || len(c.endpoints.fields) > 0 ||
		!c.endpoints.numbers.empty() || len(c.peers.addresses) > 0
}

func (c *commit) compareRulesets() error {
	c.rulesets = map[uint32]datapath.Ruleset{}
	for id, r := range c.s.Rulesets {
		if err := c.wantRuleset(id, r); err != nil {
			return err
		}
	}
	for id := range c.k.rulesets.placed {
		if !has(c.s.Rulesets)(id) {
			c.leaveRuleset(id)
		}
	}
	return nil
}

func (c *commit) wantRuleset(id uint32, r datapath.Ruleset) error {
	k := c.k
	r = canonical(r)
	p, ok := k.rulesets.placed[id]
	if ok && equal(p.ruleset, r) {
		delete(k.rulesets.keys.stale, id)
		return nil
	}
	if err := check(id, r); err != nil {
		return err
	}
	c.rulesets[id] = r
	if ok {
		if err := k.rulesets.remove(id, k.tick); err != nil {
			return err
		}
		k.anew = true
	}
	return nil
}

func (c *commit) leaveRuleset(id uint32) {
	_, there := c.k.rulesets.placed[id]
	if _, stale := c.k.rulesets.keys.stale[id]; there && !stale {
		c.unwanted = append(c.unwanted, id)
	}
}

func (c *commit) fits() error {
	k, exact := c.k, 0
	for _, r := range c.rulesets {
		for _, g := range r.Groups {
			if g.Exact() {
				exact++
			}
		}
	}
	for _, err := range []error{
		k.facts.fits(len(c.facts.keys)), k.masks.fits(len(c.masks.keys)), k.frontends.fits(len(c.frontends.keys)), k.origins.fits(len(c.origins.keys)),
		k.rulesets.keys.fits(len(c.rulesets)), k.rulesets.exact.fits(exact), k.peers.fits(c.peers), k.services.fits(c.services),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// patient reports whether what c leaves for the collection may wait for more: pods elsewhere
// came or went, and nothing got another meaning, which it could get again before a grace.
func (c *commit) patient() bool {
	return !c.peers.kept && len(c.endpoints.words)+len(c.endpoints.fields)+len(c.endpoints.retire) == 0 && c.endpoints.numbers.empty() &&
		len(c.rulesets)+len(c.unwanted) == 0 && c.frontends.empty() && c.origins.empty() && c.ways.empty() && c.services.empty()
}

// needsGrace reports whether something would be recycled that a program may still read.
func (c *commit) needsGrace() bool {
	k := c.k
	young := func(removed uint64, puts int) bool { return puts > 0 && removed > k.graced }
	return c.endpoints.busy || max(c.endpoints.oldest, c.peers.oldest) > k.gracedEpoch ||
		young(k.facts.removed, len(c.facts.keys)) ||
		young(k.masks.removed, len(c.masks.keys)) ||
		young(k.frontends.removed, len(c.frontends.keys)) || young(k.origins.removed, len(c.origins.keys)) ||
		young(k.ways.removed, len(c.ways.keys)) ||
		young(max(k.rulesets.keys.removed, k.rulesets.exact.removed), len(c.rulesets)) ||
		young(k.endpoints.numbers.removed, len(c.endpoints.numbers.keys)) ||
		young(k.peers.addresses.removed, len(c.peers.addresses)) ||
		young(k.peers.prefixes.removed, len(c.peers.prefixes)) ||
		young(k.services.removed(), len(c.services.added)+len(c.services.netns.keys))
}

// write puts everything but the epoch into the kernel.
func (c *commit) write() error {
	k, since := c.k, c.epoch
	if c.bump {
		since++
	}
	if err := k.facts.put(c.facts.keys, c.facts.values, k.tick); err != nil {
		return err
	}
	if err := k.masks.put(c.masks.keys, c.masks.values, k.tick); err != nil {
		return err
	}
	for id, r := range c.rulesets {
		if err := k.rulesets.put(id, r, k.tick); err != nil {
			return err
		}
	}
	if err := k.services.write(&c.services, k.tick); err != nil {
		return err
	}
	if err := k.endpoints.write(c.endpoints, k.grace); err != nil {
		return err
	}
	c.stageEndpoints(since)
	if err := k.endpoints.numbers.put(c.endpoints.numbers.keys, c.endpoints.numbers.values, k.tick); err != nil {
		return err
	}
	if err := k.peers.addPrefixes(c.peers.prefixes, c.s.Peers, c.epoch, since, k.tick); err != nil {
		return err
	}
	c.stagePeers(since)
	if err := k.peers.addAddresses(c.peers.addresses, c.s.Peers, since, k.tick); err != nil {
		return err
	}
	if err := k.origins.put(c.origins.keys, c.origins.values, k.tick); err != nil {
		return err
	}
	if err := k.ways.put(c.ways.keys, c.ways.values, k.tick); err != nil {
		return err
	}
	if err := c.writeFrontends(); err != nil {
		return err
	}
	k.control.store(controlBorrowLimit, k.borrowLimit(len(c.s.Endpoints)))
	return nil
}

// writeFrontends comes last: they have no slots, and the new epoch is what makes flows be
// judged by them. Their value is the same for all, so removing one needs no grace.
func (c *commit) writeFrontends() error {
	k := c.k
	c.seen = !c.frontends.empty()
	if err := k.frontends.put(c.frontends.keys, c.frontends.values, k.tick); err != nil {
		return err
	}
	for _, f := range c.frontends.unwanted {
		if err := k.frontends.remove(f, k.tick); err != nil {
			return err
		}
		c.gone = append(c.gone, f)
	}
	return nil
}

// borrowLimit is how many flow entries are nobody's sure share.
func (k *Kernel) borrowLimit(endpoints int) uint64 {
	capacity, shares := uint64(k.maps[bpf.WeirMapFlows].MaxEntries()), uint64(k.FlowShare)*uint64(endpoints)
	return capacity - min(capacity, shares)
}

func (c *commit) stageEndpoints(since uint64) {
	for n, word := range c.endpoints.words {
		c.stage(slots{c.k.endpoints.memory.at(n)}, word, since)
	}
}

func (c *commit) stagePeers(since uint64) {
	for _, p := range c.peers.changed {
		if p.was != p.is {
			c.ends = append(c.ends, stagedEndpoint{p.element, p.was})
			p.element.store(peerEndpoint, p.is)
		}
		if word, _, ok := (slots{p.element}).read(c.epoch); !ok || word != p.word {
			c.stage(slots{p.element}, p.word, since)
		}
	}
}

func (c *commit) stage(s slots, word, since uint64) {
	c.staged = append(c.staged, stagedSlot{s, s.stage(c.epoch, word, since)})
}

// rollback undoes what programs could come to see. What stays is unreachable or says
// what was said before, and is compared again by the next commit.
func (c *commit) rollback() error {
	k := c.k
	for _, s := range c.staged {
		s.slots.forget(s.i)
	}
	for _, e := range c.ends {
		e.e.store(peerEndpoint, e.was)
	}
	k.services.rollback(&c.services)
	var errs []error
	for _, f := range c.frontends.keys {
		errs = append(errs, k.frontends.remove(f, k.tick))
	}
	errs = append(errs, k.frontends.put(c.gone, slices.Repeat([]uint32{1}, len(c.gone)), k.tick))
	for _, x := range slices.Concat(c.peers.prefixes, c.peers.addresses) {
		if i, ok := k.peers.index(x); ok {
			slots{k.peers.memory.at(i)}.forgetAfter(c.epoch)
		}
	}
	// What has no slots was there to be seen: what programs remember of it goes with the epoch.
	if c.seen || len(c.ends) > 0 {
		k.control.store(controlEpoch, c.epoch+1)
		k.committed = c.epoch + 1
	}
	return errors.Join(errs...)
}

// markStale hands what nobody wants any more to the collection after the next grace.
func (c *commit) markStale() {
	k := c.k
	k.facts.mark(c.facts.unwanted, k.tick)
	k.masks.mark(c.masks.unwanted, k.tick)
	k.origins.mark(c.origins.unwanted, k.tick)
	k.ways.mark(c.ways.unwanted, k.tick)
	k.rulesets.keys.mark(c.unwanted, k.tick)
	k.endpoints.numbers.mark(c.endpoints.numbers.unwanted, k.tick)
	k.peers.mark(c.peers.unwanted, k.tick)
	k.services.mark(&c.services, k.tick)
	for _, n := range c.endpoints.retire {
		k.endpoints.retired[n] = k.tick
	}
	k.outOfForce += len(c.unwanted) + len(c.endpoints.retire)
}
