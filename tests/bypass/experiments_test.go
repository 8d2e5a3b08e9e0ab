package bypass

import (
	"bytes"
	"fmt"
	"io"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/tests/lab"
)

// experiments are those that broke the design's first draft.
var experiments = []bypass{{
	id: "T1", name: "forgery_into_a_live_flow",
	title: "a pod without rights sends with the tuple of a neighbour's live flow (the hit came before anti-spoofing)",
	note:  "B13",
	tests: []string{"tests/packet TestForgedTupleOfALiveFlow"},
}, {
	id: "T2", name: "nodeport_and_cached_delivery",
	title: "an outside client by a NodePort: the answer must not be delivered past the node's NAT",
	try:   func(a *attempt) { a.throughNAT("") },
	tests: []string{"tests/packet TestPathIsFixedByTheFirstPacket"},
}, {
	id: "T3", name: "own_nodeport",
	title: "a pod that may talk to nobody talks to a pod that accepts nobody, by its own node's NodePort",
	try: func(a *attempt) {
		a.apply("service.yaml", serviceYAML)
		a.nat()
		a.apply("policy.yaml", policyYAML("ns", "closed", "{podSelector: {}, policyTypes: [Ingress, Egress]}"))
		m, e := a.mallory, a.eve
		for i, c := range [][2]string{{"192.0.2.1", serviceIP4}, {"2001:db8::1", serviceIP6}} {
			for _, x := range []*end{m, e} {
				self := x.Addr(4 + 2*i)
				a.drop("NodePort", x, policy, tcp(self, 3, c[0], 30080, "S"), tcp(self, 3, c[0], 30081, "S"))
				a.drop("ClusterIP", x, policy, tcp(self, 3, c[1], 80, "S"), tcp(self, 3, c[1], 83, "S"))
			}
		}
	},
	note:  "B31",
	tests: []string{"tests/packet TestNodeAddressIsNoPass"},
}, {
	id: "T4", name: "conntrack_invalid",
	title: "FORWARD drops what conntrack calls invalid: one path for both directions of a flow",
	try:   func(a *attempt) { a.throughNAT("ct state invalid drop") },
	tests: []string{"tests/packet TestPathIsFixedByTheFirstPacket"},
}, {
	id: "T5", name: "flood_of_flows",
	title: "a pod opens flows without end beside a neighbour's server-push stream",
	note:  "B17: its share alone",
	tests: []string{"tests/packet TestFlowShare", "tests/packet TestMidStreamPickUp", "tests/packet TestStaleEntryIsJudgedInItsInitiatorsOrientation"},
}, {
	id: "T7", name: "uplink_after_nat",
	title: "a pod reaches a remote backend by NodePort or an untranslated ClusterIP: egress after the node's NAT",
	note:  "B33",
	tests: []string{"tests/packet TestServiceIsJudgedBehindNAT"},
}, {
	id: "T8", name: "reverse_on_an_old_tuple",
	title: "a server that may open nothing connects from its port to a client's old port",
	try: func(a *attempt) {
		al, b := a.alice, a.bob
		a.apply("out.yaml", policyYAML("ns", "bob-out", "{podSelector: {matchLabels: {app: bob}}, policyTypes: [Egress]}"))
		for _, v := range [][2]string{{al.Addr4, b.Addr4}, {al.Addr6, b.Addr6}} {
			c, s := v[0], v[1]
			a.pass("a connection", al, b, tcp(c, 808, s, openTCP, "S"))
			a.pass("is answered", b, al, tcp(s, openTCP, c, 808, "SA"))
			a.drop("a new one on its tuple", b, policy, tcp(s, openTCP, c, 808, "S"))
			a.pass("closed", al, b, tcp(c, 808, s, openTCP, "FA"))
			a.pass("closed", b, al, tcp(s, openTCP, c, 808, "FA"))
			a.drop("a new one on the old tuple, and on a fresh one", b, policy, tcp(s, openTCP, c, 808, "S"), tcp(s, openTCP, c, 809, "S"))
			a.pass("an echo", al, b, echo(c, s, 808, false))
			a.drop("one back with its id", b, policy, echo(s, c, 808, false))
		}
	},
	tests: []string{"tests/packet TestReverseConnectionOnAnOldTuple"},
}, {
	id: "T10", name: "half_judged_entry",
	title: "a flow begins before its receiver is known as a pod of this node: its ingress has to be judged yet",
	tests: []string{"tests/packet TestHalfJudgedEntry"},
	note:  "by the programs alone: the moment is too short to be met",
}, {
	id: "T11", name: "foreign_filters",
	title: "another's filter on the pod's link drops its packets: accepting must not skip it",
	try:   foreignFilter,
}, {
	id: "M1", name: "values_replaced_under_readers",
	title: "map values that are replaced while programs hold them",
	tests: []string{"datapath/maps TestReadersSeeOneEpoch", "tests/atomic TestNoPacketSeesAMixture", "tests/atomic TestNoRealPacketSeesAMixture"},
}, {
	id: "M2", name: "slots_without_grace",
	title: "two slots, a writer that commits again at once",
	tests: []string{"datapath/maps TestCommitWaitsBeforeItRecycles", "datapath/maps TestRemovedIsFreeAGraceLater", "tests/atomic TestAMixtureIsCaught"},
}, {
	id: "M3", name: "scan_of_a_denied_packet",
	title: "what a denied packet costs against a thousand rules",
	tests: []string{"tests/packet TestDenialsAreCountedExactly", "controlplane/policy TestExactPortsAreNotScanned", "controlplane/policy TestTooManyRangesRefuseTheLargestPolicy"},
	note:  "exact ports are one lookup, ranges are capped, a denial is remembered; `make bench` has the cost",
}, {
	id: "M4", name: "mapped_addresses",
	title: "IPv4 carried as v4-mapped IPv6 under ::/0",
	note:  "B12, B28",
	tests: []string{"tests/packet TestFamiliesAreApart", "identity TestMappedPrefixesAreIPv4"},
}, {
	id: "M5", name: "socket_hooks",
	title: "which socket hook sees which call",
	tests: []string{"tests/node TestServices", "tests/node TestServiceAffinity"},
}, {
	id: "M6", name: "lost_counts",
	title: "counters incremented by two CPUs at once",
	note:  "B39: exact under a flood by two",
	tests: []string{"tests/packet TestDenialsAreCountedExactly", "tests/atomic TestNoPacketSeesAMixture"},
}}

// throughNAT has a client outside talk to a pod by a NodePort, through the node's conntrack
// and a filter in FORWARD.
func (a *attempt) throughNAT(forward string) {
	const size = 2 << 20
	x := &attempt{T: a.T, scene: newNode(a.T, lab.Options{})}
	x.write(a.T, "pods.yaml", pods)
	x.write(a.T, "service.yaml", serviceYAML)
	x.write(a.T, "policy.yaml", policyYAML("ns", "bob", `{podSelector: {matchLabels: {app: bob}}, policyTypes: [Ingress, Egress], ingress: [
  {from: [{ipBlock: {cidr: 192.0.2.10/32}}, {ipBlock: {cidr: "2001:db8::10/128"}}], ports: [{port: 8080}]}]}`))
	x.start(a.T)
	bob, err := x.AddPod(x.ctx, "ns", "bob")
	must(a.T, err)
	must(a.T, bob.Serve(x.ctx, openTCP))
	x.nft("add table inet bypass\nadd chain inet bypass pre { type nat hook prerouting priority dstnat; }\n" +
		"add chain inet bypass onward { type filter hook forward priority 0; }\n" +
		"add rule inet bypass onward ct state new accept\n" +
		"add rule inet bypass onward " + orNothing(forward) + "\n" +
		fmt.Sprintf("add rule inet bypass pre ip daddr 192.0.2.1 tcp dport 30080 dnat ip to %s:%d\n", bob.Addr4, openTCP) +
		fmt.Sprintf("add rule inet bypass pre ip6 daddr 2001:db8::1 tcp dport 30080 dnat ip6 to [%s]:%d\n", bob.Addr6, openTCP))
	for _, node := range []string{"192.0.2.1", "2001:db8::1"} {
		conn, err := x.Outside.ConnectWithin(node, 30080, patience)
		must(a.T, err)
		defer conn.Close()
		must(a.T, conn.SetDeadline(time.Now().Add(30*time.Second)))
		sent, got := bytes.Repeat([]byte("weir"), size/4), make([]byte, size)
		go func() { _, _ = conn.Write(sent) }()
		if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(sent, got) {
			a.Errorf("%d MiB by %s and back: %v", size>>20, node, err)
		}
	}
	a.shown(fmt.Sprintf("%d MiB each way, both families, all answers by NAT", size>>20))
}

func orNothing(rule string) string {
	if rule == "" {
		return "counter"
	}
	return rule
}

// foreignFilter drops all that mallory sends by a filter that is not ours, behind ours.
func foreignFilter(a *attempt) {
	m := a.mallory
	frame := func(port uint16) []byte { return tcp(m.Addr4, port, beyond4, 80, "S") }
	a.pass("without the filter", m, a.outside, frame(1))
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, 2 /* TC_ACT_SHOT */), asm.Return(),
	}})
	must(a.T, err)
	defer program.Close()
	name := a.hostIf(a.T, m)
	must(a.T, a.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		at := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
		if err := netlink.QdiscAdd(&netlink.GenericQdisc{QdiscAttrs: at, QdiscType: "clsact"}); err != nil {
			return fmt.Errorf("clsact on %s: %w", name, err)
		}
		return netlink.FilterAdd(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: 3 /* ETH_P_ALL */, Priority: 1,
		}, Fd: program.FD(), Name: "foreign", DirectAction: true})
	}))
	a.quiet(a)
	a.send("behind the filter", m, [][]byte{frame(2), frame(3)})
	must(a.T, a.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		at := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
		return netlink.QdiscDel(&netlink.GenericQdisc{QdiscAttrs: at, QdiscType: "clsact"})
	}))
	last := frame(4)
	a.send("the filter is gone", m, [][]byte{last})
	if !a.outside.await(last) || len(a.outside.received()) != 1 {
		a.Errorf("behind a filter that drops all:%s", a.arrivals())
	}
	a.shown("what goes by the stack meets the other's filter, and is dropped there")
	a.note("redirected packets between two pods of the node meet no filter behind ours", 0)
}
