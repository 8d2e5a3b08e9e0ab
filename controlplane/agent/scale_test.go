package agent

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/controlplane/statedir"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/randomcluster"
)

// crowd is an agent of a node with 110 pods in a large cluster, and whoever changes it. Its
// loop does not run: a commit is a call.
type crowd struct {
	*Agent
	t        testing.TB
	kernel   *countingKernel
	cluster  *policy.Cluster
	revision uint64
	spaces   int
	pods     int
}

// countingKernel takes everything and counts what it was told to look at.
type countingKernel struct {
	datapath.Fake
	keys, whole int
}

func (k *countingKernel) Commit(*datapath.State) (uint64, error) {
	k.whole++
	return 1, nil
}

func (k *countingKernel) CommitDelta(_ *datapath.State, d *datapath.Delta) (uint64, error) {
	k.keys += len(d.Peers) + len(d.Facts) + len(d.Rulesets) + len(d.Masks) + len(d.Frontends) + len(d.Services)
	return 2, nil
}

const crowdLocals = 110

// newCrowd is started: everything is committed.
func newCrowd(t testing.TB, pods, policies int) *crowd {
	t.Helper()
	dir := t.TempDir()
	state, err := statedir.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = state.Close() })
	c := &crowd{t: t, kernel: &countingKernel{}, pods: pods, spaces: pods / randomcluster.PodsOfNamespace}
	l := randomcluster.NewLarge(pods, policies, crowdLocals)
	c.cluster = l.Cluster
	network := &fakeNetwork{names: map[uint32]string{}}
	if c.Agent, err = New(Config{
		StateDir: state, Kernel: c.kernel, Network: network, Hooks: &fakeHooks{}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		NodeName: "here", SourceName: "DIR", ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	}); err != nil {
		t.Fatal(err)
	}
	for _, local := range l.Locals {
		req := request(fmt.Sprint("c", local.Number), local.Pod.String(), 100+local.Number)
		req.Addresses, req.MAC = []string{local.Endpoint.Addr4.String()}, "02:00:00:00:00:01"
		r, err := endpoint.FromRequest(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.records.Add(r.WithPod(l.Cluster.Pods[local.Pod]), func(uint32) bool { return false }); err != nil {
			t.Fatal(err)
		}
	}
	seen := network.state()
	c.input.network = &seen
	c.begin()
	return c
}

// begin is what a start does.
func (c *crowd) begin() {
	changes := (&policy.Cluster{}).ChangesTo(c.cluster)
	c.commit(changes)
}

// commit changes and has them committed.
func (c *crowd) commit(ch policy.Changes) {
	c.t.Helper()
	c.revision++
	c.sourceChanged(source.Update{Revision: c.revision, Changes: &ch})
	if _, err := c.Agent.commit(changes); err != nil {
		c.t.Fatal(err)
	}
}

// edit is a change and what takes it back.
type edit struct {
	name        string
	there, back policy.Changes
	facts       bool // its peer sets are new to this node: as many facts as identities in them
}

// edits are of one object each but the last, of objects that concern pods of this node.
func (c *crowd) edits() []edit {
	changes := func(objects ...any) (ch policy.Changes) {
		ch.Pods, ch.NetworkPolicies = map[types.NamespacedName]*policy.Pod{}, map[types.NamespacedName]*networkingv1.NetworkPolicy{}
		for _, o := range objects {
			switch o := o.(type) {
			case *policy.Pod:
				ch.Pods[types.NamespacedName{Namespace: o.Namespace, Name: o.Name}] = o
			case *networkingv1.NetworkPolicy:
				ch.NetworkPolicies[types.NamespacedName{Namespace: o.Namespace, Name: o.Name}] = o
			}
		}
		return ch
	}
	undone := func(ch policy.Changes) policy.Changes {
		clone := c.cluster.Clone()
		return clone.Apply(&ch)
	}
	of := func(name string, objects ...any) edit {
		ch := changes(objects...)
		return edit{name: name, there: ch, back: undone(ch)}
	}
	old := c.cluster.NetworkPolicies[types.NamespacedName{Namespace: "ns0", Name: "policy-0"}] // it selects the first pod here
	changed, added := old.DeepCopy(), old.DeepCopy()
	changed.Spec.Ingress[0].Ports[0].Port.IntVal = 9090
	added.Name = "added"
	fresh := randomcluster.LargePod(c.pods+c.spaces, c.spaces)
	relabelled := c.cluster.Pods[types.NamespacedName{Namespace: "ns0", Name: fmt.Sprint("pod-", c.spaces)}].Clone()
	relabelled.Labels["app"] = "app9"
	var events []any
	for i := range 100 {
		events = append(events, randomcluster.LargePod(c.pods+1000+i*7, c.spaces))
	}
	here := c.cluster.Pods[types.NamespacedName{Namespace: "ns0", Name: "pod-0"}].Clone()
	here.Labels["app"] = "app9"
	other := of("pod-here-relabelled", here)
	other.facts = true
	return []edit{
		of("policy-added", added), of("policy-changed", changed), of("pod-added", fresh), of("pod-relabelled", relabelled),
		other, of("100-pod-events", events...),
	}
}

// TestAChangeCostsTheSameInALargeCluster counts: what a change has the kernel look at, and
// what it allocates, must not grow with the cluster.
func TestAChangeCostsTheSameInALargeCluster(t *testing.T) {
	type cost struct{ keys, allocations float64 }
	measure := func(pods, policies int) map[string]cost {
		c, out := newCrowd(t, pods, policies), map[string]cost{}
		for _, e := range c.edits() {
			if e.facts {
				continue
			}
			const rounds = 5
			c.commit(e.there) // a first time: numbers are given out
			c.commit(e.back)
			before := c.kernel.keys
			allocations := testing.AllocsPerRun(rounds-1, func() {
				c.commit(e.there)
				c.commit(e.back)
			})
			out[e.name] = cost{float64(c.kernel.keys-before) / rounds, allocations}
		}
		if c.kernel.whole != 1 {
			t.Errorf("everything was committed %d times, not only at the start", c.kernel.whole)
		}
		return out
	}
	small, large := measure(2000, 200), measure(20_000, 2000)
	for name, s := range small {
		l := large[name]
		t.Logf("%-20s %4.0f keys, %6.0f allocations; in ten times as large a cluster %4.0f, %6.0f", name, s.keys, s.allocations, l.keys, l.allocations)
		if l.keys > s.keys || l.allocations > 1.1*s.allocations+20 {
			t.Errorf("%s: it costs more in a large cluster", name)
		}
	}
}

// BenchmarkAgent is what an agent spends on a change and on a start, in CPU time: others use
// the machine, too.
func BenchmarkAgent(b *testing.B) {
	for _, size := range [][2]int{{1000, 100}, {10_000, 1000}, {100_000, 10_000}} {
		var c *crowd
		b.Run(fmt.Sprintf("pods=%d/start", size[0]), func(b *testing.B) {
			for range b.N {
				before := heap()
				begun := cpu()
				c = newCrowd(b, size[0], size[1])
				b.ReportMetric(float64((cpu() - begun).Milliseconds()), "cpu-ms/op")
				b.ReportMetric(float64(heap()-before)/(1<<20), "MiB")
			}
		})
		if c == nil { // only some were asked for
			c = newCrowd(b, size[0], size[1])
		}
		for _, e := range c.edits() {
			b.Run(fmt.Sprintf("pods=%d/%s", size[0], e.name), func(b *testing.B) {
				c.t = b
				b.ReportAllocs()
				keys, begun := c.kernel.keys, cpu()
				for b.Loop() {
					c.commit(e.there)
					c.commit(e.back)
				}
				b.ReportMetric(float64((cpu()-begun).Microseconds())/float64(2*b.N), "cpu-us/change")
				b.ReportMetric(float64(c.kernel.keys-keys)/float64(2*b.N), "keys/change")
			})
		}
	}
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // pools and finalizers let go of what they hold at the second
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Who asks for revisions after every change gets the same list until a policy is another.
func TestPolicyRevisions(t *testing.T) {
	c := newCrowd(t, 2000, 200)
	holds := func() []api.Policy {
		t.Helper()
		c.people.took = 0 // so that Policies are made anew
		got, want := c.PolicyRevisions(), map[string]api.Policy{}
		for _, p := range c.Policies() {
			want[p.Namespace+"/"+p.Name] = p
		}
		if len(got) != len(want) || len(got) < 200 {
			t.Errorf("%d policies, want %d", len(got), len(want))
		}
		for _, p := range got {
			if w := want[p.Namespace+"/"+p.Name]; p.Kind != w.Kind || p.Revision != w.Revision || p.Ingress != w.Ingress || p.Egress != w.Egress {
				t.Errorf("%+v, want %+v", p, w)
			}
		}
		return got
	}
	first := holds()
	for _, e := range c.edits() {
		before := c.PolicyRevisions()
		c.commit(e.there)
		after := holds()
		if same := &before[0] == &after[0]; same != (len(e.there.NetworkPolicies) == 0) {
			t.Errorf("%s: the same list: %v", e.name, same)
		}
		c.commit(e.back)
	}
	if first[0].Revision != 1 {
		t.Errorf("a list that was handed out changed: %+v", first[0])
	}
}

// TestMemoryOfAPodElsewhere is what one costs the agent, its compiler and its names, with its object
// and its part of a Service; what the kernel's maps are known to have is not in it.
func TestMemoryOfAPodElsewhere(t *testing.T) {
	const most = 2200 // bytes; of them some 600 are labels, which a real source holds once for all
	held := func(pods int) uint64 {
		before := heap()
		c := newCrowd(t, pods, 20)
		used := heap() - before
		runtime.KeepAlive(c)
		return used
	}
	few, many := held(2000), held(22_000)
	each := (many - few) / 20_000
	t.Logf("%d bytes a pod", each)
	if each > most {
		t.Errorf("%d bytes a pod, at most %d are expected", each, most)
	}
}
