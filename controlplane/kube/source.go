// Package kube is the cluster as an API server has it. It watches what policy is made
// from and hands out what changes of it, as package source does of a directory; it tells the
// owners of objects, by events on them, what of them is not enforced.
//
//	API server --watch--> tap -----------------> strip -> store --Changes--> Update
//	                        \-> reflector (lists, ends) /   (one per kind)
//
// A store changes only by what the API server says: while it does not answer, or refuses,
// everything stays as it was last seen. It is the only importer of client-go.
package kube

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
)

const (
	joinTime   = 2 * time.Millisecond  // changes closer than this are one update
	churning   = 50 * time.Millisecond // those of pods elsewhere, once they come without a pause
	pauseLeast = 20 * time.Millisecond // what is none
	churnAfter = 8                     // updates without a pause
	waitFirst  = 5 * time.Second       // until it is said what an agent that starts waits for
	waitMost   = time.Minute           // until it is said again
)

// Config is what a Source works with; all but AnnounceIn must be set.
type Config struct {
	Client   *Client
	NodeName string
	Log      *slog.Logger
	// AnnounceIn is the namespace of the leases in which agents tell each other of new pods; "": they
	// do not.
	AnnounceIn string
}

// Source is the API server's objects. One Run; the other methods from anywhere.
type Source struct {
	Config
	stores    *stores
	health    *health
	ended     chan struct{} // closed when Run returns
	announcer announcer

	// With the stores' lock held.
	base      uint64        // what revisions begin with; 0: nothing is published
	published uint64        // changes that are
	revision  uint64        // the last one published
	nodes     *source.Nodes // of that
}

// New makes a Source that knows nothing yet.
func New(c Config) *Source {
	s := &Source{Config: c, stores: newStores(), health: newHealth(c.Client.Host, c.Log), ended: make(chan struct{}),
		announcer: announcer{pods: map[types.NamespacedName]Announced{}}}
	s.health.inPod = c.Client.InPod
	s.stores.pods.patient = func(p *policy.Pod) bool { return p.NodeName != c.NodeName }
	return s
}

// Run calls update with everything, once all of it was read and the node is in it, then
// after every change, one call at a time, until ctx is over (nil). The first change after
// a quiet time is handed on at once, those within 2 ms of it together. Where pods of other nodes
// come and go without a pause, as in a large cluster, they are handed on 20 times a second; anything
// else still at once, and what waits with it.
func (s *Source) Run(ctx context.Context, update func(source.Update)) error {
	defer close(s.ended)
	s.watchAll(ctx)
	s.handOn(ctx, update)
	return nil
}

func (s *Source) handOn(ctx context.Context, update func(source.Update)) {
	begun, pause := time.Now(), waitFirst
	waiting := time.NewTimer(pause)
	defer waiting.Stop()
	churn := 0
	for {
		idle := time.Now()
		select {
		case <-ctx.Done():
			return
		case <-waiting.C:
			s.Log.Warn("waits for the API server; what is in force stays, nothing new is enforced",
				"since", begun.Format(time.TimeOnly), "why", strings.Join(s.missing(), "; "))
			pause = min(3*pause, waitMost)
			waiting.Reset(pause)
			continue
		case <-s.stores.wake:
		}
		if churn++; time.Since(idle) > pauseLeast {
			churn = 0
		}
		select { // whatever pressed is in what is published now
		case <-s.stores.pressed:
		default:
		}
		if s.publish(update) {
			waiting.Stop()
		}
		begun := time.Now()
		if churn >= churnAfter {
			join(ctx, churning, s.stores.pressed)
		}
		if rest := joinTime - time.Since(begun); rest > 0 {
			join(ctx, rest, nil)
		}
	}
}

// join waits for what is handed on together, unless something presses.
func join(ctx context.Context, most time.Duration, pressed <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-pressed:
	case <-time.After(most):
	}
}

// publish what the stores hold; false: it is not complete yet.
func (s *Source) publish(update func(source.Update)) bool {
	s.stores.Lock()
	if s.base == 0 && len(s.lacking()) > 0 {
		s.stores.Unlock()
		return false
	}
	changes := s.stores.changes
	if s.base > 0 && changes == s.published {
		s.stores.Unlock()
		return true
	}
	differs, nodes := s.stores.takeChanges(s.NodeName)
	if s.base == 0 {
		s.base = s.stores.firstRevision(changes)
	}
	u := source.Update{Revision: s.base + changes, Changes: differs, Errors: []api.ObjectError{}, Nodes: nodes}
	s.stores.Unlock()

	s.sayNodes(nodes)
	update(u)

	s.stores.Lock()
	defer s.stores.Unlock()
	s.published, s.revision, s.nodes = changes, u.Revision, nodes
	s.stores.touch(false)
	return true
}

// lacking is what is not there that a first update needs; the lock is held.
func (s *Source) lacking() (out []string) {
	for _, k := range s.stores.kinds() {
		if !k.store.filled() {
			out = append(out, k.resource)
		}
	}
	if _, ok := s.stores.nodes.objects[named(s.NodeName)]; !ok && s.stores.nodes.synced {
		out = append(out, fmt.Sprintf("a Node %q, as --node-name says (there are %d others)", s.NodeName, len(s.stores.nodes.objects)))
	}
	return out
}

// missing is why nothing was published yet.
func (s *Source) missing() []string {
	s.stores.Lock()
	lacking := s.lacking()
	s.stores.Unlock()
	out := s.health.lines()
	if len(lacking) > 0 {
		out = append(out, s.health.waits(lacking))
	}
	return out
}

// awaitPublished returns the revision of all that the stores hold now.
func (s *Source) awaitPublished(ctx context.Context) (revision uint64, err error) {
	s.stores.Lock()
	changes := s.stores.changes
	s.stores.press()
	s.stores.Unlock()
	err = s.await(ctx, func() bool {
		revision = s.revision
		return s.base > 0 && s.published >= changes
	})
	return revision, err
}

// Warnings are what people should know about the source itself.
func (s *Source) Warnings() []string {
	s.stores.Lock()
	if s.base == 0 {
		s.stores.Unlock()
		return s.missing()
	}
	nodes := s.nodes
	services := serviceWarning(nodes, s.stores.services.objects)
	s.stores.Unlock()
	return slices.Concat(s.health.lines(), nodeWarnings(nodes, s.NodeName), services)
}

// sayNodes logs what is new about the nodes; of Run's goroutine alone.
func (s *Source) sayNodes(now *source.Nodes) {
	if now == s.nodes {
		return
	}
	said := map[string]bool{}
	for _, line := range nodeWarnings(s.nodes, s.NodeName) {
		said[line] = true
	}
	for _, line := range nodeWarnings(now, s.NodeName) {
		if !said[line] {
			s.Log.Warn(line)
		}
	}
}
