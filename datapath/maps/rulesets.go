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
// wide groups as an extent of port_groups, where they are many their spans as one of
// port_spans, and each group's rule ids as an extent of rule_ids closed by a zero (no rule
// has that id). They are immutable while in use.
type rulesets struct {
	keys   *tracker[uint32, uint32, bpf.WeirRuleset]
	exact  *tracker[bpf.WeirExactKey, bpf.WeirExactKey, bpf.WeirPortGroup]
	groups *ebpf.Map
	spans  *memory
	rules  *memory

	groupSpace, spanSpace, ruleSpace extents
	placed                           map[uint32]*placement
	limbo                            []limbo[*placement] // removed; their extents are free a grace later
}

// limbo is something removed at a tick and still readable by programs of before it.
type limbo[T any] struct {
	what T
	tick uint64
}

// placement is where a ruleset of the kernel lies and what it says.
type placement struct {
	ruleset datapath.Ruleset // canonical
	wide    extent
	spans   extent
	rules   []extent
	exact   []bpf.WeirExactKey
}

// canonical has the exact groups first, by port; the wide ones in their order.
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
	for i, g := range r.Groups {
		switch {
		case id == 0:
			return fmt.Errorf("ruleset 0 is no ruleset")
		case len(g.Rules) == 0 || slices.Contains(g.Rules, 0):
			return fmt.Errorf("ruleset %d: port group without rule ids", id)
		case i > 0 && g.Exact() && r.Groups[i-1].Exact() && r.Groups[i-1].Protocol == g.Protocol && r.Groups[i-1].Low == g.Low:
			return fmt.Errorf("ruleset %d: two groups for protocol %d port %d", id, g.Protocol, g.Low)
		}
	}
	if wide := len(r.Wide()); wide > datapath.WideMax {
		return fmt.Errorf("ruleset %d: %d wide port groups, at most %d are possible", id, wide, datapath.WideMax)
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
	var exact, wide []bpf.WeirPortGroup
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
			wide = append(wide, encoded)
		}
	}
	var err error
	if p.wide, err = s.groupSpace.alloc(uint32(len(wide))); err != nil {
		return err
	}
	for i, g := range wide {
		if err := s.groups.Put(p.wide.start+uint32(i), g); err != nil {
			return fmt.Errorf("write map %s: %w", bpf.WeirMapPortGroups, err)
		}
	}
	elements := spanElements(p.ruleset.Spans())
	if p.spans, err = s.spanSpace.alloc(uint32(len(elements))); err != nil {
		return err
	}
	for i, e := range elements {
		for word, v := range e {
			s.spans.at(p.spans.start+uint32(i)).store(uintptr(word), v)
		}
	}
	p.exact = exactKeys
	if err := s.exact.put(exactKeys, exact, tick); err != nil {
		return err
	}
	return s.keys.put([]uint32{id}, []bpf.WeirRuleset{p.header()}, tick)
}

// header is what the ruleset's key says of where it lies.
func (p *placement) header() bpf.WeirRuleset {
	flag := map[bool]uint8{true: 1}
	h := bpf.WeirRuleset{
		DefaultRule: p.ruleset.Default, Allow: flag[p.ruleset.Allow], Exact: flag[len(p.exact) > 0],
		Wide: p.wide.start, WideCount: uint16(p.wide.length),
	}
	if p.spans.length > 0 {
		h.Spans, h.SpanCount = p.spans.start, uint16(p.spans.length-uint32(bpf.WeirLimitsSPANS_FIRST))
		h.Names = flag[slices.ContainsFunc(p.ruleset.Wide(), func(g datapath.PortGroup) bool { return g.PortName != 0 })]
	}
	return h
}

// spanElements are a ruleset's spans as the kernel has them (bpf/contract.h, struct port_span).
func spanElements(s *datapath.Spans) (out [][5]uint64) {
	if s == nil {
		return nil
	}
	element := func(from uint32, m datapath.Mask) {
		out = append(out, [5]uint64{uint64(from), m[0], m[1], m[2], m[3]})
	}
	element(0, s.Any)
	element(0, s.Pods)
	for _, span := range s.Ports {
		element(span.From, span.Groups)
	}
	return out
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
	s.groupSpace.free(p.wide)
	s.spanSpace.free(p.spans)
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
	p.wide = extent{header.Wide, uint32(header.WideCount)}
	if !s.groupSpace.claim(p.wide) {
		p.wide = extent{}
		return p, false, nil
	}
	var groups []bpf.WeirPortGroup
	for _, k := range exact {
		groups = append(groups, s.exact.applied[k])
	}
	for i := range p.wide.length {
		var g bpf.WeirPortGroup
		if err := s.groups.Lookup(p.wide.start+i, &g); err != nil {
			return p, false, fmt.Errorf("read map %s: %w", bpf.WeirMapPortGroups, err)
		}
		groups = append(groups, g)
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
	return p, s.readSpans(header, p) && p.header() == header, nil
}

// readSpans claims the spans that a ruleset like p has; false: they are not there.
func (s *rulesets) readSpans(header bpf.WeirRuleset, p *placement) bool {
	elements := spanElements(p.ruleset.Spans())
	at := extent{header.Spans, uint32(len(elements))}
	if len(elements) == 0 {
		return true
	}
	if !s.spanSpace.claim(at) {
		return false
	}
	p.spans = at
	for i, e := range elements {
		for word, v := range e {
			if s.spans.at(at.start+uint32(i)).load(uintptr(word)) != v {
				return false
			}
		}
	}
	return true
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
