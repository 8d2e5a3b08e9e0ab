package oracle

import (
	"context"
	"net"

	"k8s.io/apimachinery/pkg/runtime"
	coreinformers "k8s.io/client-go/informers/core/v1"
	networkinginformers "k8s.io/client-go/informers/networking/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/kube-network-policies/pkg/api"
	"sigs.k8s.io/kube-network-policies/pkg/network"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/differential"
)

var kubeNetworkPolicies = differential.Judge{Name: "kube-network-policies", Take: takeKubeNetworkPolicies}

func takeKubeNetworkPolicies(c *policy.Cluster, n policy.Node) func(policy.Tuple) differential.Opinion {
	store := newStill()
	for _, np := range c.NetworkPolicies {
		store.add(defaulted(np))
	}
	evaluator := networkpolicy.NewStandardNetworkPolicy("", namespaces{store}, pods{store}, policies{store})
	infos := map[*policy.Pod]*api.PodInfo{}
	info := func(p party) *api.PodInfo {
		if p.pod == nil {
			return nil
		}
		i := infos[p.pod]
		if i == nil {
			i = api.NewPodInfo(p.pod.Object(), namespaceLabels(c, p.pod.Namespace), nil, "")
			infos[p.pod] = i
		}
		return i
	}
	ctx := context.Background()
	return func(t policy.Tuple) (o differential.Opinion) {
		from, to := parties(c, t)
		source, destination := info(from), info(to)
		packet := &network.Packet{SrcIP: net.ParseIP(from.addr), DstIP: net.ParseIP(to.addr), SrcPort: 40000, DstPort: int(t.Port), Proto: protocol(t)}
		egress, err := evaluator.EvaluateEgress(ctx, packet, source, destination)
		if err != nil {
			panic(err)
		}
		ingress, err := evaluator.EvaluateIngress(ctx, packet, source, destination)
		if err != nil {
			panic(err)
		}
		o[datapath.Egress].Allows, o[datapath.Ingress].Allows = egress != api.VerdictDeny, ingress != api.VerdictDeny
		silence(&o, n, from, to)
		return o
	}
}

// still is an informer's store that nothing changes.
type still struct {
	cache.SharedIndexInformer // the rest is not asked for
	indexer                   cache.Indexer
}

func newStill() still {
	return still{indexer: cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})}
}

func (s still) add(o runtime.Object) {
	if err := s.indexer.Add(o); err != nil {
		panic(err)
	}
}

func (s still) AddEventHandler(cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return nil, nil
}

func (s still) HasSynced() bool { return true }

type (
	namespaces struct{ still }
	pods       struct{ still }
	policies   struct{ still }
)

var (
	_ coreinformers.NamespaceInformer           = namespaces{}
	_ coreinformers.PodInformer                 = pods{}
	_ networkinginformers.NetworkPolicyInformer = policies{}
)

func (s namespaces) Informer() cache.SharedIndexInformer { return s.still }
func (s pods) Informer() cache.SharedIndexInformer       { return s.still }
func (s policies) Informer() cache.SharedIndexInformer   { return s.still }

func (s namespaces) Lister() corelisters.NamespaceLister {
	return corelisters.NewNamespaceLister(s.indexer)
}
func (s pods) Lister() corelisters.PodLister { return corelisters.NewPodLister(s.indexer) }
func (s policies) Lister() networkinglisters.NetworkPolicyLister {
	return networkinglisters.NewNetworkPolicyLister(s.indexer)
}
