// Package agent joins what the node is told to enforce (a source of objects, endpoints
// from the CNI plugin, the node's own addresses) with its datapath: every change leads
// to one compilation of what it reaches and one commit.
//
//	source ---\
//	endpoints --> input -> compile -> save ids -> Kernel.Commit -> view -> answers
//	network ---/    ^                                |
//	                +------- again, with backoff <---+ on an error
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/controlplane/node"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/controlplane/statedir"
	"github.com/weirnet/weir/datapath"
)

// Source is where the cluster's objects come from.
type Source interface {
	// Run calls update with what the source holds, at first what it last held, and after
	// every change, until ctx is over (nil).
	Run(ctx context.Context, update func(source.Update)) error
	// Sync looks at once and returns the revision of what is there now, after update
	// was called with it.
	Sync(ctx context.Context) (revision uint64, err error)
}

// A source may have Warnings about itself, for people: what it reads from is away, say.
type warner interface{ Warnings() []string }

// Report is told after every attempt what came of an update. It is called by one
// goroutine and does not wait.
type Report func(*source.Update, *policy.Result)

// Committed is told how long an attempt to commit took, compilation and all, and what
// came of it. It does not wait.
type Committed func(took time.Duration, err error)

// Announce tells other nodes a new pod's addresses, before its object has them.
type Announce func(context.Context, *endpoint.Record) error

// Network is the node's network namespace.
type Network interface {
	// Watch calls changed with the state at first and after every change, until ctx is
	// over (nil).
	Watch(ctx context.Context, changed func(node.State)) error
	// Has reports whether the device of that index has that name.
	Has(ifindex uint32, name string) (bool, error)
}

// Config is what an Agent works with. StateDir, Source, Kernel, Hooks, Network and Log
// must be set.
type Config struct {
	StateDir *statedir.Dir
	Source   Source
	Kernel   datapath.Kernel
	Hooks    Hooks
	Network  Network
	Log      *slog.Logger

	NodeName        string
	Version         string
	BPFFSDir        string
	SourceName      string // where a missing pod should be written to, for messages
	ClusterCIDRs    []netip.Prefix
	NodeEgressAllow bool
	Uplinks         []string      // none: devices of default routes
	AddWait         time.Duration // how long an ADD waits for its pod; 0 = api.AddWaitMax
	Report          Report        // nil: nobody is told
	Committed       Committed     // nil: likewise
	CgroupRoot      string        // whose processes get Services translated; none = nobody's
	Sockets         Sockets       // nil: what backends leave behind stays
	Router          Router        // nil: other nodes are somebody else's matter
	NoHostRouting   bool          // the programs send nothing past this node's stack to other nodes' pods
	Announce        Announce      // nil: other nodes learn of a new pod from its object alone
	ShieldFile      string        // what the shield drops at the uplinks by source, a line an entry; none = nothing
	ShieldOff       bool          // and no uplink has it
	APIServer       string        // its name or address, which the shield lets in
	Recheck         time.Duration // how often the pinned state is looked at; 0 = hooks 5 s, maps 30 s

	// Unready says why the container runtime does not hand new pods to us; nil: it does.
	Unready func() []string
}

// Agent is a node's agent. Its methods may be called from any goroutine.
type Agent struct {
	Config
	started time.Time
	ready   chan struct{} // closed after the first commit was tried
	ids     *policy.Allocator
	records *endpoint.Store
	names   names
	hooked  hooked
	begin   beginning
	routed  routed
	shield  shielded

	// inc is what compiles, nil: everything is compiled anew; of the commit loop alone. What it
	// makes changes in place under live, which is locked before mu.
	inc    *policy.Incremental
	limits datapath.Limits // the kernel's when inc was made
	// refreshed are the objects that records say the same of; of the commit loop alone.
	refreshed map[*endpoint.Record]*policy.Pod
	live      sync.RWMutex
	people    peoples

	dirty    chan struct{} // has one element when there is something to commit
	saved    savedIDs      // of the commit loop alone
	versions versions      // of the commit loop alone
	seen     *node.State   // of networkChanged alone
	left     chan struct{} // has one element when backends went that sockets may be connected to

	lastNodes *source.Nodes // of sourceChanged alone
	sourced   bool          // likewise: it was called
	resent    atomic.Uint64 // parked frames that were sent again

	mu      sync.Mutex
	changed chan struct{} // closed, and made anew, when what follows changes
	input   input
	hosted  hosted
	last    attempt // the latest
	applied attempt // the latest that succeeded
	since   map[types.NamespacedName]policyRevision
	listed  []api.Policy // of since, nil: it changed
	notes   []string     // warnings about the start; not changed after New
}

// input is what is to be enforced.
type input struct {
	change  uint64 // counts changes
	update  *source.Update
	cluster *policy.Cluster // that of all updates; changes in place
	pending policy.Changes  // of cluster, since it was compiled
	network *node.State
	ways    *ways // nil: nobody has looked yet
}

// New reads the state directory. It changes nothing in the kernel.
func New(c Config) (*Agent, error) {
	if c.AddWait == 0 {
		c.AddWait = api.AddWaitMax
	}
	a := &Agent{
		Config: c, started: time.Now(), ready: make(chan struct{}), ids: policy.NewAllocator(),
		dirty: make(chan struct{}, 1), left: make(chan struct{}, 1), changed: make(chan struct{}), routed: routed{wake: make(chan struct{}, 1), look: make(chan struct{}, 1)},
		since: map[types.NamespacedName]policyRevision{}, input: input{cluster: &policy.Cluster{}}, hosted: hosted{},
		refreshed: map[*endpoint.Record]*policy.Pod{}, shield: shielded{wake: make(chan struct{}, 1)},
	}
	a.saved.dir = c.StateDir
	found, err := a.saved.load(a.ids)
	if err != nil {
		return nil, fmt.Errorf("%w: it says what the numbers in the kernel mean; to start anew remove %s and %s (all pods stop until they are added again)",
			err, c.StateDir.Path(), c.BPFFSDir)
	}
	if !found && c.Kernel.Epoch() > 1 {
		return nil, fmt.Errorf("%s is missing, and the maps in %s are in use (epoch %d): give the --state-dir they were made with, or remove %s to start anew",
			c.StateDir.Path(idsFile), c.BPFFSDir, c.Kernel.Epoch(), c.BPFFSDir)
	}
	if a.versions, err = openVersions(c.StateDir); err != nil {
		c.Log.Error("a policy's version in force is lost: if what it is now is refused, it isolates its pods", "error", err)
	}
	if a.records, err = endpoint.Open(c.StateDir); err != nil {
		c.Log.Error("an endpoint's record is lost, its pod is cut off until it is added again", "error", err)
		a.notes = append(a.notes, err.Error())
	}
	return a, nil
}

// Run enforces until ctx is over (nil) or its inputs fail. What is enforced stays when
// it returns. What the kernel holds is left as it is until the whole state to be
// enforced is known.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.collect(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var tasks sync.WaitGroup
	failed := make(chan error, 8)
	start := func(f func(context.Context) error) {
		tasks.Go(func() {
			if err := f(ctx); err != nil {
				failed <- err
				cancel()
			}
		})
	}
	start(func(ctx context.Context) error { return a.Network.Watch(ctx, a.networkChanged) })
	start(func(ctx context.Context) error { return a.Source.Run(ctx, a.sourceChanged) })
	start(a.commitLoop)
	start(a.recheck)
	if a.Sockets != nil {
		start(a.releaseSockets)
	}
	start(a.route)
	start(a.watchWays)
	start(a.keepShield)
	tasks.Wait()
	close(failed)
	var errs []error
	for err := range failed {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Ready is closed once the first commit was tried: before that the Agent has no answers.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// collect removes what belongs to pods that went while no agent ran, and attaches to
// those that stayed what they lost.
func (a *Agent) collect() error {
	for _, r := range a.records.All() {
		alive, err := a.Network.Has(r.HostIfindex, r.HostIfName)
		if err != nil {
			return err
		}
		if alive {
			continue
		}
		a.Log.Info("collect endpoint: its interface is gone", "endpoint", r.Number, "pod", r.Pod(), "interface", r.HostIfName)
		if err := errors.Join(a.records.Remove(r), a.Hooks.Detach(r.Pins())); err != nil {
			return fmt.Errorf("collect endpoint %d of pod %s: %w", r.Number, r.Pod(), err)
		}
	}
	return a.attachPods()
}

func (a *Agent) sourceChanged(u source.Update) {
	was, servers := a.lastNodes, false
	a.change(func(in *input) {
		changes := in.take(&u)
		_, servers = changes.EndpointSlices[apiServerSlice]
		if u.Nodes != nil { // an API server's: elsewhere a Pod object says of no node
			a.hosted.take(a.NodeName, changes.Pods, time.Now())
		}
	})
	if a.lastNodes = u.Nodes; u.Nodes != was {
		a.routeAgain()
	}
	if !a.sourced || u.Nodes != was || servers {
		a.sourced = true
		a.shieldAgain()
	}
}

// take an update, whose objects become the input's, and return what changes.
func (in *input) take(u *source.Update) *policy.Changes {
	changes := u.Changes
	if changes == nil {
		all := in.cluster.ChangesTo(u.Cluster)
		changes = &all
	}
	in.cluster.Apply(changes)
	in.pending.Add(changes)
	update := *u
	update.Cluster, update.Changes = nil, nil // they would be held in memory
	in.update = &update
	return changes
}

// networkChanged is called by one goroutine, and often: for every veth that comes or goes.
func (a *Agent) networkChanged(s node.State) {
	was := a.seen
	a.seen = &s
	if was == nil || !slices.Equal(was.Addresses, s.Addresses) {
		a.change(func(in *input) { in.network = &s })
		defer a.shieldAgain()
	}
	if was == nil || !slices.Equal(was.Devices, s.Devices) || !maps.Equal(was.PodSides, s.PodSides) {
		a.attachDevices(&s)
	}
	if was == nil || !slices.Equal(was.Addresses, s.Addresses) || !slices.Equal(was.Devices, s.Devices) {
		a.routeAgain()
	}
}

// change notes a change of the input, returns its number, and has it committed.
func (a *Agent) change(f func(*input)) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(&a.input)
	a.input.change++
	a.announce()
	select {
	case a.dirty <- struct{}{}:
	default:
	}
	return a.input.change
}

// announce wakes those in await; a.mu is held.
func (a *Agent) announce() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// await returns when done says so, or with its error, or when ctx is over. done is
// called with a.mu held, at first and after every change.
func (a *Agent) await(ctx context.Context, done func() (bool, error)) error {
	for {
		a.mu.Lock()
		ok, err := done()
		changed := a.changed
		a.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}
