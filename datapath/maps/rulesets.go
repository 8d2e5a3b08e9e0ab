package maps

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// rulesets writes rulesets: their key, the groups of exact ports by (ruleset, port), the
// scanned groups as an extent of port_groups, and each group's rule ids as an extent of
// rule_ids closed by a zero (no rule has that id). They are immutable while in use.
type rulesets struct {
	keys   *tracker[uint32, uint32, bpf.WeirRuleset]
	exact  *tracker[bpf.WeirExactKey, bpf.WeirExactKey, bpf.WeirPortGroup]
	groups *ebpf.Map
	rules  *memory

	groupSpace, ruleSpace extents
	placed                map[uint32]*placement
	limbo                 []limbo[*placement] // removed; their extents are free a grace later
}

// limbo is something removed at a tick and still readable by programs of before it.
type limbo[T any] struct {
	what T
	tick uint64
}

// placement is where a ruleset of the kernel lies and what it says.
type placement struct {
	ruleset datapath.Ruleset // canonical
	scan    extent
	rules   []extent
	exact   []bpf.WeirExactKey
}

// canonical has the exact groups first, by port; the scanned ones in their order.
func canonical(r datapath.Ruleset) datapath.Ruleset {
	groups := slices.Clone(r.Groups)
	slices.SortStableFunc(groups, func(a, b datapath.PortGroup) int {
		switch {
		case a.Exact() != b.Exact():
			return map[bool]int{true: -1, false: 1}[a.Exact()]
		case !a.Exact():
			return 0
		}
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Low, b.Low))
	})
	r.Groups = groups
	return r
}

// equal compares canonical rulesets.
func equal(a, b datapath.Ruleset) bool {
	return a.Default == b.Default && a.Allow == b.Allow && slices.EqualFunc(a.Groups, b.Groups, equalGroup)
}

func equalGroup(a, b datapath.PortGroup) bool {
	rules := slices.Equal(a.Rules, b.Rules)
	return rules && encodeGroup(a, 0) == encodeGroup(b, 0)
}

// check refuses what the kernel's form cannot hold. r is canonical.
func check(id uint32, r datapath.Ruleset) error {
	scanned := 0
	for i, g := range r.Groups {
		switch {
		case id == 0:
			return fmt.Errorf("ruleset 0 is no ruleset")
		case len(g.Rules) == 0 || slices.Contains(g.Rules, 0):
			return fmt.Errorf("ruleset %d: port group without rule ids", id)
		case !g.Exact():
			scanned++
		case i > 0 && r.Groups[i-1].Exact() && r.Groups[i-1].Protocol == g.Protocol && r.Groups[i-1].Low == g.Low:
			return fmt.Errorf("ruleset %d: two groups for protocol %d port %d", id, g.Protocol, g.Low)
		}
	}
	if scanned > int(bpf.WeirLimitsSCAN_MAX) {
		return fmt.Errorf("ruleset %d: %d port groups to scan, at most %d are possible", id, scanned, bpf.WeirLimitsSCAN_MAX)
	}
	return nil
}

// put writes a ruleset that is not there; on an error nothing of it is.
func (s *rulesets) put(id uint32, r datapath.Ruleset, tick uint64) error {
	p := &placement{ruleset: r}
	err := s.write(id, p, tick)
	if err == nil {
		s.placed[id] = p
		return nil
	}
	for _, k := range p.exact { // nobody could reach them
		if undo := s.exact.remove(k, tick); undo != nil {
			return undo
		}
	}
	s.free(p)
	return err
}

func (s *rulesets) write(id uint32, p *placement, tick uint64) error {
	var exactKeys []bpf.WeirExactKey
	var exact, scanned []bpf.WeirPortGroup
	for _, g := range p.ruleset.Groups {
		at, err := s.writeRules(g.Rules)
		if err != nil {
			return err
		}
		p.rules = append(p.rules, at)
		encoded := encodeGroup(g, at.start)
		if g.Exact() {
			exactKeys = append(exactKeys, bpf.WeirExactKey{Ruleset: id, Port: g.Low, Protocol: g.Protocol})
			exact = append(exact, encoded)
		} else {
			scanned = append(scanned, encoded)
		}
	}
	var err error
	hulls(scanned)
	if p.scan, err = s.groupSpace.alloc(uint32(len(scanned))); err != nil {
		return err
	}
	for i, g := range scanned {
		if err := s.groups.Put(p.scan.start+uint32(i), g); err != nil {
			return fmt.Errorf("write map %s: %w", bpf.WeirMapPortGroups, err)
		}
	}
	p.exact = exactKeys
	if err := s.exact.put(exactKeys, exact, tick); err != nil {
		return err
	}
	header := bpf.WeirRuleset{DefaultRule: p.ruleset.Default, Scan: p.scan.start, ScanCount: uint16(len(scanned))}
	if p.ruleset.Allow {
		header.Allow = 1
	}
	if len(exact) > 0 {
		header.Exact = 1
	}
	return s.keys.put([]uint32{id}, []bpf.WeirRuleset{header}, tick)
}

// hulls says in the first group of each chunk which ports the chunk's groups have.
func hulls(scanned []bpf.WeirPortGroup) {
	for chunk := range slices.Chunk(scanned, int(bpf.WeirLimitsSCAN_CHUNK)) {
		low, high := chunk[0].Low, chunk[0].High
		for _, g := range chunk {
			low, high = min(low, g.Low), max(high, g.High)
		}
		chunk[0].HullLow, chunk[0].HullHigh = low, high
	}
}

func (s *rulesets) writeRules(rules []uint32) (extent, error) {
	at, err := s.ruleSpace.alloc(uint32(len(rules)) + 1)
	if err != nil {
		return extent{}, err
	}
	for i, rule := range rules {
		s.rules.at(at.start+uint32(i)).store(0, uint64(rule))
	}
	s.rules.at(at.start+uint32(len(rules))).store(0, 0)
	return at, nil
}

func (s *rulesets) free(p *placement) {
	s.groupSpace.free(p.scan)
	for _, at := range p.rules {
		s.ruleSpace.free(at)
	}
}

// remove takes a ruleset from the kernel; its extents stay taken until a grace later.
func (s *rulesets) remove(id uint32, tick uint64) error {
	if err := s.keys.remove(id, tick); err != nil {
		return err
	}
	p := s.placed[id]
	for _, k := range p.exact {
		if err := s.exact.remove(k, tick); err != nil {
			return err
		}
	}
	delete(s.placed, id)
	s.limbo = append(s.limbo, limbo[*placement]{p, tick})
	return nil
}

// collect removes what is stale since tick before, and frees what was removed by then.
func (s *rulesets) collect(before, tick uint64) error {
	s.limbo = slices.DeleteFunc(s.limbo, func(l limbo[*placement]) bool {
		if l.tick <= before {
			s.free(l.what)
		}
		return l.tick <= before
	})
	for id, since := range maps.Clone(s.keys.stale) {
		if since > before {
			continue
		}
		if err := s.remove(id, tick); err != nil {
			return err
		}
	}
	return nil
}

// load rebuilds the placements from the kernel. What is damaged, or half-made by an agent
// that died, is removed: packets that need it drop until the next commit writes it.
func (s *rulesets) load(tick uint64) error {
	s.placed = map[uint32]*placement{}
	if err := s.keys.load(); err != nil {
		return err
	}
	if err := s.exact.load(); err != nil {
		return err
	}
	exact := map[uint32][]bpf.WeirExactKey{}
	for k := range s.exact.applied {
		exact[k.Ruleset] = append(exact[k.Ruleset], k)
	}
	for id, header := range maps.Clone(s.keys.applied) {
		p, ok, err := s.read(header, exact[id])
		if err != nil {
			return err
		}
		s.placed[id] = p
		if ok {
			delete(exact, id)
		} else if err := s.keys.remove(id, tick); err != nil {
			return err
		} else {
			delete(s.placed, id)
			s.free(p)
		}
	}
	for _, orphans := range exact {
		for _, k := range orphans {
			if err := s.exact.remove(k, tick); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *rulesets) read(header bpf.WeirRuleset, exact []bpf.WeirExactKey) (p *placement, ok bool, err error) {
	p = &placement{ruleset: datapath.Ruleset{Default: header.DefaultRule, Allow: header.Allow == 1}, exact: exact}
	p.scan = extent{header.Scan, uint32(header.ScanCount)}
	if !s.groupSpace.claim(p.scan) {
		p.scan = extent{}
		return p, false, nil
	}
	var groups []bpf.WeirPortGroup
	for _, k := range exact {
		groups = append(groups, s.exact.applied[k])
	}
	for i := range p.scan.length {
		var g bpf.WeirPortGroup
		if err := s.groups.Lookup(p.scan.start+i, &g); err != nil {
			return p, false, fmt.Errorf("read map %s: %w", bpf.WeirMapPortGroups, err)
		}
		groups = append(groups, g)
	}
	scanned := slices.Clone(groups[len(exact):])
	if hulls(scanned); !slices.Equal(scanned, groups[len(exact):]) {
		return p, false, nil
	}
	for i, g := range groups {
		rules, at, ok := s.readRules(g.Rules)
		decoded := decodeGroup(g, rules)
		if !ok || decoded.Exact() != (i < len(exact)) {
			return p, false, nil
		}
		p.rules = append(p.rules, at)
		p.ruleset.Groups = append(p.ruleset.Groups, decoded)
	}
	p.ruleset = canonical(p.ruleset)
	return p, (header.Exact == 1) == (len(exact) > 0), nil
}

func (s *rulesets) readRules(start uint32) (rules []uint32, at extent, ok bool) {
	for i := start; i < s.rules.count; i++ {
		rule := uint32(s.rules.at(i).load(0))
		if rule == 0 {
			at = extent{start, i - start + 1}
			return rules, at, s.ruleSpace.claim(at)
		}
		rules = append(rules, rule)
	}
	return nil, extent{}, false
}
