package main

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/tests/bench/report"
	"github.com/weirnet/weir/tests/testnode"
)

var packets = section{
	name: "packets", title: "A packet", measure: measurePackets,
	method: "The real programs on their real maps by BPF_PROG_TEST_RUN, entered by the stub that a link holds. 1H is a program that parses " +
		"and makes one hash lookup in a map of 10,000 entries; the floor parses, has one flow entry with counters, an epoch and a coarse " +
		"clock, and delivers by redirect_peer: its first packet looks both ends up, asks for up to four policies a direction, of which the second is there, " +
		"makes two entries and writes an event as large as Weir's. All are net of an empty program, whose own cost is that of entering it. " +
		"Each verdict is checked. Flow records are on, and are read. A packet is what a pod sends, but where another hook is named: to_pod is a pod's door, " +
		"behind the node's stack, from_network and to_network are the uplink's; " +
		"from another node's pod is at from_network, by the tunnel at the tunnel's own.",
}

const (
	manyFlows = 512000
	wide      = 1 << 19 // addresses and facts
)

func measurePackets(m *measurement) error {
	runtime.LockOSThread()
	sizes := loader.Sizes{bpf.WeirMapFlows: 1 << 20}
	for _, part := range []struct {
		name    string
		config  loader.Config
		measure func(*node, *measurement) error
	}{
		{"kinds", loader.Config{Sizes: sizes}, (*node).kinds},
		{"rules", loader.Config{Sizes: sizes}, (*node).byRules},
		{"identities", crowdConfig, (*node).byIdentities},
		// Flows are not to end while others are opened.
		{"flows", loader.Config{Sizes: sizes, Timeouts: loader.Timeouts{SYN: time.Hour}}, (*node).byFlows},
	} {
		if !m.match.MatchString(part.name) {
			continue
		}
		if err := onNode(m, part.config, part.measure); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

var crowdConfig = loader.Config{Sizes: loader.Sizes{bpf.WeirMapAddresses: wide, bpf.WeirMapFacts: wide}}

func onNode(m *measurement, config loader.Config, part func(*node, *measurement) error) error {
	n, err := newNode(m, config)
	if err != nil {
		return err
	}
	defer n.close()
	if err := n.receivers(); err != nil {
		return err
	}
	if err := realtime(); err != nil {
		m.Note("no real-time priority, the figures are noisy: %v", err)
	}
	return part(n, m)
}

func (m *measurement) repeat() int { return pick(m, 300000, 20000) }

// base are the rows that others are net of and held against.
func (n *node) base(family, repeat int) []*shot {
	at := n.veths[1]
	return []*shot{
		{name: emptyRow, program: n.yard.Empty, ifindex: at, frame: data(family), repeat: repeat, want: pass},
		{name: hashRow, program: n.yard.Onehash, ifindex: at, frame: data(family), repeat: repeat, want: pass},
	}
}

func (n *node) floor(s *shot) *shot {
	s.name, s.program, s.drain = "floor, "+s.name, n.yard.Least, s.mode == next
	return s
}

// kinds of packets, both families.
func (n *node) kinds(m *measurement) error {
	t := &report.Table{Name: "packets", Title: "Kinds of packets", Head: "packet", Columns: []string{"IPv4 ns", "IPv4 x 1H", "IPv6 ns", "IPv6 x 1H"}}
	var names []string
	cells := map[string][]report.Figure{}
	for _, family := range []int{4, 6} {
		m.progress("kinds of packets, IPv%d", family)
		shots, err := n.kindShots(family, m.repeat())
		if err != nil {
			return err
		}
		samples, err := n.rounds(m.rounds, shots)
		if err != nil {
			return err
		}
		of := map[string][]float64{}
		names = []string{emptyRow + ", not net of itself"}
		cells[names[0]] = append(cells[names[0]], report.Of(samples[0], ""), report.Words("–"))
		for i, s := range shots[1:] {
			of[s.name] = less(samples[i+1], samples[0])
			ratio := report.Ratios(of[s.name], less(samples[1], samples[0]))
			cells[s.name] = append(cells[s.name], report.Of(of[s.name], ""), report.Of(ratio, ""))
			names = append(names, s.name)
			switch s.name {
			case establishedRow:
				m.AtMost(fmt.Sprintf("an established packet, IPv%d, to one hash lookup", family), median(ratio), 3, "x")
			case deniedRow:
				m.AtMost(fmt.Sprintf("a repeated denial, IPv%d, logging on, to one hash lookup", family), median(ratio), 6.5, "x")
			}
		}
		m.AtMost(fmt.Sprintf("a first packet, IPv%d, to the floor's", family), median(report.Ratios(of[firstRow], of["floor, "+firstRow])), 1.35, "x")
	}
	for _, name := range names {
		t.Rows = append(t.Rows, report.Row{Name: name, Cells: cells[name]})
	}
	m.Tables = append(m.Tables, t, ratiosOnly(t))
	return nil
}

// ratiosOnly is the table's second and fourth column, to be drawn.
func ratiosOnly(t *report.Table) *report.Table {
	out := &report.Table{Name: "packets-1h", Title: "The same, in hash lookups", Head: t.Head, Columns: []string{"IPv4", "IPv6"}, Plot: report.Dots}
	for _, r := range t.Rows[1:] { // none of the empty program
		out.Rows = append(out.Rows, report.Row{Name: r.Name, Cells: []report.Figure{r.Cells[1], r.Cells[3]}})
	}
	return out
}

func (n *node) kindShots(family, repeat int) ([]*shot, error) {
	one, two, three := address(1, family), address(2, family), address(3, family)
	tcp := testnode.TCP
	established := n.established(family, repeat)
	established.name = establishedRow
	floorFirst := n.first(1, 2, family, 90, false)
	floorFirst.name = firstRow
	first := n.first(1, 2, family, 80, false)
	first.name = firstRow
	refused := n.first(1, 3, family, 80, true)
	refused.name = refusedRow
	reply := n.shot(replyRow, tcp(two, 80, one, 1000, "A"), 2, repeat, redirect)
	shots := append(n.base(family, repeat),
		n.floor(n.shot(establishedRow, data(family), 1, repeat, redirect)), established, reply,
		n.floor(floorFirst), first,
		n.shot(deniedRow, tcp(one, 1000, three, 80, "S"), 1, repeat/4, drop), refused)
	shots = append(shots, n.network(family, repeat)...)
	byNodes, err := n.nodes(family, repeat)
	if err != nil {
		return nil, err
	}
	shots = append(shots, byNodes...)
	head, tail, err := fragments(one, address(15, family))
	if err != nil {
		return nil, err
	}
	forged := tcp(map[int]string{4: "10.99.0.1", 6: "fd99::1"}[family], 1000, two, 80, "S")
	strange := data(family)
	strange.EtherType = 0x88cc
	shots = append(shots, n.shot(forgedRow, forged, 1, repeat/2, drop), n.shot(strangeRow, strange, 1, repeat/2, drop))
	later := n.shot(fragmentRow, testnode.Frame{}, 1, repeat/2, redirect)
	later.bytes, later.before = tail, n.shot("first fragment", testnode.Frame{}, 1, 1, redirect)
	later.before.bytes = head
	shots = append(shots, later)
	return shots, nil
}

// open has by open the flow of s.
func open(s, by *shot) *shot {
	by.repeat, s.opened = 1, by
	return s
}

// fresh opens a flow with every packet.
func fresh(s *shot) *shot {
	s.repeat, s.mode, s.port, s.drain = firstRepeat, next, 80, true
	return s
}

// fragments are the two of a datagram, by source and destination.
func fragments(from, to string) (head, tail []byte, err error) {
	f := testnode.UDP(from, 1000, to, 80) // any port is allowed there
	f.Payload = make([]byte, 1600)
	whole, err := f.Serialize()
	if err != nil {
		return nil, nil, err
	}
	const cut = 1480 // of the datagram, a multiple of 8
	if netip.MustParseAddr(from).Is4() {
		f.ID, f.MoreFrags, f.Payload = 7, true, make([]byte, cut-8)
		if head, err = f.Serialize(); err != nil {
			return nil, nil, err
		}
		f.MoreFrags, f.FragOff, f.Payload = false, cut/8, make([]byte, 128)
		tail, err = f.Serialize()
		return head, tail, err
	}
	ip, datagram := whole[:54], whole[54:]
	piece := func(offset, more int, body []byte) []byte {
		b := slices.Concat(ip, []byte{ip[20], 0, byte(offset >> 8), byte(offset | more), 0, 0, 0, 7}, body)
		b[18], b[19], b[20] = byte((len(body)+8)>>8), byte(len(body)+8), 44 // payload length, next header
		return b
	}
	return piece(0, 1, datagram[:cut]), piece(cut, 0, datagram[cut:]), nil
}

// byRules has more and more rules of the receiver's policies.
func (n *node) byRules(m *measurement) error {
	counts := []int{1, 10, 100, 1000}
	t := &report.Table{Name: "rules", Title: "More rules, IPv4", Head: "x 1H, by rules", Plot: report.Lines,
		Note: "A pod has at most 256 port ranges, port names and rules without a port in force per direction: single ports and equal ports do not count."}
	kinds := []struct {
		name string
		kind kind
	}{{"rules for one port", onePort}, {"rules for all ports", allPorts}, {"rules with a port each", ownPort}}
	shots := n.base(4, m.repeat())
	number := len(receivers) + 10
	for _, c := range counts {
		t.Columns = append(t.Columns, fmt.Sprint(c))
		for _, k := range kinds {
			ruleset := uint32(number)
			n.state.Rulesets[ruleset] = rules(n.state, 10000*ruleset, c, k.kind)
			if err := n.pod(number, 1, ruleset); err != nil {
				return err
			}
			port := uint16(80)
			if k.kind == ownPort {
				port = uint16(c) // the last
			}
			to := address(number, 4)
			first := n.first(1, number, 4, port, false)
			data := n.shot("", testnode.TCP(address(1, 4), 1000, to, port, "A"), 1, m.repeat(), redirect)
			data.opened = n.shot("SYN", testnode.TCP(address(1, 4), 1000, to, port, "S"), 1, 1, redirect)
			first.name, data.name = fmt.Sprintf("first packet, %d %s", c, k.name), fmt.Sprintf("established, %d %s", c, k.name)
			shots = append(shots, first, data)
			number++
		}
	}
	if err := n.commit(); err != nil {
		return err
	}
	m.progress("1 to 1,000 rules")
	samples, err := n.rounds(m.rounds, shots)
	if err != nil {
		return err
	}
	at := func(count, kind, established int) []float64 {
		return less(samples[2+2*(count*len(kinds)+kind)+established], samples[0])
	}
	for established, what := range []string{"first packet", "established"} {
		for k := range kinds {
			row := report.Row{Name: what + ", " + kinds[k].name}
			for c := range counts {
				row.Cells = append(row.Cells, report.Of(report.Ratios(at(c, k, established), less(samples[1], samples[0])), ""))
			}
			t.Rows = append(t.Rows, row)
		}
	}
	m.AtMost("a first packet, 1,000 rules with a port each, to 10", median(report.Ratios(at(3, 2, 0), at(1, 2, 0))), 1.5, "x")
	m.AtMost("an established packet, 1,000 rules, to 1", median(report.Ratios(at(3, 0, 1), at(0, 0, 1))), 1.1, "x")
	m.Tables = append(m.Tables, t)
	return nil
}

// byIdentities has more and more peers, all of which the receiver's one rule allows; each
// number of them in maps of its own, so that they take turns.
func (n *node) byIdentities(m *measurement) error {
	counts := pick(m, []int{10, 100, 1000, 10000, 100000}, []int{10, 1000})
	t := &report.Table{Name: "identities", Title: "More identities, IPv4", Head: "x 1H, by identities", Plot: report.Lines}
	t.Rows = []report.Row{{Name: establishedRow}, {Name: firstRow}, {Name: deniedRow}}
	shots := n.base(4, m.repeat())
	for _, c := range counts {
		m.progress("%d identities", c)
		crowd, err := beside(m, crowdConfig)
		if err != nil {
			return err
		}
		defer crowd.close()
		some, err := crowd.crowd(c, m.repeat())
		if err != nil {
			return err
		}
		shots = append(shots, some...)
		t.Columns = append(t.Columns, fmt.Sprint(c))
	}
	samples, err := n.rounds(m.rounds, shots)
	if err != nil {
		return err
	}
	at := func(count, kind int) []float64 { return less(samples[2+count*len(t.Rows)+kind], samples[0]) }
	for kind := range t.Rows {
		for c := range counts {
			t.Rows[kind].Cells = append(t.Rows[kind].Cells, report.Of(report.Ratios(at(c, kind), less(samples[1], samples[0])), ""))
		}
	}
	m.AtMost("an established packet, 100,000 identities, to 10", median(report.Ratios(at(len(counts)-1, 0), at(0, 0))), 1.1, "x")
	m.Tables = append(m.Tables, t)
	return nil
}

// crowd adds identities, all of which a receiver's one rule allows, and returns an
// established packet to it, a first one, and a denial.
func (n *node) crowd(count, repeat int) ([]*shot, error) {
	if err := n.receivers(); err != nil {
		return nil, err
	}
	const number, set = 200, 900
	n.state.Rulesets[set] = datapath.Ruleset{Default: 300, Groups: []datapath.PortGroup{{Protocol: datapath.TCP, Low: 80, High: 80, Set: set, Labels: true, Rules: []uint32{301}}}}
	n.state.Facts[datapath.Fact{Set: set, Identity: pod1}] = 0
	if err := n.pod(number, 1, set); err != nil {
		return nil, err
	}
	for i := range count {
		id := identity.Number(100000 + i)
		a := netip.AddrFrom4([4]byte{10, byte(64 + i>>16), byte(i >> 8), byte(i)})
		n.state.Peers[netip.PrefixFrom(a, 32)] = datapath.Peer{Identity: id}
		n.state.Facts[datapath.Fact{Set: set, Identity: id}] = 0
	}
	if err := n.commit(); err != nil {
		return nil, err
	}
	data := n.shot(establishedRow, testnode.TCP(address(1, 4), 1000, address(number, 4), 80, "A"), 1, repeat, redirect)
	data.opened = n.shot("SYN", testnode.TCP(address(1, 4), 1000, address(number, 4), 80, "S"), 1, 1, redirect)
	first := n.first(1, number, 4, 80, false)
	first.name = firstRow
	denied := n.shot(deniedRow, testnode.TCP(address(1, 4), 1000, address(3, 4), 80, "S"), 1, repeat/4, drop)
	shots := []*shot{data, first, denied}
	for _, s := range shots {
		s.on = n.rig
	}
	return shots, nil
}

// byFlows picks among more and more open flows.
func (n *node) byFlows(m *measurement) error {
	counts := pick(m, []int{1000, 10000, 100000, manyFlows}, []int{1000, 20000})
	t := &report.Table{Name: "flows", Title: "More flows, IPv4", Head: "ns, by open flows", Plot: report.Lines,
		Note: "Random: each packet is of another flow, taken at random, in one loop. Cold: one packet at a time, after other memory was walked."}
	rows := []report.Row{{Name: "Weir, random"}, {Name: "floor, random"}, {Name: "Weir, cold"}, {Name: "floor, cold"}, {Name: "Weir to floor, random"}, {Name: "Weir to floor, cold"}}
	cold := newCold()
	for _, c := range counts {
		m.progress("%d flows", c)
		many, err := n.manyFlows(c, m.repeat())
		if err != nil {
			return err
		}
		idle := *many[0]
		idle.program, idle.want = n.yard.Empty, pass
		shots := []*shot{&idle, many[0], many[1]}
		samples, err := n.rounds(m.rounds, shots)
		if err != nil {
			return err
		}
		weir, floor := less(samples[1], samples[0]), less(samples[2], samples[0])
		singles, err := n.cold(cold, shots, pick(m, 400, 20))
		if err != nil {
			return err
		}
		ratio := report.Of(report.Ratios(weir, floor), "x")
		for i, f := range []report.Figure{report.Of(weir, ""), report.Of(floor, ""), report.Of(singles[0], ""), report.Of(singles[1], ""), ratio, report.Of(report.Ratios(singles[0], singles[1]), "x")} {
			rows[i].Cells = append(rows[i].Cells, f)
		}
		t.Columns = append(t.Columns, fmt.Sprint(c))
		if c == gateFlows {
			m.AtMost("100,000 random flows, to the floor", ratio.Median, 1.3, "x")
		}
	}
	t.Rows = rows[:4]
	m.Tables = append(m.Tables, t, &report.Table{Name: "flows-ratio", Title: "More flows, IPv4, to the floor", Head: "", Columns: t.Columns, Rows: rows[4:]})
	return nil
}

const (
	flowsPod   = 220
	openRandom = 901 // its ruleset
)

// manyFlows has so many open, and returns packets of them, Weir's and the floor's.
func (n *node) manyFlows(count, repeat int) ([]*shot, error) {
	if n.veths[flowsPod] == 0 {
		n.state.Rulesets[openRandom] = datapath.Ruleset{Default: datapath.RuleNotIsolated, Allow: true}
		if err := n.pod(flowsPod, 1, openRandom); err != nil {
			return nil, err
		}
		if err := n.commit(); err != nil {
			return nil, err
		}
		if err := n.floorEnd(netip.MustParseAddr(address(flowsPod, 4)), uint32(n.veths[flowsPod]), 100002); err != nil {
			return nil, err
		}
	}
	if err := n.fill(flowsPod, n.filled, uint32(count)); err != nil {
		return nil, err
	}
	n.filled = uint32(count)
	name := fmt.Sprintf("%d random flows", count)
	shots := []*shot{n.shot(name, n.flow(flowsPod, "A"), 1, repeat, redirect), n.floor(n.shot(name, n.flow(flowsPod, "A"), 1, repeat, redirect))}
	for _, s := range shots {
		s.mode, s.flows, s.port = random, uint32(count), 8000
	}
	return shots, nil
}

func (n *node) flow(number int, flags string) testnode.Frame {
	return testnode.TCP(address(1, 4), 1000, address(number, 4), 8000, flags)
}

// fill opens flows from number from on, in Weir's table and the floor's.
func (n *node) fill(number int, from, to uint32) error {
	for _, s := range []*shot{n.shot("open", n.flow(number, "S"), 1, 0, redirect), n.floor(n.shot("open", n.flow(number, "S"), 1, 0, redirect))} {
		s.mode, s.port, s.drain = next, 8000, true
		for s.next = from; s.next < to; {
			if _, err := n.burst(s, min(20000, int(to-s.next))); err != nil {
				return fmt.Errorf("open flow %d: %w", s.next, err)
			}
		}
	}
	return nil
}

// coldMemory is walked so that what the caches hold is something else.
type coldMemory struct {
	words []uint64
	sum   uint64
}

func newCold() *coldMemory { return &coldMemory{words: make([]uint64, 8<<20)} } // 64 MiB

func (c *coldMemory) walk() {
	for i := 0; i < len(c.words); i += 8 {
		c.sum += c.words[i]
		c.words[i]++
	}
}

// cold fires shots one packet at a time; all but the first, net of that.
func (n *node) cold(c *coldMemory, shots []*shot, times int) ([][]float64, error) {
	samples := make([][]float64, len(shots))
	for range times {
		if n.ctx.Err() != nil {
			return nil, n.ctx.Err()
		}
		for i, s := range shots {
			c.walk()
			took, err := n.single(s)
			if err != nil {
				return nil, err
			}
			samples[i] = append(samples[i], took)
		}
	}
	var out [][]float64
	for _, s := range samples[1:] {
		out = append(out, less(s, samples[0]))
	}
	return out, nil
}

// single is a run of one packet, by the kernel's own clock around the program.
func (n *node) single(s *shot) (float64, error) {
	if err := n.aim(s); err != nil {
		return 0, err
	}
	return testRun(n.yard.Feed, s.bytes, s.ifindex)
}
