package bypass

import (
	"github.com/weirnet/weir/datapath"
)

// Flow state: what an entry of the flow table lets through, and whom it forgets.
var flows = []bypass{{
	id: "B14", name: "answers_outlive_the_policy",
	title: "reply traffic outlives the policy that allowed the flow",
	try: func(a *attempt) {
		al, b := a.alice, a.bob
		for _, c := range []struct {
			what string
			deny string // its policies
			to   [][]byte
			from [][]byte
		}{{
			"ingress", policyYAML("ns", "bob", "{podSelector: {matchLabels: {app: bob}}, policyTypes: [Ingress]}"),
			[][]byte{tcp(al.Addr4, 1400, b.Addr4, 80, "A"), udp(al.Addr4, 1400, b.Addr4, 53), echo(al.Addr4, b.Addr4, 1400, false), udp(al.Addr6, 1400, b.Addr6, 53)},
			[][]byte{tcp(b.Addr4, 80, al.Addr4, 1400, "A"), udp(b.Addr4, 53, al.Addr4, 1400), echo(b.Addr4, al.Addr4, 1400, true), udp(b.Addr6, 53, al.Addr6, 1400)},
		}, {
			"egress", policyYAML("ns", "bob", fromAll) + policyYAML("ns", "alice-out", "{podSelector: {matchLabels: {app: alice}}, policyTypes: [Egress]}"),
			[][]byte{tcp(al.Addr4, 1401, b.Addr4, 80, "A"), udp(al.Addr4, 1401, b.Addr4, 53), echo(al.Addr4, b.Addr4, 1401, false), udp(al.Addr6, 1401, b.Addr6, 53)},
			[][]byte{tcp(b.Addr4, 80, al.Addr4, 1401, "A"), udp(b.Addr4, 53, al.Addr4, 1401), echo(b.Addr4, al.Addr4, 1401, true), udp(b.Addr6, 53, al.Addr6, 1401)},
		}} {
			port := sportOf(c.to[0])
			a.pass("the flows begin", al, b, append([][]byte{tcp(al.Addr4, port, b.Addr4, 80, "S")}, c.to[1:]...)...)
			a.pass("and are answered", b, al, c.from...)
			must(a.T, a.Apply(a.ctx, "policy.yaml", c.deny+policyYAML("ns", "alice", "{podSelector: {matchLabels: {app: alice}}, policyTypes: [Ingress]}")))
			a.drop("answers, "+c.what+" forbidden", b, policy, c.from...)
			a.drop("what they answer", al, policy, c.to...)
			a.drop("answers again", b, policy, c.from...)
			must(a.T, a.Apply(a.ctx, "policy.yaml", policies))
			a.pass("allowed again", b, al, c.from...)
			a.pass("allowed again", al, b, c.to...)
		}
	},
	tests: []string{"tests/node TestRevocation", "tests/packet TestRevocation"},
}, {
	id: "B15", name: "flags_that_make_state",
	title: "non-SYN or SYN+ACK packet creates state; FIN, NULL, Xmas; ACK first",
	try: func(a *attempt) {
		m, b, al := a.mallory, a.bob, a.alice
		for i, to := range []*end{b, al} {
			port := uint16(1500 + i)
			for _, flags := range []string{"", "F", "P", "U", "PU", "FPU", "FU", "SF", "SR", "SFRPAU"} {
				a.drop("flags that no TCP sends", m, tcpFlags, tcp(m.Addr4, port, to.Addr4, closedTCP, flags), tcp(m.Addr6, port, to.Addr6, closedTCP, flags))
			}
			for _, flags := range []string{"SA", "FA", "FPA", "R", "RA"} {
				a.drop("of a flow that is none", m, tcpStray, tcp(m.Addr4, port, to.Addr4, closedTCP, flags), tcp(m.Addr6, port, to.Addr6, closedTCP, flags))
			}
			for _, flags := range []string{"S", "SP", "SU"} {
				a.drop("a beginning", m, policy, tcp(m.Addr4, port, to.Addr4, closedTCP, flags), tcp(m.Addr6, port, to.Addr6, closedTCP, flags))
			}
		}
		// It could be the answer to a flow whose entry was lost, had this node had pods before its table.
		a.drop("a middle, where the other way is allowed", m, policy, tcp(m.Addr4, 1503, b.Addr4, closedTCP, "A"))
		a.drop("a beginning after it", m, policy, tcp(m.Addr4, 1503, b.Addr4, closedTCP, "S"), tcp(m.Addr4, 1504, b.Addr4, closedTCP, "S"))
		a.apply("out.yaml", policyYAML("ns", "bob-out", "{podSelector: {matchLabels: {app: bob}}, policyTypes: [Egress]}"))
		for _, flags := range []string{"A", "PA", "UA"} {
			a.drop("a middle, where the other way is forbidden as well", m, policy, tcp(m.Addr4, 1505, b.Addr4, closedTCP, flags), tcp(m.Addr6, 1505, b.Addr6, closedTCP, flags))
		}
		// What is let through makes no entry for the way back: alice may not be begun with.
		a.pass("strays where all is allowed", al, b, tcp(al.Addr4, 1510, b.Addr4, 80, "SA"), tcp(al.Addr4, 1511, b.Addr4, 80, "R"), tcp(al.Addr4, 1512, b.Addr4, 80, "FA"))
		a.drop("the way back of each", b, policy, tcp(b.Addr4, 80, al.Addr4, 1510, "S"), tcp(b.Addr4, 80, al.Addr4, 1511, "S"), tcp(b.Addr4, 80, al.Addr4, 1512, "S"))
		a.drop("and their strays", b, tcpStray, tcp(b.Addr4, 81, al.Addr4, 1510, "SA"), tcp(b.Addr4, 81, al.Addr4, 1511, "R"))
	},
	tests: []string{"tests/packet TestMidStreamPickUp"},
	note:  "where a node that has pods lost its flow table, a plain ACK that its own direction forbids passes for ten minutes (--pick-up) if the other direction allows the flow it would answer; it opens nothing",
}, {
	id: "B16", name: "syn_on_an_old_tuple",
	title:  "new SYN on an old allowed tuple after the policy closed it; retransmitted SYN after a drop (a denied packet leaves no permission)",
	public: "calico #5308, antrea #219",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		for _, v := range [][2]string{{m.Addr4, b.Addr4}, {m.Addr6, b.Addr6}} {
			syn, denied := tcp(v[0], 1600, v[1], openTCP, "S"), tcp(v[0], 1600, v[1], closedTCP, "S")
			a.drop("a SYN, and again", m, policy, denied, denied, denied)
			a.drop("a FIN or RST after it", m, tcpStray, tcp(v[0], 1600, v[1], closedTCP, "FA"), tcp(v[0], 1600, v[1], closedTCP, "RA"))
			a.drop("bob's side of it, which may begin nothing at alice", b, policy, tcp(v[1], closedTCP, map[string]string{m.Addr4: a.alice.Addr4, m.Addr6: a.alice.Addr6}[v[0]], 1600, "S"))
			a.pass("a connection", m, b, syn)
			a.pass("is answered", b, m, tcp(v[1], openTCP, v[0], 1600, "SA"))
			a.pass("and closed", m, b, tcp(v[0], 1600, v[1], openTCP, "FA"))
			a.pass("and closed", b, m, tcp(v[1], openTCP, v[0], 1600, "FA"))
			a.apply("policy.yaml", policyYAML("ns", "bob", "{podSelector: {matchLabels: {app: bob}}, policyTypes: [Ingress]}"))
			a.drop("its tuple again, the policy closed", m, policy, syn, syn)
			must(a.T, a.Apply(a.ctx, "policy.yaml", policies))
			a.pass("its tuple again, open", m, b, syn)
			a.apply("policy.yaml", policyYAML("ns", "bob", "{podSelector: {matchLabels: {app: bob}}, policyTypes: [Ingress]}"))
			a.drop("a live one's, closed", m, policy, syn, tcp(v[0], 1600, v[1], openTCP, "A"))
			must(a.T, a.Apply(a.ctx, "policy.yaml", policies))
		}
	},
	tests: []string{"tests/packet TestReverseConnectionOnAnOldTuple"},
}, {
	id: "B17", name: "flow_table_exhaustion",
	title: "flow-table exhaustion by one pod evicts its neighbours' flows",
	try:   exhaustFlows,
	tests: []string{"tests/packet TestFlowShare"},
}, {
	id: "B18", name: "stale_allow",
	title: "stale allow after a policy, label or namespace-label change",
	try: func(a *attempt) {
		m, b, al := a.mallory, a.bob, a.alice
		a.apply("namespace.yaml", namespaceYAML("ns", "trust: high"))
		a.apply("more.yaml", policyYAML("ns", "by-namespace", `{podSelector: {matchLabels: {app: bob}}, ingress: [
  {from: [{namespaceSelector: {matchLabels: {trust: high}}, podSelector: {matchLabels: {app: mallory}}}], ports: [{port: 81}]}]}`))
		by := func(port uint16) [][]byte {
			return [][]byte{tcp(m.Addr4, 1800, b.Addr4, port, "S"), tcp(m.Addr6, 1800, b.Addr6, port, "S")}
		}
		again := func(port uint16) [][]byte {
			return [][]byte{tcp(m.Addr4, 1800, b.Addr4, port, "A"), tcp(m.Addr6, 1801, b.Addr6, port, "S"), tcp(m.Addr6, 1800, b.Addr6, port, "A")}
		}
		a.pass("by the namespace's label", m, b, by(81)...)
		a.apply("namespace.yaml", namespaceYAML("ns", "trust: low"))
		a.drop("the namespace's label changed", m, policy, again(81)...)
		must(a.T, a.Apply(a.ctx, "namespace.yaml", namespaceYAML("ns", "trust: high")))
		a.pass("and back", m, b, tcp(m.Addr4, 1800, b.Addr4, 81, "A"))
		must(a.T, a.Apply(a.ctx, "more.yaml", policyYAML("ns", "by-namespace", "{podSelector: {matchLabels: {app: bob}}, ingress: []}")))
		a.drop("the policy's rule went", m, policy, again(81)...)

		a.pass("by its own label", m, b, by(openTCP)...)
		a.pass("alice by hers", al, b, tcp(al.Addr4, 1800, b.Addr4, 80, "S"))
		a.apply("pods.yaml", podYAML("ns", "mallory", "app: alice")+podYAML("ns", "alice", "app: nobody")+
			podYAML("ns", "eve", "app: eve")+podYAML("ns", "bob", "app: bob"))
		a.drop("alice's label went", al, policy, tcp(al.Addr4, 1800, b.Addr4, 80, "A"), tcp(al.Addr4, 1801, b.Addr4, 80, "S"))
		a.pass("mallory has it", m, b, tcp(m.Addr4, 1802, b.Addr4, closedTCP, "S"))
		must(a.T, a.Apply(a.ctx, "pods.yaml", pods))
		a.drop("and has it no more", m, policy, tcp(m.Addr4, 1802, b.Addr4, closedTCP, "A"), tcp(m.Addr4, 1802, b.Addr4, closedTCP, "S"))
	},
	tests: []string{"tests/node TestEditAppliesWithoutRestart", "tests/atomic TestNoPacketSeesAMixture"},
}}

// exhaustFlows has a pod open flows until no more are let through, on a node of little room.
func exhaustFlows(a *attempt) {
	const capacity, share, pods, more = 1024, 128, 4, 500 // share: bpf/config.h
	x := &attempt{T: a.T, scene: newScene(a.T, "--map-size", "flows=1024")}
	m, b, al := x.mallory, x.bob, x.alice
	live := tcp(al.Addr4, 1700, b.Addr4, 80, "S")
	x.pass("alice's flow", al, b, live)
	const room = capacity - (pods-1)*share
	for i := range room {
		x.send("a flow", m, [][]byte{udp(m.Addr4, uint16(2000+i), b.Addr4, openUDP)})
	}
	eventually(x.T, "mallory's flows are there", func() bool { return len(b.received()) >= room })
	x.quiet(x)
	before := x.drops(x.T)
	for i := range more {
		x.send("one flow more", m, [][]byte{udp(m.Addr4, uint16(10000+i), b.Addr4, openUDP)})
	}
	x.settled("past the share", before, func(d map[datapath.Reason]uint64) bool { return d[flowShare] >= more })
	if d := x.since(x.T, before); d[flowShare] != more {
		x.Errorf("flows past the share: dropped for %v, want %d for %q", d, more, flowShare)
	}
	x.nothingArrives("flows past the share")
	eventually(x.T, "a record of a flow past the share", func() bool { return x.denied(m, flowShare) > 0 })
	var others [][]byte
	for i := range share - 1 {
		others = append(others, udp(al.Addr4, uint16(2000+i), b.Addr4, 53))
	}
	x.pass("alice's share is hers", al, b, others...)
	x.pass("her old flow lives", al, b, tcp(al.Addr4, 1700, b.Addr4, 80, "A"))
	a.note("dropped: "+flowShare.String(), more)
	a.note("passed", room+len(others)+2)
}
