package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// Allocator gives out every number that a State holds. A number stands for the same
// content for ever: nothing is given out twice. Its JSON form is what the agent keeps
// across restarts. All methods may be called at any time from any goroutine.
type Allocator struct {
	mu      sync.RWMutex
	changed uint64

	identities map[identity.Number]identity.Labels
	numbers    map[string]identity.Number // by canonical text of labels
	cidrs      map[identity.Number]netip.Prefix
	blocks     map[netip.Prefix]identity.Number
	sets       counter
	rulesets   counter
	ruleIDs    counter
	rules      map[uint32]Rule
}

// counter gives keys numbers in the order they come.
type counter struct {
	Next uint32            `json:"next"`
	IDs  map[string]uint32 `json:"ids"`
}

func (c *counter) id(key string) (id uint32, fresh bool) {
	if id, ok := c.IDs[key]; ok {
		return id, false
	}
	id = c.Next
	c.Next++
	c.IDs[key] = id
	return id, true
}

func newCounter(first uint32) counter { return counter{Next: first, IDs: map[string]uint32{}} }

// NewAllocator returns one that has given nothing out.
func NewAllocator() *Allocator {
	return &Allocator{
		identities: map[identity.Number]identity.Labels{},
		numbers:    map[string]identity.Number{},
		cidrs:      map[identity.Number]netip.Prefix{},
		blocks:     map[netip.Prefix]identity.Number{},
		sets:       newCounter(1),
		rulesets:   newCounter(1),
		ruleIDs:    newCounter(datapath.RuleFirst),
		rules:      map[uint32]Rule{},
	}
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
		return n
	}
	n := identity.Preferred(text)
	for _, taken := a.identities[n]; taken; _, taken = a.identities[n] {
		if n++; n == identity.Block {
			n = identity.First
		}
	}
	a.numbers[text], a.identities[n] = n, l
	a.changed++
	return n
}

func (a *Allocator) block(p netip.Prefix) identity.Number {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n, ok := a.blocks[p]; ok {
		return n
	}
	n := identity.Block | identity.Number(len(a.blocks)+1)
	a.blocks[p], a.cidrs[n] = n, p
	a.changed++
	return n
}

func (a *Allocator) set(text string) uint32 { return a.content(&a.sets, text) }

func (a *Allocator) ruleset(text string) uint32 { return a.content(&a.rulesets, text) }

func (a *Allocator) content(c *counter, text string) uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	id, fresh := c.id(digest(text))
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
	id, fresh := a.ruleIDs.id(key)
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
	Blocks     map[identity.Number]netip.Prefix    `json:"blocks"`
	Sets       counter                             `json:"sets"`
	Rulesets   counter                             `json:"rulesets"`
	RuleIDs    counter                             `json:"ruleIDs"`
	Rules      map[uint32]Rule                     `json:"rules"`
}

// MarshalJSON implements json.Marshaler.
func (a *Allocator) MarshalJSON() ([]byte, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return json.Marshal(saved{a.identities, a.cidrs, a.sets, a.rulesets, a.ruleIDs, a.rules})
}

// UnmarshalJSON implements json.Unmarshaler; what was given out before is forgotten.
func (a *Allocator) UnmarshalJSON(data []byte) error {
	fresh := NewAllocator()
	s := saved{fresh.identities, fresh.cidrs, fresh.sets, fresh.rulesets, fresh.ruleIDs, fresh.rules}
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("read id tables: %w", err)
	}
	if s.Sets.Next == 0 || s.Rulesets.Next == 0 || s.RuleIDs.Next < datapath.RuleFirst {
		return fmt.Errorf("read id tables: a counter is missing")
	}
	for n, l := range s.Identities {
		fresh.numbers[l.String()] = n
	}
	for n, p := range s.Blocks {
		fresh.blocks[p] = n
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.changed = 0
	a.identities, a.numbers, a.cidrs, a.blocks = s.Identities, fresh.numbers, s.Blocks, fresh.blocks
	a.sets, a.rulesets, a.ruleIDs, a.rules = s.Sets, s.Rulesets, s.RuleIDs, s.Rules
	return nil
}
