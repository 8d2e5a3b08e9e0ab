package routing

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/datapath"
)

// Ways are how packets get to other nodes' pods as the kernel has it now, by range, where all that
// it would do with them is to send them by our route: the programs may do that in its place. why
// says what stands against it elsewhere. On an error nothing is known.
func (Native) Ways(nodes *source.Nodes) (to map[netip.Prefix]datapath.Way, why []string, err error) {
	return waysNow(nodes)
}

// Ways is Native's.
func (VXLAN) Ways(nodes *source.Nodes) (to map[netip.Prefix]datapath.Way, why []string, err error) {
	return waysNow(nodes)
}

// laid is a route as the kernel has it.
type laid struct {
	route
	ours    bool
	metric  uint32
	partial bool // only of some packets to there: by their source or type of service
}

func waysNow(nodes *source.Nodes) (map[netip.Prefix]datapath.Way, []string, error) {
	if nodes == nil || nodes.Own == nil {
		return nil, nil, nil
	}
	ranges := map[netip.Prefix]string{}
	pods := slices.Clone(nodes.Own.PodCIDRs)
	for _, n := range nodes.Others {
		for _, p := range n.PodCIDRs {
			ranges[p.Masked()] = n.Name
			pods = append(pods, p.Masked())
		}
	}
	if len(ranges) == 0 {
		return nil, nil, nil
	}
	for _, ask := range []func([]netip.Prefix) (string, error){ruled, transformed} {
		why, err := ask(pods)
		if err != nil {
			return nil, nil, err
		}
		if why != "" {
			return nil, []string{why}, nil
		}
	}
	routes, err := everyRoute()
	if err != nil {
		return nil, nil, err
	}
	made, why := unhindered(ranges, routes)
	out := map[netip.Prefix]datapath.Way{}
	links := map[int]netlink.Link{}
	for p, r := range made {
		if links[r.dev] == nil {
			if links[r.dev], err = netlink.LinkByIndex(r.dev); err != nil {
				return nil, nil, fmt.Errorf("the device of route %s: %w", r, err)
			}
		}
		to := r.via
		if r.node.IsValid() {
			to = r.node
		}
		out[p] = datapath.Way{Ifindex: uint32(r.dev), MTU: uint16(min(links[r.dev].Attrs().MTU, 1<<16-1)), Addr: to, Tunnel: r.node.IsValid()}
	}
	return out, why, nil
}

// listedTimes is how often a listing is repeated that a change interrupted.
const listedTimes = 10

func everyRoute() (out []laid, err error) {
	for range listedTimes {
		out = nil
		err = eachRoute(func(head *nl.RtMsg, r route, metric uint32) {
			if head.Flags&unix.RTM_F_CLONED == 0 && head.Flags&unix.RTNH_F_DEAD == 0 {
				out = append(out, laid{r, head.Protocol == Protocol, metric, head.Src_len > 0 || head.Tos != 0})
			}
		})
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

// consulted are the tables that the kernel's own rules and ours lead to.
var consulted = []int{unix.RT_TABLE_LOCAL, unix.RT_TABLE_MAIN, unix.RT_TABLE_DEFAULT, podsTable}

// unhindered are those of our routes to ranges (by node) that everything to there goes by, and why
// the others are not.
func unhindered(ranges map[netip.Prefix]string, routes []laid) (made map[netip.Prefix]route, why []string) {
	made = map[netip.Prefix]route{}
	lengths := map[int]bool{}
	for p := range ranges {
		lengths[p.Bits()] = true
	}
	hindered := map[netip.Prefix]laid{}
	for _, r := range routes {
		if _, is := ranges[r.to]; is && r.ours && r.isUnicast() && r.table == unix.RT_TABLE_MAIN && !r.partial {
			made[r.to] = r.route
			continue
		}
		if !slices.Contains(consulted, r.table) {
			continue
		}
		for bits := range lengths {
			if p, err := r.to.Addr().Prefix(bits); err == nil && bits <= r.to.Bits() && ranges[p] != "" && !r.loses(p) {
				hindered[p] = r
			}
		}
		if r.table == unix.RT_TABLE_LOCAL && !r.to.IsSingleIP() { // it is asked before any longer one elsewhere
			for p := range ranges {
				if r.to.Overlaps(p) {
					hindered[p] = r
				}
			}
		}
	}
	named := map[string]bool{}
	for _, p := range slices.SortedFunc(maps.Keys(hindered), netip.Prefix.Compare) {
		delete(made, p)
		if r := hindered[p]; !named[ranges[p]] {
			named[ranges[p]] = true
			why = append(why, fmt.Sprintf("node %s: of what is sent to its pods %s a route that is not Weir's, to %s in table %d, takes some", ranges[p], p, r.to, r.table))
		}
	}
	return made, why
}

// metric6 is that of routes of IPv6 that are given none; IPv4's have 0.
const metric6 = 1024

// loses reports whether a route to just our range p is never asked beside ours.
func (r laid) loses(p netip.Prefix) bool {
	if r.to != p || r.partial {
		return false
	}
	ours := uint32(0)
	if p.Addr().Is6() {
		ours = metric6
	}
	return r.table == unix.RT_TABLE_DEFAULT || r.table == unix.RT_TABLE_MAIN && r.metric > ours
}

// ruled says what rule may send packets between pods by another way than our routes, "": none.
func ruled(pods []netip.Prefix) (string, error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		of := slices.DeleteFunc(slices.Clone(pods), func(p netip.Prefix) bool { return p.Addr().Is4() != (family == netlink.FAMILY_V4) })
		if len(of) == 0 {
			continue
		}
		var list []netlink.Rule
		var err error
		for range listedTimes {
			if list, err = netlink.RuleList(family); !errors.Is(err, netlink.ErrDumpInterrupted) {
				break
			}
		}
		if err != nil {
			return "", fmt.Errorf("list rules: %w", err)
		}
		if why := bends(list, of); why != "" {
			return why, nil
		}
	}
	return "", nil
}

// The kernel's own rules: priority and table.
var kernelRules = map[int]int{0: unix.RT_TABLE_LOCAL, 32766: unix.RT_TABLE_MAIN, 32767: unix.RT_TABLE_DEFAULT}

func bends(rules []netlink.Rule, pods []netip.Prefix) string {
	seen := map[int]bool{}
	for _, r := range rules {
		from, to := prefixOf(r.Src), prefixOf(r.Dst)
		plain := r.Mark == 0 && r.Mask == nil && r.Tos == 0 && r.TunID == 0 && r.IifName == "" && r.OifName == "" && !r.Invert &&
			r.IPProto == 0 && r.Dport == nil && r.Sport == nil && r.UIDRange == nil && r.SuppressPrefixlen < 0 && r.SuppressIfgroup < 0 && r.Goto < 0
		if table, is := kernelRules[r.Priority]; is && table == r.Table && plain && isAll(from) && isAll(to) {
			seen[table] = true
			continue
		}
		if r.Table == podsTable && r.Priority == podsPriority && r.Protocol == Protocol && plain && isAll(to) {
			continue // ours
		}
		apart := func(p netip.Prefix) bool {
			return !isAll(p) && !r.Invert && !slices.ContainsFunc(pods, p.Overlaps)
		}
		if apart(from) || apart(to) || !r.Invert && (r.IifName == "lo" || r.OifName != "") {
			continue // never of what is forwarded between pods
		}
		return fmt.Sprintf("ip rule %d (from %s to %s lookup %d) may send what pods of two nodes say to each other another way than Weir's routes",
			r.Priority, every(from), every(to), r.Table)
	}
	if !seen[unix.RT_TABLE_LOCAL] || !seen[unix.RT_TABLE_MAIN] {
		return "ip rules 0 (lookup local) and 32766 (lookup main) are not there as the kernel makes them: Weir's routes may never be asked"
	}
	return ""
}

func isAll(p netip.Prefix) bool { return !p.IsValid() || p.Bits() == 0 }

func every(p netip.Prefix) string {
	if isAll(p) {
		return "all"
	}
	return p.String()
}

// transformed says what IPsec policy is for packets between pods, "": none.
func transformed(pods []netip.Prefix) (string, error) {
	var list []netlink.XfrmPolicy
	var err error
	for range listedTimes {
		if list, err = netlink.XfrmPolicyList(netlink.FAMILY_ALL); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return "", nil // the kernel has no IPsec
	}
	if err != nil {
		return "", fmt.Errorf("list xfrm policies: %w", err)
	}
	if why := encrypts(list, pods); why != "" {
		return why, nil
	}
	return blocks()
}

func encrypts(policies []netlink.XfrmPolicy, pods []netip.Prefix) string {
	for _, x := range policies {
		if x.Dir > netlink.XFRM_DIR_FWD {
			continue // a socket's
		}
		covers := func(p netip.Prefix) bool { return isAll(p) || slices.ContainsFunc(pods, p.Overlaps) }
		if src, dst := prefixOf(x.Src), prefixOf(x.Dst); covers(src) && covers(dst) {
			return fmt.Sprintf("an IPsec policy (ip xfrm policy: src %s dst %s %s) is for what pods of two nodes say to each other", every(src), every(dst), x.Dir)
		}
	}
	return ""
}

// What the kernel does with packets that no IPsec policy is for (linux/xfrm.h).
const (
	getDefault = 0x28 // XFRM_MSG_GETDEFAULT
	block      = 1    // XFRM_USERPOLICY_BLOCK
)

func blocks() (string, error) {
	req := nl.NewNetlinkRequest(getDefault, 0)
	req.AddRawData(make([]byte, 3))
	list, err := req.Execute(unix.NETLINK_XFRM, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return "", nil // before Linux 5.14
	}
	if err != nil {
		return "", fmt.Errorf("ask for the default of xfrm policies: %w", err)
	}
	for _, m := range list {
		if len(m) >= 3 && slices.Contains(m[:3], block) {
			return "the default of IPsec policies (ip xfrm policy getdefault) is to block what none is for", nil
		}
	}
	return "", nil
}

// newsSettle is how long news are collected: a change of routes is often one of many.
const newsSettle = 20 * time.Millisecond

// WatchWays calls changed after changes of what Ways looks at, until ctx is over (nil).
func (Native) WatchWays(ctx context.Context, changed func()) error { return watchWays(ctx, changed) }

// WatchWays is Native's.
func (VXLAN) WatchWays(ctx context.Context, changed func()) error { return watchWays(ctx, changed) }

func watchWays(ctx context.Context, changed func()) error {
	route, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_LINK)
	if err != nil {
		return fmt.Errorf("watch routes and rules: %w", err)
	}
	sockets := []*nl.NetlinkSocket{route}
	xfrm, err := nl.Subscribe(unix.NETLINK_XFRM, xfrmGroupPolicy)
	switch {
	case err == nil:
		sockets = append(sockets, xfrm)
	case !errors.Is(err, unix.EPROTONOSUPPORT):
		route.Close()
		return fmt.Errorf("watch xfrm policies: %w", err)
	}
	news := make(chan struct{}, 1)
	for _, s := range sockets {
		go func() {
			for ctx.Err() == nil {
				if _, _, err := s.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
					return // closed
				}
				select {
				case news <- struct{}{}:
				default:
				}
			}
		}()
	}
	for {
		select {
		case <-ctx.Done():
			for _, s := range sockets {
				s.Close()
			}
			return nil
		case <-news:
			time.Sleep(newsSettle)
			changed()
		}
	}
}

const xfrmGroupPolicy = 4 // XFRMNLGRP_POLICY
