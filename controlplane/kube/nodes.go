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

// nodesOf sorts the cluster's nodes into this one and the others. A range that two of them
// have is left to one, see disputes.
func nodesOf(all map[types.NamespacedName]kept[*corev1.Node], own string) *source.Nodes {
	out := &source.Nodes{}
	disputed := disputes(all, own)
	for _, is := range all {
		n := is.object
		node := source.Node{Name: n.Name, Disputed: disputed[n.Name]}
		for _, p := range podCIDRs(n) {
			out.PodCIDRs = append(out.PodCIDRs, p)
			if !slices.ContainsFunc(node.Disputed, func(d source.Dispute) bool { return d.Range == p }) {
				node.PodCIDRs = append(node.PodCIDRs, p)
			}
		}
		for _, a := range n.Status.Addresses {
			if addr, err := netip.ParseAddr(a.Address); err == nil {
				node.Addresses = append(node.Addresses, addr.Unmap())
			}
		}
		if n.Name == own {
			out.Own = &node
			continue
		}
		out.Others = append(out.Others, node)
	}
	lend(out, all)
	slices.SortFunc(out.Others, func(a, b source.Node) int { return strings.Compare(a.Name, b.Name) })
	for _, n := range out.Others {
		out.OtherAddresses = append(out.OtherAddresses, n.Addresses...)
	}
	out.PodCIDRs = merge(out.PodCIDRs)
	return out
}

// owned is a range and the node that has it.
type owned struct {
	netip.Prefix
	node string
}

// disputes are the ranges that nodes do not get because another node has some of their
// addresses: the one whose object is older, so that who comes cannot take the traffic of who is
// there, or speak as its pods. Nobody takes this node's: its pods are here.
func disputes(all map[types.NamespacedName]kept[*corev1.Node], own string) map[string][]source.Dispute {
	var ranges []owned
	for _, is := range all {
		for _, p := range podCIDRs(is.object) {
			ranges = append(ranges, owned{p, is.object.Name})
		}
	}
	if !overlapping(ranges) {
		return nil
	}
	slices.SortStableFunc(ranges, func(a, b owned) int {
		return elder(all[named(a.node)].object, all[named(b.node)].object, own)
	})
	out := map[string][]source.Dispute{}
	given, above := map[netip.Prefix]owned{}, map[netip.Prefix]owned{} // and what is wider than those
	for _, r := range ranges {
		with, taken := above[r.Prefix]
		for bits := r.Bits(); bits >= 0 && !taken; bits-- {
			with, taken = given[wider(r.Prefix, bits)]
		}
		if taken && with.node != r.node {
			out[r.node] = append(out[r.node], source.Dispute{Range: r.Prefix, With: with.Prefix, Node: with.node})
			continue
		}
		given[r.Prefix] = r
		for bits := r.Bits() - 1; bits >= 0; bits-- {
			above[wider(r.Prefix, bits)] = r
		}
	}
	return out
}

// elder compares which of two nodes goes before the other: this one, then the older one.
func elder(a, b *corev1.Node, own string) int {
	if (a.Name == own) != (b.Name == own) {
		return map[bool]int{true: -1, false: 1}[a.Name == own]
	}
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
}

// lend marks the addresses that nodes claim and an elder one has: kubelets write their own.
func lend(n *source.Nodes, all map[types.NamespacedName]kept[*corev1.Node]) {
	nodes, own := make([]*source.Node, 0, len(all)), ""
	for i := range n.Others {
		nodes = append(nodes, &n.Others[i])
	}
	if n.Own != nil {
		nodes, own = append(nodes, n.Own), n.Own.Name
	}
	slices.SortFunc(nodes, func(a, b *source.Node) int {
		return elder(all[named(a.Name)].object, all[named(b.Name)].object, own)
	})
	of := map[netip.Addr]string{}
	for _, node := range nodes {
		for _, a := range node.Addresses {
			switch has, taken := of[a]; {
			case !taken:
				of[a] = node.Name
			case has != node.Name:
				node.Borrowed = append(node.Borrowed, source.Borrowed{Address: a, Node: has})
			}
		}
	}
}

func wider(p netip.Prefix, bits int) netip.Prefix { return netip.PrefixFrom(p.Addr(), bits).Masked() }

// overlapping reports whether any two do.
func overlapping(ranges []owned) bool {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b owned) int { return a.Compare(b.Prefix) })
	for i := 1; i < len(sorted); i++ { // the first that overlap are neighbours
		if covers(sorted[i-1].Prefix, sorted[i].Prefix) {
			return true
		}
	}
	return false
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
	nodes := slices.Clone(n.Others)
	if n.Own != nil {
		nodes = append(nodes, *n.Own)
	}
	for _, node := range nodes {
		for _, b := range node.Borrowed {
			out = append(out, fmt.Sprintf("Node %s: status.addresses: %s is node %s's, too, and counts as that one's: give kubelet of node %s an address of its own (--node-ip)", node.Name, b.Address, b.Node, node.Name))
		}
		for _, d := range node.Disputed {
			first := "the older one has it"
			if d.Node == own {
				first = "here this node has it"
			}
			out = append(out, fmt.Sprintf("Node %s: spec.podCIDRs: %s overlaps %s of node %s: %s, and pods of node %s in it are not reached; "+
				"delete that Node, and let it join with a range of its own", node.Name, d.Range, d.With, d.Node, first, node.Name))
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
func serviceWarning(n *source.Nodes, services map[types.NamespacedName]kept[*corev1.Service]) []string {
	if n == nil {
		return nil
	}
	nodes := slices.Clone(n.Others)
	if n.Own != nil {
		nodes = append(nodes, *n.Own)
	}
	first := ""
	for key, s := range services {
		for _, text := range s.object.Spec.ClusterIPs {
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
