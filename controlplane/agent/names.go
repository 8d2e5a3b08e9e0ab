package agent

import (
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/identity"
)

// names is who has which number and address: as of the latest attempt, shown before its
// commit so that no event comes from an endpoint without a name, and of the commit
// before it, for events that the kernel wrote until then.
type names struct {
	now, before atomic.Pointer[directory]
}

// directory is the names of one attempt; it is never changed.
type directory struct {
	endpoints map[uint32]*flowlog.Party
	peers     map[netip.Addr]peerName
	services  map[netip.Addr]*flowlog.Ref
	node      *flowlog.Party

	interfaces map[uint32]string // of pods, by index
}

type peerName struct {
	party    *flowlog.Party
	identity identity.Number
}

var _ flowlog.Names = (*Agent)(nil)

// Endpoint implements flowlog.Names.
func (a *Agent) Endpoint(number uint32) *flowlog.Party {
	for _, d := range []*directory{a.names.now.Load(), a.names.before.Load()} {
		if d != nil && d.endpoints[number] != nil {
			return d.endpoints[number]
		}
	}
	return nil
}

// Peer implements flowlog.Names.
func (a *Agent) Peer(addr netip.Addr, n identity.Number) *flowlog.Party {
	for _, d := range []*directory{a.names.now.Load(), a.names.before.Load()} {
		if d == nil {
			continue
		}
		if n == identity.Host {
			return d.node
		}
		if p, ok := d.peers[addr.Unmap()]; ok && p.identity == n {
			return p.party
		}
	}
	return nil
}

// Service implements flowlog.Names.
func (a *Agent) Service(addr netip.Addr) *flowlog.Ref {
	for _, d := range []*directory{a.names.now.Load(), a.names.before.Load()} {
		if d != nil && d.services[addr] != nil {
			return d.services[addr]
		}
	}
	return nil
}

// Interface implements flowlog.Names.
func (a *Agent) Interface(index uint32) string {
	for _, d := range []*directory{a.names.now.Load(), a.names.before.Load()} {
		if d != nil && d.interfaces[index] != "" {
			return d.interfaces[index]
		}
	}
	return ""
}

// Rule implements flowlog.Names.
func (a *Agent) Rule(id uint32) (policy.Rule, bool) { return a.ids.Rule(id) }

// show the names of t beside those in force.
func (n *names) show(t, inForce *attempt, records []*endpoint.Record) {
	t.directory = newDirectory(t)
	for _, r := range records {
		t.directory.interfaces[r.HostIfindex] = r.HostIfName
	}
	n.now.Store(t.directory)
	n.before.Store(inForce.directory)
}

func newDirectory(t *attempt) *directory {
	d := &directory{
		endpoints:  map[uint32]*flowlog.Party{},
		peers:      map[netip.Addr]peerName{},
		services:   servicesOf(t.cluster),
		interfaces: map[uint32]string{},
		node:       &flowlog.Party{Name: t.node.Name},
	}
	parties := map[types.NamespacedName]*flowlog.Party{}
	party := func(name types.NamespacedName) *flowlog.Party {
		if parties[name] == nil {
			parties[name] = partyOf(t.cluster, name)
		}
		return parties[name]
	}
	for number, e := range t.result.Endpoints {
		d.endpoints[number] = party(e.Pod)
	}
	for addr, name := range t.result.Names {
		d.peers[addr] = peerName{party(name), t.result.State.Peers[identity.Single(addr)].Identity}
	}
	return d
}

func partyOf(c *policy.Cluster, name types.NamespacedName) *flowlog.Party {
	p := &flowlog.Party{Namespace: name.Namespace, Name: name.Name}
	labels := identity.Labels{Namespace: name.Namespace, NamespaceLabels: map[string]string{}}
	if ns := c.Namespaces[name.Namespace]; ns != nil {
		labels.NamespaceLabels = maps.Clone(ns.Labels)
	}
	if labels.NamespaceLabels == nil {
		labels.NamespaceLabels = map[string]string{}
	}
	labels.NamespaceLabels[corev1.LabelMetadataName] = name.Namespace
	if pod := c.Pods[name]; pod != nil {
		labels.PodLabels = pod.Labels
	}
	p.Labels = slices.Clip(labels.Strings())
	p.Workload = workloadOf(c.Pods[name])
	return p
}

// cronJob is how a CronJob names its Jobs: by the minute they are of.
var cronJob = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// workloadOf is what made a pod. A ReplicaSet named by a Deployment stands for that, and a
// Job by a CronJob.
func workloadOf(pod *corev1.Pod) flowlog.Workload {
	if pod == nil {
		return flowlog.Workload{}
	}
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return flowlog.Workload{}
	}
	if cron := cronJob.FindStringSubmatch(owner.Name); owner.Kind == "Job" && cron != nil {
		return flowlog.Workload{Kind: "CronJob", Name: cron[1]}
	}
	if hash := pod.Labels[appsv1.DefaultDeploymentUniqueLabelKey]; owner.Kind == "ReplicaSet" && hash != "" {
		if name, ok := strings.CutSuffix(owner.Name, "-"+hash); ok {
			return flowlog.Workload{Kind: "Deployment", Name: name}
		}
	}
	return flowlog.Workload{Kind: owner.Kind, Name: owner.Name}
}

// servicesOf are the addresses of Services. One that several name is the first's by name.
func servicesOf(c *policy.Cluster) map[netip.Addr]*flowlog.Ref {
	out := map[netip.Addr]*flowlog.Ref{}
	for name, s := range c.Services {
		ref := &flowlog.Ref{Namespace: name.Namespace, Name: name.Name}
		texts := slices.Concat([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs, s.Spec.ExternalIPs)
		for _, in := range s.Status.LoadBalancer.Ingress {
			texts = append(texts, in.IP)
		}
		for _, text := range texts {
			a, err := netip.ParseAddr(text) // "None" of a headless one, "" of one that has none yet
			if err != nil {
				continue
			}
			if other := out[a.Unmap()]; other == nil || ref.String() < other.String() {
				out[a.Unmap()] = ref
			}
		}
	}
	return out
}
