package differential

import (
	"fmt"
	"math/rand"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/randomcluster"
	"github.com/weirnet/weir/tests/testnode"
)

// rig is a node with random pods, the cluster it enforces, and what was asked of it.
type rig struct {
	options Options
	judges  []func(policy.Tuple) Opinion // of the cluster in force, as its review and rulings
	review  func(policy.Tuple, policy.Answer) error
	rulings map[policy.Tuple]*ruling

	rand    *rand.Rand
	world   *randomcluster.World
	node    *testnode.Node
	uplink  int
	hooks   map[string]*testnode.Hook
	tables  *testnode.Tables
	ids     *policy.Allocator
	damage  func(*datapath.State) // done to every State on its way in, to show that it is noticed
	cluster *policy.Cluster       // in force, with its State and epoch
	state   *datapath.State
	epoch   uint64

	port      uint16 // source port given out last
	templates map[template][]byte
	old       []*question
	denied    map[bpf.WeirDenialCountKey]uint64
	events    *events
	tally     tally
}

func newRig(t *testing.T, seed int64, o Options) *rig {
	t.Helper()
	r := &rig{
		options: o,
		rand:    newRand(seed), port: 1023, ids: policy.NewAllocator(), hooks: map[string]*testnode.Hook{},
		templates: map[template][]byte{}, denied: map[bpf.WeirDenialCountKey]uint64{},
	}
	r.world = randomcluster.New(r.rand)
	idle := 10 * time.Minute // longer than any node is asked: which flows are known depends on no clock
	r.node = testnode.New(t, loader.Config{
		NodeEgressAllow: r.world.Node.NodeEgressAllow, Sizes: loader.Sizes{"flows": 1 << 18},
		Timeouts: loader.Timeouts{SYN: idle, TCP: idle, Closing: idle, UDP: idle, UDPStream: idle, ICMP: idle, Other: idle},
	})
	for i := range r.world.Locals {
		ep := &r.world.Locals[i].Endpoint
		ep.Ifindex = uint32(r.node.AddDevice(t, fmt.Sprint("pod", i+1)))
		ep.MAC = [6]byte{2, 0, 0, 0, 0, byte(i + 1)}
		ep.NoRedirect = r.rand.Intn(4) == 0
	}
	r.uplink = r.node.AddDevice(t, "uplink")
	if err := r.node.Do(r.addressUplink); err != nil {
		t.Fatal(err)
	}
	r.open(t)
	return r
}

// addressUplink gives it the hardware address that all frames have.
func (r *rig) addressUplink() error {
	link, err := netlink.LinkByIndex(r.uplink)
	if err != nil {
		return err
	}
	return netlink.LinkSetHardwareAddr(link, net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee})
}

// otherNode is that of all pods that are not this node's.
const otherNode = 2

// lead has ways to the other node by the uplink.
func (r *rig) lead(s *datapath.State) {
	s.Origins, s.Ways = map[netip.Prefix]datapath.Origin{}, map[datapath.WayKey]datapath.Way{}
	for _, x := range r.world.Node.ClusterCIDRs {
		s.Origins[x.Masked()] = datapath.Origin{Node: otherNode}
	}
	for _, a := range r.world.Node.RemoteNodes {
		s.Origins[netip.PrefixFrom(a, a.BitLen())] = datapath.Origin{Node: otherNode, Address: true}
	}
	for _, v6 := range []bool{false, true} {
		s.Ways[datapath.WayKey{Node: otherNode, V6: v6}] = datapath.Way{Ifindex: uint32(r.uplink), MTU: 1500, Addr: netip.MustParseAddr("192.0.2.2")}
	}
}

// mayPassStack reports whether a flow that p begins goes past the node's stack, to or from the other node.
// The table is too new for datagrams.
func (r *rig) mayPassStack(p packet) bool {
	local, other, end := p.from, p.to, p.tuple.To
	if p.way == toPod {
		local, other, end = p.to, p.from, p.tuple.From
	}
	if p.way != toPod && p.way != fromPod || local.Local == 0 || other.Local != 0 || other.Node || r.world.Locals[local.Local-1].Endpoint.NoRedirect {
		return false
	}
	if p.tuple.Protocol == datapath.TCP && p.flags != "" && p.flags != "S" || p.tuple.Protocol != datapath.TCP && !p.icmp() {
		return false
	}
	inside := slices.ContainsFunc(r.world.Node.ClusterCIDRs, func(x netip.Prefix) bool { return x.Contains(end.Addr) })
	return inside && !slices.Contains(r.world.Node.RemoteNodes, end.Addr)
}

func (r *rig) open(t *testing.T) {
	t.Helper()
	var err error
	for _, name := range []string{"from_pod", "to_pod", "to_network", "from_network"} {
		if r.hooks[name], err = r.node.Hook(name); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.hooks[name].Close() })
	}
	if r.tables, err = r.node.Tables(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.tables.Close() })
	r.events = openEvents(t, r.node.Config.BPFFSDir)
}

// next puts another cluster in force: one thing edited, or everything new; and now and then
// the programs and maps are opened anew, as a starting agent does.
func (r *rig) next(t *testing.T) {
	t.Helper()
	if r.cluster != nil {
		if r.rand.Intn(2) == 0 {
			r.world.Edit()
		} else {
			r.world.Renew()
		}
	}
	if r.rand.Intn(25) == 0 {
		r.node.Load(t)
		r.tally.restarts++
	}
	if err := r.commit(r.world.Cluster); err != nil {
		t.Fatal(err)
	}
}

// commit puts a cluster in force.
func (r *rig) commit(c *policy.Cluster) error {
	result := policy.Compile(c, r.world.Node, r.world.Locals, r.ids)
	if len(result.Errors) > 0 {
		return fmt.Errorf("the cluster is refused: %v", result.Errors)
	}
	r.lead(result.State)
	if r.damage != nil {
		r.damage(result.State)
	}
	epoch, err := r.node.Kernel.Commit(result.State)
	if err != nil {
		return err
	}
	r.cluster, r.state, r.epoch = c, result.State, epoch
	r.consult()
	r.tally.sets++
	if result.State.Size().Spans > 0 {
		r.tally.masked++
	}
	return nil
}

// consult has the judges read the cluster in force.
func (r *rig) consult() {
	r.judges, r.review, r.rulings = nil, nil, map[policy.Tuple]*ruling{}
	for _, j := range r.options.Judges {
		r.judges = append(r.judges, j.Take(r.cluster, r.world.Node))
	}
	if r.options.Review != nil {
		r.review = r.options.Review(r.cluster, r.world.Node)
	}
}

// questions are some for every pair of places.
func (r *rig) questions() []*question {
	var out []*question
	for _, from := range r.world.Places {
		for _, to := range r.world.Places {
			for range 8 {
				tuple, ok := r.world.Tuple(from, to)
				if !ok || from.Local == 0 && to.Local == 0 {
					continue
				}
				out = append(out, r.question(tuple, from, to))
			}
		}
	}
	return out
}

// freshPort is one that no flow of the last minute has.
func (r *rig) freshPort() uint16 {
	if r.port++; r.port < 1024 {
		r.port = 1024
	}
	return r.port
}

func (r *rig) ifindex(p randomcluster.Place) int {
	return int(r.world.Locals[p.Local-1].Endpoint.Ifindex)
}

// unmanaged reports whether an address is in the cluster's ranges and nobody's.
func (r *rig) unmanaged(p randomcluster.Place, a netip.Addr) bool {
	if r.cluster.Pods[p.Pod] != nil || p.Node {
		return false
	}
	for _, n := range r.world.Node.RemoteNodes {
		if n == a {
			return false
		}
	}
	for _, c := range r.world.Node.ClusterCIDRs {
		if c.Contains(a) {
			return true
		}
	}
	return false
}
