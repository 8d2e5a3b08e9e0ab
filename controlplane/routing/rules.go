package routing

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// podsTable has the routes to other nodes for packets of this node's pods, which rules with
// podsPriority send there, before the main table.
const (
	podsTable    = Protocol
	podsPriority = 1190
)

// reconcileRules makes the rules those for these ranges of pods.
func reconcileRules(ranges []netip.Prefix) error {
	wanted := map[netip.Prefix]bool{}
	for _, p := range ranges {
		wanted[p.Masked()] = true
	}
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netlink.RuleListFiltered(family, &netlink.Rule{Table: podsTable}, netlink.RT_FILTER_TABLE)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list rules: %w", err)
		}
		for _, r := range list {
			from := prefixOf(r.Src)
			if wanted[from] && r.Priority == podsPriority {
				delete(wanted, from)
				continue
			}
			r.Family = family
			if err := netlink.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove rule from %s: %w", from, err))
			}
		}
	}
	for from := range wanted {
		r := netlink.NewRule()
		r.Src = &net.IPNet{IP: from.Addr().AsSlice(), Mask: net.CIDRMask(from.Bits(), from.Addr().BitLen())}
		r.Table, r.Priority, r.Protocol = podsTable, podsPriority, Protocol
		if err := netlink.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("rule from %s: %w", from, err))
		}
	}
	return errors.Join(errs...)
}

// prefixOf is the zero prefix for nil.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ip, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), ones)
}
