package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/datapath"
)

// wayfinder is a Router that can tell how packets get to other nodes' pods: the programs send
// them there past this node's stack.
type wayfinder interface {
	// Ways by range, as the kernel has them now, where it would do nothing else; why it would
	// elsewhere. On an error nothing is known.
	Ways(nodes *source.Nodes) (to map[netip.Prefix]datapath.Way, why []string, err error)
	// WatchWays calls changed after every change of what Ways looks at, until ctx is over (nil).
	WatchWays(ctx context.Context, changed func()) error
}

// ways are those to other nodes' pods. They are not changed.
type ways map[datapath.WayKey]datapath.Way

// waysEvery is how often they are looked at, at most.
const waysEvery = time.Second

// passed is what people are told of them; of a.mu.
type passed struct {
	nodes, others int      // whose pods are all reached past this node's stack, of those that have pods
	some          bool     // pods are
	why           []string // they are not all
	unseen        bool     // some for want of a program, which attachDevices may attach
}

// watchWays has the Router's ways looked at again when they may have changed. Without news they
// are by every look at the routes.
func (a *Agent) watchWays(ctx context.Context) error {
	f, ok := a.Router.(wayfinder)
	if !ok {
		return nil
	}
	err := f.WatchWays(ctx, func() {
		a.lookAgain()
		select {
		case <-ctx.Done():
		case <-time.After(waysEvery):
		}
	})
	if err != nil {
		a.Log.Error("changes of routes and rules are noticed late", "after", recheckMaps, "error", err)
	}
	return nil
}

// lookAgain has the ways looked at; a.mu need not be held.
func (a *Agent) lookAgain() {
	select {
	case a.routed.look <- struct{}{}:
	default:
	}
}

// knowWays sees to it that the first commit has the ways that there are already: flows that go by
// them would else go by the stack, which never heard of them.
func (a *Agent) knowWays() {
	f, ok := a.Router.(wayfinder)
	a.mu.Lock()
	update, known := a.input.update, a.input.ways != nil
	a.mu.Unlock()
	if !ok || known || update == nil || update.Nodes == nil {
		return
	}
	to, _, err := a.findWays(f, update.Nodes)
	if err != nil {
		a.Log.Error("look for the ways to other nodes' pods", "error", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.input.ways == nil {
		a.input.ways = &to
	}
}

// lookForWays commits the ways to these nodes, if they are others. Those that cannot be looked at
// stay.
func (a *Agent) lookForWays(nodes *source.Nodes) {
	f, ok := a.Router.(wayfinder)
	if !ok {
		return
	}
	to, p, err := a.findWays(f, nodes)
	a.mu.Lock()
	is := a.input.ways
	if err != nil {
		p = a.routed.passed
		p.why = []string{fmt.Sprintf("it cannot be looked at: %v", err)}
	}
	for _, w := range p.why {
		if !a.NoHostRouting && !slices.Contains(a.routed.passed.why, w) {
			a.Log.Warn("pods of other nodes are reached by this node's stack: " + w)
		}
	}
	a.routed.passed = p
	a.mu.Unlock()
	if err == nil && (is == nil || !maps.Equal(*is, to)) {
		a.change(func(in *input) { in.ways = &to })
	}
}

func (a *Agent) findWays(f wayfinder, nodes *source.Nodes) (ways, passed, error) {
	to, why, err := f.Ways(nodes)
	if err != nil {
		return nil, passed{}, err
	}
	a.hooked.busy.Lock()
	defer a.hooked.busy.Unlock()
	attached, err := a.Hooks.Attached()
	if err != nil {
		return nil, passed{}, err
	}
	seen := map[device]bool{}
	for _, at := range attached {
		switch at.Hook {
		case "from_network":
			seen[device{uint32(at.Ifindex), false}] = true
		case "from_tunnel":
			seen[device{uint32(at.Ifindex), true}] = true
		}
	}
	out, p, unseen := waysTo(nodes, to, seen)
	if p.unseen = len(unseen) > 0; len(why) > 0 {
		p.why = why // it says more
	}
	for _, d := range a.hooked.state.Devices { // none: nothing is attached yet
		if slices.Contains(unseen, uint32(d.Index)) {
			p.why = append(p.why, fmt.Sprintf("what comes from them by device %s the programs do not see first: name it an uplink (--uplink), "+
				"if it is a device of Ethernet that shares no bridge with pods", d.Name))
		}
	}
	return out, p, nil
}

// attached has the ways looked at where programs on devices may make a difference.
func (a *Agent) attached(changed bool) {
	a.mu.Lock()
	unseen := a.routed.passed.unseen
	a.mu.Unlock()
	if changed || unseen {
		a.lookAgain()
	}
}

// device is one that has the program for what comes in by it.
type device struct {
	ifindex uint32
	tunnel  bool
}

// waysTo are those by node, where all of its ranges of a family have the same and come back by it;
// unseen are devices that they have no program for.
func waysTo(nodes *source.Nodes, to map[netip.Prefix]datapath.Way, seen map[device]bool) (out ways, p passed, unseen []uint32) {
	out = ways{}
	for _, n := range nodes.Others {
		if len(n.PodCIDRs) == 0 {
			continue
		}
		whole := true
		for _, v6 := range []bool{false, true} {
			of := slices.DeleteFunc(slices.Clone(n.PodCIDRs), func(r netip.Prefix) bool { return r.Addr().Is6() != v6 })
			if len(of) == 0 {
				continue
			}
			way := to[of[0].Masked()]
			one := way.Addr.IsValid() && !slices.ContainsFunc(of, func(r netip.Prefix) bool { return to[r.Masked()] != way })
			if one && !seen[device{way.Ifindex, way.Tunnel}] {
				one = false
				if !slices.Contains(unseen, way.Ifindex) {
					unseen = append(unseen, way.Ifindex)
				}
			}
			if one {
				out[datapath.WayKey{Node: nodeNumber(n.Name), V6: v6}], p.some = way, true
			} else if i := slices.IndexFunc(of, func(r netip.Prefix) bool { return !to[r.Masked()].Addr.IsValid() }); i >= 0 && reached(n, to) {
				p.why = append(p.why, fmt.Sprintf("node %s: no route of Weir's leads to its pods %s", n.Name, of[i]))
			}
			whole = whole && one
		}
		p.others++
		if whole {
			p.nodes++
		}
	}
	return out, p, unseen
}

// reached reports whether a route of Weir's leads to some of a node's pods.
func reached(n source.Node, to map[netip.Prefix]datapath.Way) bool {
	return slices.ContainsFunc(n.PodCIDRs, func(r netip.Prefix) bool { return to[r.Masked()].Addr.IsValid() })
}

// namedWays is how many reasons are told one by one.
const namedWays = 3

// hostRouting is what status says of it, nil: other nodes are somebody else's matter; a.mu is held.
func (a *Agent) hostRouting() (s *api.HostRoutingStatus, warning string) {
	if _, ok := a.Router.(wayfinder); !ok {
		return nil, ""
	}
	s = &api.HostRoutingStatus{Path: api.PathBPF, Nodes: a.routed.passed.nodes, Others: a.routed.passed.others, Why: a.routed.passed.why}
	switch {
	case a.NoHostRouting:
		s.Path, s.Nodes, s.Why = api.PathStack, 0, []string{"--bpf-host-routing=false"}
	case !a.routed.passed.some && s.Others > 0:
		s.Path = api.PathStack
	}
	if a.NoHostRouting || len(s.Why) == 0 {
		return s, ""
	}
	why := s.Why[:min(namedWays, len(s.Why))]
	more := ""
	if n := len(s.Why) - len(why); n > 0 {
		more = fmt.Sprintf("; and %d more", n)
	}
	return s, fmt.Sprintf("pods of other nodes (all or some of those of %d of %d) are reached by this node's stack, at its speed: %s%s; change that, or say --bpf-host-routing=false if it is meant",
		s.Others-s.Nodes, s.Others, strings.Join(why, "; "), more)
}
