package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
)

// A pod sends its first packets before its addresses are in its object: kubelet writes them
// there a second or so after the pod was started. Until then other nodes could not say who it
// is, and a policy that lets it in would drop them. So each agent says in a Lease of its own,
// before an ADD returns, which addresses the node's new pods have, and the others believe
// that of the node's own pods and podCIDRs, until the pod's object has addresses.
//
//	ADD --> agent --lease--> API server --watch--> other agents
//	ADD --> kubelet --pod's status, much later---^
const (
	leasePrefix   = "weir-" // and the node's name
	leaseLabel    = "app.kubernetes.io/name"
	leaseValue    = "weir"
	leaseSelector = leaseLabel + "=" + leaseValue
	announcedKey  = "weir/pods" // annotation: []Announced
	announcedMost = 256         // of a node, at a time
)

// Announced is a new pod's addresses.
type Announced struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	UID       types.UID    `json:"uid"`
	Addresses []netip.Addr `json:"addresses"`
}

func (p Announced) key() types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
}

// announcer writes this node's lease.
type announcer struct {
	mu      sync.Mutex
	pods    map[types.NamespacedName]Announced
	changes uint64

	sending sync.Mutex // held over a request
	sent    uint64     // changes that are in the lease
}

// Announce tells other nodes a new pod's addresses; they were told when it returns without
// an error. Calls that come while one is on its way go together.
func (s *Source) Announce(ctx context.Context, p Announced) error {
	a := &s.announcer
	a.mu.Lock()
	for key, other := range a.pods { // who had such an address is gone
		if slices.ContainsFunc(other.Addresses, func(had netip.Addr) bool { return slices.Contains(p.Addresses, had) }) {
			delete(a.pods, key)
		}
	}
	a.pods[p.key()] = p
	a.changes++
	mine := a.changes
	a.mu.Unlock()

	a.sending.Lock()
	defer a.sending.Unlock()
	if a.sent >= mine {
		return nil
	}
	pods, changes := s.unknown()
	if err := s.writeLease(ctx, pods); err != nil {
		return fmt.Errorf("tell other nodes the addresses of pod %s: lease %s/%s: %s", p.key(), s.AnnounceIn, leasePrefix+s.NodeName, reason(err))
	}
	a.sent = changes
	return nil
}

// unknown are the pods whose objects have no addresses yet.
func (s *Source) unknown() (out []Announced, changes uint64) {
	s.stores.Lock()
	defer s.stores.Unlock()
	s.announcer.mu.Lock()
	defer s.announcer.mu.Unlock()
	pods := s.announcer.pods
	maps.DeleteFunc(pods, func(key types.NamespacedName, p Announced) bool {
		object := s.stores.pods.get(key)
		return object == nil || object.UID != p.UID || len(object.Addresses) > 0
	})
	for _, p := range pods {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Announced) int { return strings.Compare(a.key().String(), b.key().String()) })
	return out[:min(len(out), announcedMost)], s.announcer.changes
}

func (s *Source) writeLease(ctx context.Context, pods []Announced) error {
	text, err := json.Marshal(pods)
	if err != nil {
		return err
	}
	lease := coordinationv1.Lease{
		TypeMeta: metav1.TypeMeta{APIVersion: coordinationv1.SchemeGroupVersion.String(), Kind: "Lease"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.AnnounceIn, Name: leasePrefix + s.NodeName,
			Labels: map[string]string{leaseLabel: leaseValue}, Annotations: map[string]string{announcedKey: string(text)},
			OwnerReferences: s.ownedByNode(),
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &s.NodeName},
	}
	body, err := json.Marshal(lease)
	if err != nil {
		return err
	}
	return s.Client.groups[coordinationv1.SchemeGroupVersion].Patch(types.ApplyPatchType).
		Namespace(s.AnnounceIn).Resource("leases").Name(lease.Name).
		Param("fieldManager", component).Param("force", "true").Body(body).Do(ctx).Error()
}

// ownedByNode has the lease go with the node.
func (s *Source) ownedByNode() []metav1.OwnerReference {
	s.stores.Lock()
	defer s.stores.Unlock()
	n := s.stores.nodes.get(named(s.NodeName))
	if n == nil {
		return nil
	}
	return []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}
}

// announced is what leases say of pods whose objects have no addresses yet.
type announced struct {
	said   map[types.NamespacedName][]Announced // by lease
	given  map[types.NamespacedName]*policy.Pod // pods that were handed out with announced addresses
	owners map[[16]byte]uint16                  // how many pods have an address by their objects
}

func newAnnounced() announced {
	return announced{map[types.NamespacedName][]Announced{}, map[types.NamespacedName]*policy.Pod{}, map[[16]byte]uint16{}}
}

// count who has an address; what was announced of a start that failed may still be there when
// the address is another's.
func (a *announced) count(was, is *policy.Pod) {
	for by, pod := range map[int]*policy.Pod{-1: was, 1: is} {
		if pod == nil || pod.Finished || pod.HostNetwork {
			continue
		}
		for _, at := range pod.Addresses {
			key := at.As16()
			if a.owners[key] += uint16(by); a.owners[key] == 0 {
				delete(a.owners, key)
			}
		}
	}
}

// addAnnounced gives pods the addresses that their nodes announced; the lock is held. A node
// is believed about pods of its own that have no address yet, and about its own podCIDRs.
func (s *stores) addAnnounced(c *policy.Changes) {
	a := &s.announced
	for key, lease := range s.leases.take() {
		var pods []Announced
		if lease == nil || json.Unmarshal([]byte(lease.Annotations[announcedKey]), &pods) != nil { // a stranger's
			delete(a.said, key)
			continue
		}
		a.said[key] = pods[:min(len(pods), announcedMost)]
	}
	given := map[types.NamespacedName]*policy.Pod{}
	for lease, pods := range a.said {
		var node *source.Node
		for _, p := range pods {
			pod := s.pods.get(p.key())
			if pod == nil || len(pod.Addresses) > 0 || !s.handed.namespaces[p.Namespace] {
				continue // most of what a lease says is known by now
			}
			if node == nil {
				if node = s.lastNodes.Named(strings.TrimPrefix(lease.Name, leasePrefix)); node == nil {
					break
				}
			}
			if p.isOf(pod, node.Name, node.PodCIDRs) && !slices.ContainsFunc(p.Addresses, func(x netip.Addr) bool { return a.owners[x.As16()] > 0 }) {
				given[p.key()] = p.at(pod)
			}
		}
	}
	for key, pod := range given {
		if was := a.given[key]; was != nil && c.Pods[key] == nil && slices.Equal(was.Addresses, pod.Addresses) {
			given[key] = was
		} else {
			c.Pods[key] = pod
		}
	}
	for key := range a.given {
		if _, handed := c.Pods[key]; given[key] == nil && !handed {
			c.Pods[key] = s.pods.get(key)
		}
	}
	a.given = given
}

func (p Announced) isOf(pod *policy.Pod, node string, ranges []netip.Prefix) bool {
	return pod != nil && pod.UID == p.UID && pod.NodeName == node && !pod.HostNetwork &&
		len(pod.Addresses) == 0 && !pod.Finished && len(p.Addresses) > 0 &&
		!slices.ContainsFunc(p.Addresses, func(a netip.Addr) bool {
			return !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) })
		})
}

// at is the pod with its addresses.
func (p Announced) at(pod *policy.Pod) *policy.Pod {
	out := *pod
	for _, a := range p.Addresses {
		out.Addresses = append(out.Addresses, a.Unmap())
	}
	return &out
}
