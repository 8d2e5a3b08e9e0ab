package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// MapControl is the pin's name of the page of words (bpf/maps.h, struct control).
const MapControl = "control"

// Words of struct control.
const (
	controlEpoch       = unsafe.Offsetof(bpf.WeirControl{}.Epoch) / 8
	controlBorrowLimit = unsafe.Offsetof(bpf.WeirControl{}.FlowBorrowLimit) / 8
	controlFlows       = unsafe.Offsetof(bpf.WeirControl{}.Flows) / 8
)

// Sets of maps, by their folders: that of the programs in force, and one that is made
// ready to replace it, see loader.Loaded.Next.
const (
	InForce = "maps"
	Next    = "maps-next"
)

// Path is where a map in force is pinned.
func Path(bpffsDir, name string) string { return PathIn(bpffsDir, InForce, name) }

// PathIn is where a set's map is pinned.
func PathIn(bpffsDir, set, name string) string { return filepath.Join(bpffsDir, set, name) }

// Kernel is a node's maps. It implements datapath.Kernel and is the only writer of the
// maps on its node (the agent's lock sees to that). Safe for concurrent use.
type Kernel struct {
	// FlowShare is how many flow entries each endpoint is sure of; it must be the
	// loader's. Set it before the first Commit.
	FlowShare uint32

	mu      sync.Mutex
	dir     string // bpffs
	set     string
	maps    map[string]*ebpf.Map
	opened  []*memory
	control element

	facts     *tracker[datapath.Fact, bpf.WeirFactKey, uint32]
	masks     *tracker[datapath.MaskKey, bpf.WeirMaskKey, datapath.Mask]
	frontends *tracker[datapath.Frontend, bpf.WeirFrontendKey, uint32]
	origins   *tracker[netip.Prefix, bpf.WeirPrefixKey, bpf.WeirOrigin]
	ways      *tracker[uint32, uint32, bpf.WeirWay]
	denied    *tracker[netip.Prefix, bpf.WeirPrefixKey, uint32] // see Deny
	rulesets  rulesets
	endpoints endpoints
	peers     peers
	services  services

	tick        uint64 // counts commits and collections
	graced      uint64 // a grace began after this tick
	gracedEpoch uint64 // and after this epoch came
	anew        bool   // what differs now was damaged: flows are judged anew
	unknown     bool   // a commit failed: who knows what it left behind

	last      *datapath.State              // committed by this Kernel
	seen      map[uint32]datapath.Endpoint // of last, which changes in place
	committed uint64                       // the epoch as this Kernel left it

	retired    denialTotals // counts of rules and endpoints out of force
	outOfForce int          // rulesets and endpoints that went since those were looked for

	wait       func() error  // Grace, but in tests
	linger     time.Duration // how long what nobody meets may wait for a collection
	hurry      chan struct{} // has one element when it is to wait no longer
	patient    bool          // what the last commit left may linger
	collecting bool
	background sync.WaitGroup
	closed     bool
}

var _ datapath.Kernel = (*Kernel)(nil)

// Open opens the maps that the loader pinned below bpffsDir and takes what they hold as
// the state to compare with. Its first act is to forget what was staged for an epoch
// that never came.
func Open(bpffsDir string) (*Kernel, error) { return open(bpffsDir, InForce, Grace) }

// OpenNext opens those that are to come in force when the first Commit is made.
func OpenNext(bpffsDir string) (*Kernel, error) { return open(bpffsDir, Next, Grace) }

// Promote is told how the pins of OpenNext's maps become those in force.
func (k *Kernel) Promote(rename func() error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := rename(); err != nil {
		return err
	}
	k.set = InForce
	return nil
}

func open(bpffsDir, set string, wait func() error) (*Kernel, error) {
	k := &Kernel{set: set, maps: map[string]*ebpf.Map{}, FlowShare: defaultFlowShare, dir: bpffsDir, anew: true, tick: 1, retired: denialTotals{}, wait: wait,
		linger: linger, hurry: make(chan struct{}, 1)}
	if err := k.open(); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

const defaultFlowShare = 128 // bpf/config.h, cfg_flow_share

func (k *Kernel) open() error {
	for _, name := range []string{
		MapControl, bpf.WeirMapFlows, bpf.WeirMapEndpointIndex, bpf.WeirMapEndpoints, bpf.WeirMapEndpointStates,
		bpf.WeirMapAddresses, bpf.WeirMapPrefixes, bpf.WeirMapPeers, bpf.WeirMapFacts, bpf.WeirMapRulesets,
		bpf.WeirMapExactGroups, bpf.WeirMapPortGroups, bpf.WeirMapPortSpans, bpf.WeirMapPeerMasks, bpf.WeirMapRuleIds, bpf.WeirMapFrontends, bpf.WeirMapOrigins, bpf.WeirMapWays,
		bpf.WeirMapDenialCounts, bpf.WeirMapCounters, bpf.WeirMapShieldDeny,
		bpf.SockMapNetnsEndpoints, bpf.SockMapServices, bpf.SockMapServiceLists, bpf.SockMapBackends,
	} {
		m, err := ebpf.LoadPinnedMap(PathIn(k.dir, k.set, name), nil)
		if err != nil {
			return fmt.Errorf("open map %s: %w", PathIn(k.dir, k.set, name), err)
		}
		k.maps[name] = m
	}
	path := PathIn(k.dir, k.set, bpf.ObserveMapKernelDrops)
	switch m, err := ebpf.LoadPinnedMap(path, nil); {
	case err == nil:
		k.maps[bpf.ObserveMapKernelDrops] = m
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open map %s: %w", path, err)
	}
	if err := k.mapMemories(); err != nil {
		return err
	}
	return k.adopt()
}

func (k *Kernel) mapMemories() error {
	mapped := map[string]*memory{}
	for _, name := range []string{
		MapControl, bpf.WeirMapEndpoints, bpf.WeirMapPeers, bpf.WeirMapPortSpans, bpf.WeirMapRuleIds, bpf.SockMapServiceLists, bpf.SockMapBackends,
	} {
		m, err := mapMemory(k.maps[name])
		if err != nil {
			return err
		}
		k.opened = append(k.opened, m)
		mapped[name] = m
	}
	k.control = mapped[MapControl].at(0)
	k.facts = newTracker[datapath.Fact, bpf.WeirFactKey, uint32](k, bpf.WeirMapFacts, encodeFact, decodeFact)
	k.masks = newTracker[datapath.MaskKey, bpf.WeirMaskKey, datapath.Mask](k, bpf.WeirMapPeerMasks, encodeMask, decodeMask)
	k.frontends = newTracker[datapath.Frontend, bpf.WeirFrontendKey, uint32](k, bpf.WeirMapFrontends, encodeFrontend, decodeFrontend)
	k.origins = newTracker[netip.Prefix, bpf.WeirPrefixKey, bpf.WeirOrigin](k, bpf.WeirMapOrigins, encodePrefix, decodePrefix)
	k.ways = newTracker[uint32, uint32, bpf.WeirWay](k, bpf.WeirMapWays, same, same)
	k.denied = newTracker[netip.Prefix, bpf.WeirPrefixKey, uint32](k, bpf.WeirMapShieldDeny, encodePrefix, decodePrefix)
	k.rulesets = rulesets{
		keys:       newTracker[uint32, uint32, bpf.WeirRuleset](k, bpf.WeirMapRulesets, same, same),
		exact:      newTracker[bpf.WeirExactKey, bpf.WeirExactKey, bpf.WeirPortGroup](k, bpf.WeirMapExactGroups, same, same),
		groups:     k.maps[bpf.WeirMapPortGroups],
		spans:      mapped[bpf.WeirMapPortSpans],
		rules:      mapped[bpf.WeirMapRuleIds],
		groupSpace: extents{name: bpf.WeirMapPortGroups, size: k.maps[bpf.WeirMapPortGroups].MaxEntries()},
		spanSpace:  extents{name: bpf.WeirMapPortSpans, size: mapped[bpf.WeirMapPortSpans].count},
		ruleSpace:  extents{name: bpf.WeirMapRuleIds, size: mapped[bpf.WeirMapRuleIds].count},
	}
	k.endpoints = endpoints{
		numbers: newTracker[uint32, uint32, uint32](k, bpf.WeirMapEndpointIndex, same, same),
		memory:  mapped[bpf.WeirMapEndpoints],
		retired: map[uint32]uint64{},
	}
	k.peers = peers{
		addresses: newTracker[netip.Prefix, bpf.WeirAddressKey, uint32](k, bpf.WeirMapAddresses, encodeAddress, decodeAddress),
		prefixes:  newTracker[netip.Prefix, bpf.WeirPrefixKey, uint32](k, bpf.WeirMapPrefixes, encodePrefix, decodePrefix),
		memory:    mapped[bpf.WeirMapPeers],
		atOnce:    addressesAtOnce,
	}
	k.services = services{
		keys:   newTracker[datapath.Frontend, bpf.WeirFrontendKey, uint32](k, bpf.SockMapServices, encodeFrontend, decodeFrontend),
		netns:  newTracker[uint64, uint64, uint32](k, bpf.SockMapNetnsEndpoints, same, same),
		lists:  mapped[bpf.SockMapServiceLists],
		memory: mapped[bpf.SockMapBackends],
		space:  extents{name: bpf.SockMapBackends, size: mapped[bpf.SockMapBackends].count},
	}
	return nil
}

func newTracker[K comparable, B any, V comparable](k *Kernel, name string, encode func(K) B, decode func(B) K) *tracker[K, B, V] {
	return &tracker[K, B, V]{name: name, m: k.maps[name], encode: encode, decode: decode}
}

// adopt takes what the kernel holds as applied.
func (k *Kernel) adopt() error {
	epoch := k.Epoch()
	for _, m := range []*memory{k.endpoints.memory, k.peers.memory} {
		for i := range m.count {
			slots{m.at(i)}.forgetAfter(epoch)
		}
	}
	if err := k.grace(); err != nil {
		return err
	}
	return errors.Join(
		k.facts.load(), k.masks.load(), k.frontends.load(), k.origins.load(), k.ways.load(), k.denied.load(), k.endpoints.numbers.load(),
		k.rulesets.load(k.tick), k.peers.load(k.tick), k.services.load(k.tick),
	)
}

// Close lets go of the maps; what they hold stays in force.
func (k *Kernel) Close() error {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.collectNow()
	k.background.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	for _, m := range k.opened {
		errs = append(errs, m.close())
	}
	for _, m := range k.maps {
		errs = append(errs, m.Close())
	}
	k.opened, k.maps, k.control = nil, nil, nil
	return errors.Join(errs...)
}

// Epoch returns the one in force.
func (k *Kernel) Epoch() uint64 { return k.control.load(controlEpoch) }

// Limits are half of what the maps hold, so that what leaves and what comes fit together.
// Single addresses of policies share a map with pods' and nodes'.
func (k *Kernel) Limits() (l datapath.Limits) {
	half := func(name string) int { return int(k.maps[name].MaxEntries()) / 2 }
	l.CIDRs = min(half(bpf.WeirMapPrefixes), half(bpf.WeirMapAddresses)/2)
	l.Addresses = half(bpf.WeirMapAddresses) - l.CIDRs
	l.Facts, l.Rulesets, l.ExactGroups = half(bpf.WeirMapFacts), half(bpf.WeirMapRulesets), half(bpf.WeirMapExactGroups)
	l.PortGroups, l.RuleIDs, l.Frontends = half(bpf.WeirMapPortGroups), half(bpf.WeirMapRuleIds), half(bpf.WeirMapFrontends)
	l.Spans, l.Masks = half(bpf.WeirMapPortSpans), half(bpf.WeirMapPeerMasks)
	l.Services, l.Backends = half(bpf.SockMapServices), half(bpf.SockMapBackends)
	return l
}

// Grace returns when no program that ran before the call runs any more.
func (k *Kernel) Grace() error { return k.wait() }
