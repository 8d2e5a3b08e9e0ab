package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// Allocator gives out every number that a State holds. A number stands for the same
// content as long as anything may hold it, and for no other ever: none is given out twice.
// Its JSON form is what the agent keeps across restarts. All methods may be called at any
// time from any goroutine.
type Allocator struct {
	mu      sync.RWMutex
	changed uint64
	turn    uint64 // counts compilations

	identities map[identity.Number]identity.Labels
	numbers    map[string]identity.Number // by canonical text of labels
	retired    map[identity.Number]bool   // that stood for labels which are forgotten
	cidrs      map[identity.Number]netip.Prefix
	blocks     map[netip.Prefix]identity.Number
	nextBlock  identity.Number
	sets       counter
	rulesets   counter
	ruleIDs    counter
	rules      map[uint32]Rule

	usedLabels map[identity.Number]uint64 // turn of the latest use
	usedBlocks map[netip.Prefix]uint64
}

// counter gives keys numbers in the order they come.
type counter struct {
	Next uint32            `json:"next"`
	IDs  map[string]uint32 `json:"ids"`
	used map[string]uint64 // turn of the latest use
}

func (c *counter) id(key string, turn uint64) (id uint32, fresh bool) {
	c.used[key] = turn
	if id, ok := c.IDs[key]; ok {
		return id, false
	}
	id = c.Next
	c.Next++ // 4 billion are some years of edits
	c.IDs[key] = id
	return id, true
}

// forget drops what was not used since turn.
func (c *counter) forget(turn uint64) {
	for key := range c.IDs {
		if c.used[key] < turn {
			c.drop(key)
		}
	}
}

func (c *counter) drop(key string) {
	delete(c.IDs, key)
	delete(c.used, key)
}

func newCounter(first uint32) counter {
	return counter{Next: first, IDs: map[string]uint32{}, used: map[string]uint64{}}
}

// NewAllocator returns one that has given nothing out.
func NewAllocator() *Allocator {
	return &Allocator{
		identities: map[identity.Number]identity.Labels{},
		numbers:    map[string]identity.Number{},
		retired:    map[identity.Number]bool{},
		cidrs:      map[identity.Number]netip.Prefix{},
		blocks:     map[netip.Prefix]identity.Number{},
		nextBlock:  identity.Block | 1,
		sets:       newCounter(1),
		rulesets:   newCounter(1),
		ruleIDs:    newCounter(datapath.RuleFirst),
		rules:      map[uint32]Rule{},
		usedLabels: map[identity.Number]uint64{},
		usedBlocks: map[netip.Prefix]uint64{},
	}
}

// What is not in use any more is still asked for by name, by flows that ended and packets
// that were denied: that much of it is kept, what was used last first.
const (
	keepRules  = 1 << 20 // bytes, about
	keepLabels = 4096
)

// begin is called before a compilation.
func (a *Allocator) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.turn++
}

// Forget drops what the last compilation did not use, once its outcome is in force; else
// whoever edits policies makes the tables grow, and every commit that saves them slower.
func (a *Allocator) Forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sets.forget(a.turn)
	a.rulesets.forget(a.turn)
	for p, n := range a.blocks {
		if a.usedBlocks[p] < a.turn {
			delete(a.blocks, p)
			delete(a.cidrs, n)
			delete(a.usedBlocks, p)
		}
	}
	a.forgetRules()
	a.forgetLabels()
}

func (a *Allocator) forgetRules() {
	var unused []string
	bytes := 0
	for key, id := range a.ruleIDs.IDs {
		if a.ruleIDs.used[key] < a.turn {
			unused = append(unused, key)
			bytes += a.rules[id].size()
		}
	}
	if bytes <= keepRules {
		return
	}
	sortByUse(unused, func(key string) (uint64, uint64) { return a.ruleIDs.used[key], uint64(a.ruleIDs.IDs[key]) })
	for _, key := range unused {
		if bytes <= keepRules {
			return
		}
		id := a.ruleIDs.IDs[key]
		bytes -= a.rules[id].size()
		delete(a.rules, id)
		a.ruleIDs.drop(key)
	}
}

// size of a rule in memory and in the file, about.
func (r Rule) size() int {
	n := 256 + len(r.Namespace) + len(r.Name) + len(r.UID)
	for _, by := range r.IsolatedBy {
		n += 64 + len(by.Namespace) + len(by.Name)
	}
	return n
}

func (a *Allocator) forgetLabels() {
	var unused []identity.Number
	for n := range a.identities {
		if a.usedLabels[n] < a.turn {
			unused = append(unused, n)
		}
	}
	sortByUse(unused, func(n identity.Number) (uint64, uint64) { return a.usedLabels[n], uint64(n) })
	for _, n := range unused[:max(0, len(unused)-keepLabels)] {
		l := a.identities[n]
		delete(a.numbers, l.String())
		delete(a.identities, n)
		delete(a.usedLabels, n)
		a.retired[n] = true // open flows may rest on it: it never stands for others
	}
}

// sortByUse puts what was used longest ago first.
func sortByUse[K any](keys []K, use func(K) (turn, number uint64)) {
	slices.SortFunc(keys, func(x, y K) int {
		xTurn, x2 := use(x)
		yTurn, y2 := use(y)
		return cmp.Or(cmp.Compare(xTurn, yTurn), cmp.Compare(x2, y2))
	})
}

// Changed counts the numbers given out since the Allocator was made or read: when it
// moved, the Allocator must be saved before those numbers reach the kernel.
func (a *Allocator) Changed() uint64 {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.changed
}

// Rule returns what a rule id stands for.
func (a *Allocator) Rule(id uint32) (Rule, bool) {
	if r, ok := reserved[id]; ok {
		return r, true
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	r, ok := a.rules[id]
	return r, ok
}

// Identity returns the labels that a number stands for.
func (a *Allocator) Identity(n identity.Number) (identity.Labels, bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	l, ok := a.identities[n]
	return l, ok
}

// Block returns the policy CIDR that a number stands for.
func (a *Allocator) Block(n identity.Number) (netip.Prefix, bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	p, ok := a.cidrs[n]
	return p, ok
}

func (a *Allocator) identity(l identity.Labels) identity.Number {
	text := l.String()
	a.mu.Lock()
	defer a.mu.Unlock()
	if n, ok := a.numbers[text]; ok {
		a.usedLabels[n] = a.turn
		return n
	}
	n := identity.Preferred(text)
	for a.isTaken(n) {
		if n++; n == identity.Block {
			n = identity.First
		}
	}
	a.numbers[text], a.identities[n], a.usedLabels[n] = n, l, a.turn
	a.changed++
	return n
}

func (a *Allocator) isTaken(n identity.Number) bool {
	_, taken := a.identities[n]
	return taken || a.retired[n]
}

func (a *Allocator) block(p netip.Prefix) identity.Number {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.usedBlocks[p] = a.turn
	if n, ok := a.blocks[p]; ok {
		return n
	}
	n := a.nextBlock
	a.nextBlock++
	a.blocks[p], a.cidrs[n] = n, p
	a.changed++
	return n
}

func (a *Allocator) set(text string) uint32 { return a.content(&a.sets, text) }

func (a *Allocator) ruleset(text string) uint32 { return a.content(&a.rulesets, text) }

func (a *Allocator) content(c *counter, text string) uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	id, fresh := c.id(digest(text), a.turn)
	if fresh {
		a.changed++
	}
	return id
}

// rule returns the id of a rule whose meaning is content, besides its own fields.
func (a *Allocator) rule(r Rule, content string) uint32 {
	key := digest(fmt.Sprintf("%s|%s|%s|%s|%d|%d|%v|%s", r.Kind, r.UID, r.Namespace, r.Name, r.Direction, r.Index, r.IsolatedBy, content))
	a.mu.Lock()
	defer a.mu.Unlock()
	id, fresh := a.ruleIDs.id(key, a.turn)
	if fresh {
		r.ID = id
		a.rules[id] = r
		a.changed++
	}
	return id
}

// digest stands for a content in keys: long enough that two contents never share one.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:16])
}

// saved is the Allocator's JSON form.
type saved struct {
	Identities map[identity.Number]identity.Labels `json:"identities"`
	Retired    []identity.Number                   `json:"retired,omitempty"`
	Blocks     map[identity.Number]netip.Prefix    `json:"blocks"`
	NextBlock  identity.Number                     `json:"nextBlock"`
	Sets       counter                             `json:"sets"`
	Rulesets   counter                             `json:"rulesets"`
	RuleIDs    counter                             `json:"ruleIDs"`
	Rules      map[uint32]Rule                     `json:"rules"`
}

// MarshalJSON implements json.Marshaler.
func (a *Allocator) MarshalJSON() ([]byte, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return json.Marshal(saved{a.identities, slices.Sorted(maps.Keys(a.retired)), a.cidrs, a.nextBlock, a.sets, a.rulesets, a.ruleIDs, a.rules})
}

// UnmarshalJSON implements json.Unmarshaler; what was given out before is forgotten.
func (a *Allocator) UnmarshalJSON(data []byte) error {
	fresh := NewAllocator()
	s := saved{fresh.identities, nil, fresh.cidrs, fresh.nextBlock, fresh.sets, fresh.rulesets, fresh.ruleIDs, fresh.rules}
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("read id tables: %w", err)
	}
	if s.Sets.Next == 0 || s.Rulesets.Next == 0 || s.RuleIDs.Next < datapath.RuleFirst {
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
	a.changed = 0
	a.identities, a.numbers, a.retired = s.Identities, fresh.numbers, fresh.retired
	a.cidrs, a.blocks, a.nextBlock = s.Blocks, fresh.blocks, s.NextBlock
	a.usedLabels, a.usedBlocks = fresh.usedLabels, fresh.usedBlocks
	a.sets, a.rulesets, a.ruleIDs, a.rules = s.Sets, s.Rulesets, s.RuleIDs, s.Rules
	return nil
}
