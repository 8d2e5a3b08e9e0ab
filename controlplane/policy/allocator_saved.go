package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// saved is the Allocator's JSON form.
type saved struct {
	Last       uint64                              `json:"last"` // givenOut.Turn
	Identities map[identity.Number]identity.Labels `json:"identities"`
	Retired    []identity.Number                   `json:"retired,omitempty"`
	Blocks     map[identity.Number]netip.Prefix    `json:"blocks"`
	NextBlock  identity.Number                     `json:"nextBlock"`
	Sets       counter                             `json:"sets"`
	Rulesets   counter                             `json:"rulesets"`
	RuleIDs    counter                             `json:"ruleIDs"`
	Rules      map[uint32]Rule                     `json:"rules"`
	Services   counter                             `json:"services"` // not there before they had numbers
}

// MarshalJSON implements json.Marshaler.
func (a *Allocator) MarshalJSON() ([]byte, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return json.Marshal(saved{a.last, a.identities, slices.Sorted(maps.Keys(a.retired)), a.cidrs, a.nextBlock, a.sets, a.rulesets, a.ruleIDs, a.rules, a.services})
}

// UnmarshalJSON implements json.Unmarshaler; what was given out before is forgotten.
func (a *Allocator) UnmarshalJSON(data []byte) error {
	fresh := NewAllocator()
	s := saved{0, fresh.identities, nil, fresh.cidrs, fresh.nextBlock, fresh.sets, fresh.rulesets, fresh.ruleIDs, fresh.rules, fresh.services}
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("read id tables: %w", err)
	}
	if s.Sets.Next == 0 || s.Rulesets.Next == 0 || s.RuleIDs.Next < datapath.RuleFirst || s.Services.Next == 0 {
		return fmt.Errorf("read id tables: a counter is missing")
	}
	for n, l := range s.Identities {
		fresh.numbers[l.String()] = n
	}
	for _, n := range s.Retired {
		fresh.retired[n] = true
	}
	for n, p := range s.Blocks {
		fresh.blocks[p] = n
		s.NextBlock = max(s.NextBlock, n+1)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.changed, a.given, a.last = 0, nil, s.Last
	a.identities, a.numbers, a.retired = s.Identities, fresh.numbers, fresh.retired
	a.cidrs, a.blocks, a.nextBlock = s.Blocks, fresh.blocks, s.NextBlock
	a.usedLabels, a.usedBlocks = fresh.usedLabels, fresh.usedBlocks
	a.released, a.idleRules, a.idleBytes, a.idleLabels, a.idleNames = nil, fresh.idleRules, 0, fresh.idleLabels, fresh.idleNames
	for _, c := range []*counter{&s.Sets, &s.Rulesets, &s.RuleIDs, &s.Services} {
		c.index()
	}
	a.sets, a.rulesets, a.ruleIDs, a.rules, a.services = s.Sets, s.Rulesets, s.RuleIDs, s.Rules, s.Services
	return nil
}

// givenOut is a number that was given out, and what for: a line of what is kept besides the
// JSON form, which costs as much as there are numbers.
type givenOut struct {
	Turn    uint64           `json:"turn"` // counts what was ever given out
	Number  uint32           `json:"number"`
	Labels  *identity.Labels `json:"labels,omitempty"`
	Block   *netip.Prefix    `json:"block,omitempty"`
	Set     string           `json:"set,omitempty"`
	Ruleset string           `json:"ruleset,omitempty"`
	RuleKey string           `json:"ruleKey,omitempty"`
	Rule    *Rule            `json:"rule,omitempty"`
	Service string           `json:"service,omitempty"`
}

// give notes a number; a.mu is held.
func (a *Allocator) give(g givenOut) {
	a.changed++
	a.last++
	g.Turn = a.last
	a.given = append(a.given, g)
}

// Unsaved are lines about the numbers given out that are not Saved, and how many there are.
func (a *Allocator) Unsaved() (lines []byte, n int) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	var out bytes.Buffer
	to := json.NewEncoder(&out)
	for _, g := range a.given {
		_ = to.Encode(g) // cannot fail: plain types, into memory
	}
	return out.Bytes(), len(a.given)
}

// Saved notes that the first n of what is unsaved are.
func (a *Allocator) Saved(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.given = slices.Clone(a.given[n:])
}

// SavedAll notes that all numbers are, in the JSON form.
func (a *Allocator) SavedAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.given = nil
}

// Replay adds what Unsaved wrote since the JSON form was. Lines that are older than that tell
// nothing new; a last line that was not written whole is about numbers that were not used.
func (a *Allocator) Replay(lines []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(lines) > 0 {
		line, rest, whole := bytes.Cut(lines, []byte("\n"))
		if !whole {
			return nil
		}
		var g givenOut
		if err := json.Unmarshal(line, &g); err != nil {
			return fmt.Errorf("read numbers given out: %w", err)
		}
		a.replay(g)
		lines = rest
	}
	return nil
}

// replay one: a number that its content had before was forgotten.
func (a *Allocator) replay(g givenOut) {
	if g.Turn <= a.last {
		return
	}
	a.last = g.Turn
	count := func(c *counter, key string) {
		c.Next = max(c.Next, g.Number+1)
		if was, known := c.IDs[key]; known {
			c.drop(was)
		}
		c.IDs[key], c.keys[g.Number] = g.Number, key
	}
	switch n := identity.Number(g.Number); {
	case g.Labels != nil:
		text := g.Labels.String()
		if was, known := a.numbers[text]; known {
			delete(a.identities, was)
			a.retired[was] = true
		}
		a.numbers[text], a.identities[n] = n, *g.Labels
	case g.Block != nil:
		a.nextBlock = max(a.nextBlock, n+1)
		if _, known := a.blocks[*g.Block]; known {
			a.dropBlock(*g.Block)
		}
		a.blocks[*g.Block], a.cidrs[n] = n, *g.Block
	case g.Set != "":
		count(&a.sets, g.Set)
	case g.Ruleset != "":
		count(&a.rulesets, g.Ruleset)
	case g.Service != "":
		count(&a.services, g.Service)
	case g.Rule != nil:
		delete(a.rules, a.ruleIDs.IDs[g.RuleKey])
		count(&a.ruleIDs, g.RuleKey)
		a.rules[g.Number] = *g.Rule
	}
}
