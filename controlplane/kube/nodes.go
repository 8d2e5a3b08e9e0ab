package kube

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/source"
)

// nodesOf sorts the cluster's nodes into this one and the others.
func nodesOf(all map[types.NamespacedName]*corev1.Node, own string) *source.Nodes {
	out := &source.Nodes{}
	for _, n := range all {
		node := source.Node{Name: n.Name, PodCIDRs: podCIDRs(n)}
		for _, a := range n.Status.Addresses {
			if addr, err := netip.ParseAddr(a.Address); err == nil {
				node.Addresses = append(node.Addresses, addr.Unmap())
			}
		}
		out.PodCIDRs = append(out.PodCIDRs, node.PodCIDRs...)
		if n.Name == own {
			out.Own = &node
			continue
		}
		out.Others = append(out.Others, node)
	}
	slices.SortFunc(out.Others, func(a, b source.Node) int { return strings.Compare(a.Name, b.Name) })
	for _, n := range out.Others {
		out.OtherAddresses = append(out.OtherAddresses, n.Addresses...)
	}
	out.PodCIDRs = merge(out.PodCIDRs)
	return out
}

func podCIDRs(n *corev1.Node) (out []netip.Prefix) {
	for _, text := range append([]string{n.Spec.PodCIDR}, n.Spec.PodCIDRs...) {
		if p, err := netip.ParsePrefix(text); err == nil && !slices.Contains(out, p.Masked()) {
			out = append(out, p.Masked())
		}
	}
	return out
}

// merge is the fewest prefixes that cover the same addresses, sorted.
func merge(prefixes []netip.Prefix) []netip.Prefix {
	sorted := slices.Clone(prefixes)
	slices.SortFunc(sorted, netip.Prefix.Compare)
	var out []netip.Prefix
	for _, p := range sorted {
		if n := len(out); n > 0 && covers(out[n-1], p) {
			continue
		}
		for n := len(out); n > 0 && sibling(out[n-1]) == p; n = len(out) {
			p = netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
			out = out[:n-1]
		}
		out = append(out, p)
	}
	return out
}

func covers(a, b netip.Prefix) bool { return a.Bits() <= b.Bits() && a.Contains(b.Addr()) }

// sibling is the other half of the prefix that is one bit shorter; of the shortest the
// prefix of no bits, which is no sibling of anything.
func sibling(p netip.Prefix) netip.Prefix {
	if p.Bits() == 0 {
		return netip.Prefix{}
	}
	bytes := p.Addr().AsSlice()
	bit := p.Bits() - 1
	bytes[bit/8] ^= 0x80 >> (bit % 8)
	addr, _ := netip.AddrFromSlice(bytes)
	return netip.PrefixFrom(addr, p.Bits())
}

// nodeWarnings are what is wrong with nodes, nil for none known yet.
func nodeWarnings(n *source.Nodes, own string) (out []string) {
	if n == nil {
		return nil
	}
	switch {
	case n.Own == nil:
		out = append(out, fmt.Sprintf("Node %s: is gone from the API: what is enforced on it stays", own))
	case len(n.Own.PodCIDRs) == 0:
		out = append(out, fmt.Sprintf("Node %s: spec.podCIDRs: has none: there are no addresses for its pods; run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr, or set it", own))
	}
	type owned struct {
		netip.Prefix
		node string
	}
	var all []owned
	nodes := slices.Clone(n.Others)
	if n.Own != nil {
		nodes = append(nodes, *n.Own)
	}
	for _, node := range nodes {
		for _, p := range node.PodCIDRs {
			all = append(all, owned{p, node.Name})
		}
	}
	slices.SortFunc(all, func(a, b owned) int { return cmp.Or(a.Compare(b.Prefix), strings.Compare(a.node, b.node)) })
	for i, widest := 1, 0; i < len(all); i++ {
		if a, b := all[widest], all[i]; covers(a.Prefix, b.Prefix) {
			out = append(out, fmt.Sprintf("Node %s: spec.podCIDRs: %s overlaps %s of node %s: their pods may get the same addresses", b.node, b.Prefix, a.Prefix, a.node))
		} else {
			widest = i
		}
	}
	for _, node := range nodes {
		for _, a := range node.Addresses {
			if whose, p, ok := podRange(n, nodes, a); ok {
				out = append(out, fmt.Sprintf("Node %s: status.addresses: %s lies in spec.podCIDRs %s of node %s: what is for the node would go to a pod; pods need a range that nothing else has", node.Name, a, p, whose))
			}
		}
	}
	return out
}

// podRange is whose range of pods' addresses has an address, if any's does.
func podRange(n *source.Nodes, nodes []source.Node, a netip.Addr) (node string, p netip.Prefix, ok bool) {
	i, exact := slices.BinarySearchFunc(n.PodCIDRs, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	if !exact {
		i--
	}
	if i < 0 || !n.PodCIDRs[i].Contains(a) {
		return "", p, false
	}
	for _, node := range nodes {
		for _, p := range node.PodCIDRs {
			if p.Contains(a) {
				return node.Name, p, true
			}
		}
	}
	return "", p, false
}

// serviceWarning names a Service whose address is in a range of pods; they come all from one
// range, so that one is enough.
func serviceWarning(n *source.Nodes, services map[types.NamespacedName]*corev1.Service) []string {
	if n == nil {
		return nil
	}
	nodes := slices.Clone(n.Others)
	if n.Own != nil {
		nodes = append(nodes, *n.Own)
	}
	first := ""
	for key, s := range services {
		for _, text := range s.Spec.ClusterIPs {
			a, err := netip.ParseAddr(text)
			if err != nil { // headless
				continue
			}
			if node, p, ok := podRange(n, nodes, a); ok {
				line := fmt.Sprintf("Service %s: spec.clusterIPs: %s lies in spec.podCIDRs %s of node %s: the range of Services (kube-apiserver's --service-cluster-ip-range) and that of pods must not overlap", key, a, p, node)
				if first == "" || line < first {
					first = line
				}
			}
		}
	}
	if first == "" {
		return nil
	}
	return []string{first}
}
