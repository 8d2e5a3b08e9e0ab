package conformance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/lab"
)

const (
	enforceTime = 30 * time.Second     // for a step's content to be enforced
	countTime   = 2 * time.Millisecond // between two looks at the kernel's counts
)

// rig is a node with its agent, and the cluster that it was last told of.
type rig struct {
	node   *lab.Node
	agent  *api.Client
	files  map[string]string // in the agent's directory
	pods   map[types.NamespacedName]*pod
	wave   uint16 // number of the last
	status api.Status

	patience time.Duration // for a wave's answers to come, and then for its drops to be counted
	waves    int           // tries, if something is missing

	asked, denied, repeated int // questions, those that were denied, waves that had to be repeated
}

// newRig builds a node, with its agent and nothing else. Pods' addresses begin shortly below
// a multiple of 16, so that an exception of 16 addresses holds some of them and not all.
func newRig(ctx context.Context, run, bin string) (*rig, error) {
	n, err := lab.Up(lab.Options{Prefix: run + "-", Run: "/run/" + run, Bin: bin, RangeFirst: 11})
	if err != nil {
		return nil, err
	}
	r := &rig{
		node: n, agent: api.Dial(n.StateDir()), files: map[string]string{}, pods: map[types.NamespacedName]*pod{},
		patience: 5 * time.Second, waves: 8,
	}
	if err := n.StartAgent(ctx); err != nil {
		return nil, errors.Join(err, n.Down())
	}
	return r, nil
}

func (r *rig) down() error {
	for _, p := range r.pods {
		p.close()
	}
	return r.node.Down()
}

// enforce makes the node hold a cluster, whatever it held before, fills in its pods'
// addresses and returns when all of it is enforced.
func (r *rig) enforce(ctx context.Context, c *cluster) error {
	if err := r.detach(ctx, c); err != nil {
		return err
	}
	if err := r.write(c); err != nil {
		return err
	}
	if err := r.attach(ctx, c); err != nil {
		return err
	}
	var err error
	r.status, err = r.agent.Status(ctx, enforceTime)
	return err
}

func (r *rig) detach(ctx context.Context, c *cluster) error {
	for name, p := range r.pods {
		if c.Pods[name] != nil {
			continue
		}
		p.close()
		delete(r.pods, name)
		if err := r.node.DelPod(ctx, p.Pod); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) write(c *cluster) error {
	want, err := c.files()
	if err != nil {
		return err
	}
	for name := range r.files {
		if _, ok := want[name]; !ok {
			if err := r.node.Remove(name); err != nil {
				return err
			}
		}
	}
	for name, text := range want {
		if r.files[name] != text {
			if err := r.node.Write(name, text); err != nil {
				return err
			}
		}
	}
	r.files = want
	return nil
}

func (r *rig) attach(ctx context.Context, c *cluster) error {
	for _, name := range c.podNames() {
		p := r.pods[name]
		if p == nil {
			var err error
			if p, err = r.add(ctx, name); err != nil {
				return err
			}
		}
		c.Pods[name].Addresses = []netip.Addr{netip.MustParseAddr(p.Addr4), netip.MustParseAddr(p.Addr6)}
	}
	return nil
}

// add attaches a pod; as a runtime does, it tries again when the plugin asks for that.
func (r *rig) add(ctx context.Context, name types.NamespacedName) (*pod, error) {
	limit := time.Now().Add(enforceTime)
	for {
		attached, err := r.node.AddPod(ctx, name.Namespace, name.Name)
		if lab.CNICode(err) == api.CodeTryLater && time.Now().Before(limit) {
			continue
		}
		if err != nil {
			return nil, err
		}
		p, err := newPod(attached)
		if err == nil {
			r.pods[name] = p
		}
		return p, err
	}
}

// probe asks all questions until nothing is left open, or one was answered that must not
// be, and returns the last wave. The error tells of the asking, and of drops that do not add
// up.
func (r *rig) probe(ctx context.Context, expected []expectation) (*wave, error) {
	var wrong error
	for try := range r.waves {
		w, dropped, err := r.once(ctx, expected)
		if err != nil {
			return w, err
		}
		if try > 0 {
			r.repeated++
		}
		wrong = nil
		if want := uint64(w.denied()); dropped != want {
			wrong = fmt.Errorf("the kernel counts %d packets dropped by policy, %d questions had to be", dropped, want)
		}
		if w.trespassed() || wrong == nil && w.missing.Load() == 0 {
			r.asked += len(expected)
			r.denied += w.denied()
			return w, wrong
		}
		if try == r.waves-1 {
			return w, wrong
		}
	}
	return nil, wrong
}

// once is one wave; dropped is what the kernel counted of it.
func (r *rig) once(ctx context.Context, expected []expectation) (w *wave, dropped uint64, err error) {
	before, err := r.drops(ctx)
	if err != nil {
		return nil, 0, err
	}
	r.wave++
	w = newWave(r.wave, expected)
	end := w.ask(r.pods)
	w.await(r.patience)
	for limit := time.Now().Add(r.patience); ; time.Sleep(countTime) {
		now, countErr := r.drops(ctx)
		dropped = now - before
		if err = countErr; err != nil || dropped >= uint64(w.denied()) || time.Now().After(limit) {
			break
		}
	}
	return w, dropped, errors.Join(err, end())
}

func (r *rig) drops(ctx context.Context) (uint64, error) {
	s, err := r.agent.Status(ctx, 0)
	return s.Drops[datapath.ReasonPolicy.String()], err
}

// trespassed reports whether something was answered that must not be.
func (w *wave) trespassed() bool {
	for i, e := range w.expected {
		if !e.allowed() && w.answerOf(i) != lab.Silent {
			return true
		}
	}
	return false
}
