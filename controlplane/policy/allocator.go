package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/types"

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
	given   []givenOut // and not saved yet
	last    uint64     // turn of the last of all that were ever given out
	turn    uint64     // counts compilations

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
	services   counter // by namespace/name

	usedLabels map[identity.Number]uint64 // turn of the latest use, 0 = released since
	usedBlocks map[netip.Prefix]uint64

	released   []func(*Allocator) // what Incremental does not use any more, to be looked at by Forget
	swept      uint64             // turn of the last Forget
	idleRules  idle[uint32]
	idleBytes  int // of idleRules
	idleLabels idle[identity.Number]
	idleNames  idle[uint32] // of Services
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
		services:   newCounter(1),
		usedLabels: map[identity.Number]uint64{},
		usedBlocks: map[netip.Prefix]uint64{},
		idleRules:  idle[uint32]{since: map[uint32]uint64{}},
		idleLabels: idle[identity.Number]{since: map[identity.Number]uint64{}},
		idleNames:  idle[uint32]{since: map[uint32]uint64{}},
	}
}

// What is not in use any more is still asked for by name, by flows that ended and packets
// that were denied: that much of it is kept, what was used last first.
const (
	keepRules  = 1 << 20 // bytes, about
	keepLabels = 4096
	keepNames  = 4096 // of Services
)

// begin is called before a compilation.
func (a *Allocator) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.turn++
}

// Forget drops what is not in use any more, once that is in force; else whoever edits
// policies makes the tables grow. After a compilation it looks at everything, else at what
// Incremental has released.
func (a *Allocator) Forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, drop := range a.released {
		drop(a)
	}
	a.released = nil
	if a.swept < a.turn {
		a.swept = a.turn
		a.sweep()
	}
	a.trim()
}

func (a *Allocator) sweep() {
	a.sets.forget(a.turn)
	a.rulesets.forget(a.turn)
	for p := range a.blocks {
		if a.usedBlocks[p] < a.turn {
			a.dropBlock(p)
		}
	}
	var rules []uint32
	for _, id := range a.ruleIDs.IDs {
		if a.ruleIDs.used[id] < a.turn {
			rules = append(rules, id)
		}
	}
	sortByUse(rules, func(id uint32) (uint64, uint64) { return a.ruleIDs.used[id], uint64(id) })
	for _, id := range rules {
		a.restRule(id)
	}
	var labels []identity.Number
	for n := range a.identities {
		if a.usedLabels[n] < a.turn {
			labels = append(labels, n)
		}
	}
	sortByUse(labels, func(n identity.Number) (uint64, uint64) { return a.usedLabels[n], uint64(n) })
	for _, n := range labels {
		a.idleLabels.add(n)
	}
	var names []uint32
	for _, n := range a.services.IDs {
		if a.services.used[n] < a.turn {
			names = append(names, n)
		}
	}
	sortByUse(names, func(n uint32) (uint64, uint64) { return a.services.used[n], uint64(n) })
	for _, n := range names {
		a.idleNames.add(n)
	}
}

func (a *Allocator) dropBlock(p netip.Prefix) {
	delete(a.cidrs, a.blocks[p])
	delete(a.blocks, p)
	delete(a.usedBlocks, p)
}

func (a *Allocator) restRule(id uint32) {
	if _, there := a.idleRules.since[id]; !there {
		a.idleRules.add(id)
		a.idleBytes += a.rules[id].size()
	}
}

func (a *Allocator) trim() {
	for a.idleBytes > keepRules {
		id, ok := a.idleRules.oldest()
		if !ok {
			break
		}
		a.idleBytes -= a.rules[id].size()
		delete(a.rules, id)
		a.ruleIDs.drop(id)
	}
	for len(a.idleLabels.since) > keepLabels {
		n, _ := a.idleLabels.oldest()
		l := a.identities[n]
		delete(a.numbers, l.String())
		delete(a.identities, n)
		delete(a.usedLabels, n)
		a.retired[n] = true // open flows may rest on it: it never stands for others
	}
	for len(a.idleNames.since) > keepNames {
		n, _ := a.idleNames.oldest()
		a.services.drop(n) // its number is nobody's from now on
	}
}

// release notes that something is not used any more unless it is used again before Forget:
// Incremental's way to say what a compilation says by not using it.
func (a *Allocator) release(unused func(*Allocator), drop func(*Allocator)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	unused(a)
	a.released = append(a.released, drop)
}

func (a *Allocator) releaseSet(id uint32) {
	a.release(func(a *Allocator) { a.sets.used[id] = 0 }, func(a *Allocator) {
		if used, there := a.sets.used[id]; there && used == 0 {
			a.sets.drop(id)
		}
	})
}

func (a *Allocator) releaseRuleset(id uint32) {
	a.release(func(a *Allocator) { a.rulesets.used[id] = 0 }, func(a *Allocator) {
		if used, there := a.rulesets.used[id]; there && used == 0 {
			a.rulesets.drop(id)
		}
	})
}

func (a *Allocator) releaseRule(id uint32) {
	a.release(func(a *Allocator) { a.ruleIDs.used[id] = 0 }, func(a *Allocator) {
		if used, there := a.ruleIDs.used[id]; there && used == 0 {
			a.restRule(id)
		}
	})
}

func (a *Allocator) releaseBlock(p netip.Prefix) {
	a.release(func(a *Allocator) { a.usedBlocks[p] = 0 }, func(a *Allocator) {
		if used, there := a.usedBlocks[p]; there && used == 0 {
			a.dropBlock(p)
		}
	})
}

func (a *Allocator) releaseIdentity(n identity.Number) {
	a.release(func(a *Allocator) { a.usedLabels[n] = 0 }, func(a *Allocator) {
		if used, there := a.usedLabels[n]; there && used == 0 {
			a.idleLabels.add(n)
		}
	})
}

func (a *Allocator) releaseService(name types.NamespacedName) {
	a.mu.RLock()
	n, given := a.services.IDs[name.String()]
	a.mu.RUnlock()
	if !given {
		return
	}
	a.release(func(a *Allocator) { a.services.used[n] = 0 }, func(a *Allocator) {
		if used, there := a.services.used[n]; there && used == 0 {
			a.idleNames.add(n)
		}
	})
}

// size of a rule in memory and in the file, about.
func (r Rule) size() int {
	n := 256 + len(r.Namespace) + len(r.Name) + len(r.UID)
	for _, by := range r.IsolatedBy {
		n += 64 + len(by.Namespace) + len(by.Name)
	}
	return n
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

// Service returns the name of the Service that a number stands for.
func (a *Allocator) Service(n uint16) (types.NamespacedName, bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	namespace, name, ok := strings.Cut(a.services.keys[uint32(n)], "/")
	return types.NamespacedName{Namespace: namespace, Name: name}, ok
}

// servicesMost are as many as 16 bits of a flow entry tell apart: Services after them have no
// number, since entries and sockets may have any that was given out before.
const servicesMost = 1<<16 - 1

func (a *Allocator) service(name types.NamespacedName) uint16 {
	key := name.String()
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, given := a.services.IDs[key]; !given && a.services.Next > servicesMost {
		return 0
	}
	n, fresh := a.services.id(key, a.turn)
	a.idleNames.remove(n)
	if fresh {
		a.give(givenOut{Number: n, Service: key})
	}
	return uint16(n)
}

func (a *Allocator) identity(l identity.Labels) identity.Number {
	text := l.String()
	a.mu.Lock()
	defer a.mu.Unlock()
	if n, ok := a.numbers[text]; ok {
		a.usedLabels[n] = a.turn
		a.idleLabels.remove(n)
		return n
	}
	n := identity.Preferred(text)
	for a.isTaken(n) {
		if n++; n == identity.Block {
			n = identity.First
		}
	}
	a.numbers[text], a.identities[n], a.usedLabels[n] = n, l, a.turn
	a.give(givenOut{Number: uint32(n), Labels: &l})
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
	a.give(givenOut{Number: uint32(n), Block: &p})
	return n
}

func (a *Allocator) set(text string) uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := digest(text)
	id, fresh := a.sets.id(key, a.turn)
	if fresh {
		a.give(givenOut{Number: id, Set: key})
	}
	return id
}

func (a *Allocator) ruleset(text string) uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := digest(text)
	id, fresh := a.rulesets.id(key, a.turn)
	if fresh {
		a.give(givenOut{Number: id, Ruleset: key})
	}
	return id
}

// rule returns the id of a rule whose meaning is content, besides its own fields.
func (a *Allocator) rule(r Rule, content string) uint32 {
	return a.keyedRule(r, ruleKey(r, content))
}

func ruleKey(r Rule, content string) string {
	return digest(fmt.Sprintf("%s|%s|%s|%s|%d|%d|%v|%s", r.Kind, r.UID, r.Namespace, r.Name, r.Direction, r.Index, r.IsolatedBy, content))
}

func (a *Allocator) keyedRule(r Rule, key string) uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	id, fresh := a.ruleIDs.id(key, a.turn)
	if a.idleRules.remove(id) {
		a.idleBytes -= a.rules[id].size()
	}
	if fresh {
		r.ID = id
		a.rules[id] = r
		a.give(givenOut{Number: id, RuleKey: key, Rule: &r})
	}
	return id
}

// digest stands for a content in keys: long enough that two contents never share one.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:16])
}
