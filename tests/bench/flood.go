package main

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/tests/bench/report"
	"github.com/weirnet/weir/tests/bench/traffic"
	"github.com/weirnet/weir/tests/bench/yard"
	"github.com/weirnet/weir/tests/lab"
	"github.com/weirnet/weir/tests/testnode"
)

var flood = section{
	name: "flood", title: "A flood", measure: measureFlood,
	method: "Frames of 60 bytes that are all dropped at one hook. Socket: sent by a packet socket past the queue, which is most of what it costs. " +
		"Live: sent by XDP's own test runs, straight into the device's ring, so that little else than the drop costs; a device takes those where it " +
		"has XDP in the driver or GRO, and has no more than 256 of them on their way. One CPU sends and drops. Only frames count that the hook in question dropped: by its rule's counter in nftables, in Weir by the count of that very reason, from which at a shield is taken off what the programs behind it denied. " +
		"The shield is Weir's XDP program. On uplinks it drops whoever is on a list that an operator gives: `uplinkXDP` and `shieldDeny` of the chart, `--uplink-xdp` and `--shield-deny-file` of the agent; " +
		"at pods whoever is not who it says: `xdp` of the CNI configuration. Both are off by default: native takes TCP its large segments, as the traffic's table has it.",
}

// dropper drops what comes in by a device, and knows how much it did.
type dropper struct {
	name  string
	frame testnode.Frame
	from  func(*floodSite) *lab.Host // who sends it
	by    string                     // the sender's device
	lab   lab.Options
	start func(context.Context, *floodSite) error
	count func(context.Context, *floodSite) (uint64, error)

	site  *floodSite
	rates map[string][]float64
}

// floodSite has an outside, a node and a pod.
type floodSite struct {
	*site
	yard   yard.YardObjects
	device int // the sender's
	packet []byte
}

const (
	stranger = "203.0.113.9" // who is denied
	outside  = "192.0.2.10"
)

func droppers() []*dropper {
	uplink := func(s *floodSite) *lab.Host { return s.nodes[0].Outside }
	pod := func(s *floodSite) *lab.Host { return s.a }
	fromStranger := testnode.UDP(stranger, 1000, podAddress(0, 1), 80)
	forged := testnode.UDP(stranger, 1000, outside, 80)
	all := []*dropper{
		{name: "nftables, netdev ingress", from: uplink, frame: fromStranger, start: netdev("up0"), count: nftCounter},
		{name: "nftables, prerouting", from: uplink, frame: fromStranger, start: prerouting, count: nftCounter},
		{name: "nftables, forward", from: uplink, frame: fromStranger, start: forwardHook, count: nftCounter},
	}
	for _, mode := range []string{"generic", "native"} {
		all = append(all, &dropper{name: "Weir, shield on the uplink, " + mode, from: uplink, frame: fromStranger,
			lab: lab.Options{Agent: []string{"--uplink-xdp", mode}}, start: denied, count: byShield(bpf.WeirDropReasonDROP_SHIELD)})
	}
	all = append(all, &dropper{name: "Weir, a policy denies a pod's guest (TCX)", from: uplink, frame: testnode.UDP(outside, 1000, "", 80), start: isolated, count: dropsFor(bpf.WeirDropReasonDROP_POLICY)},
		&dropper{name: "Weir, a pod forges its source (TCX)", from: pod, by: "eth0", frame: forged, start: atPod, count: dropsFor(bpf.WeirDropReasonDROP_SPOOFED_SOURCE)})
	for _, mode := range []string{"generic", "native"} {
		all = append(all, &dropper{name: "Weir, a pod forges its source, shield " + mode, from: pod, by: "eth0", frame: forged,
			lab: lab.Options{XDP: mode}, start: atPod, count: byShield(bpf.WeirDropReasonDROP_SPOOFED_SOURCE)})
	}
	return append(all, &dropper{name: "nftables, netdev ingress at a pod", from: pod, by: "eth0", frame: forged, start: netdevPod, count: nftCounter})
}

// generators by name.
var generators = []string{"socket", "live"}

func measureFlood(m *measurement) (failed error) {
	all := droppers()
	defer func() {
		var sites []*site
		for _, d := range all {
			if d.site != nil {
				d.site.yard.Close()
				sites = append(sites, d.site.site)
			}
		}
		failed = errors.Join(failed, closeAll(sites...))
	}()
	var up []*dropper
	for i, d := range all {
		if i > 0 && !m.match.MatchString(d.name) {
			continue
		}
		m.progress("%s", d.name)
		err := d.up(m, i)
		if m.Err() != nil {
			return m.Err()
		}
		if err != nil {
			m.Note("%s: not measured: %v", d.name, err)
			continue
		}
		up = append(up, d)
	}
	for round := range m.rounds {
		m.progress("round %d of %d", round+1, m.rounds)
		for _, d := range up {
			for _, g := range generators {
				if m.Err() != nil {
					return m.Err()
				}
				rate, err := d.burst(m, g)
				if err != nil {
					m.Note("%s, %s, round %d: %v", d.name, g, round+1, err)
				}
				d.rates[g] = append(d.rates[g], rate)
			}
		}
	}
	if len(up) == 0 || up[0] != all[0] {
		return errors.New("there is nothing to hold it against")
	}
	t := &report.Table{Name: "flood", Title: "Dropped, to nftables' netdev hook", Columns: []string{"socket", "live"}, Plot: report.Dots}
	rates := &report.Table{Name: "flood-rates", Title: "Dropped a second", Columns: []string{"socket", "live"}}
	for _, d := range up {
		row, rate := report.Row{Name: d.name}, report.Row{Name: d.name}
		for _, g := range generators {
			row.Cells = append(row.Cells, report.Of(report.Ratios(nonzero(d.rates[g], up[0].rates[g])), ""))
			x, _ := nonzero(d.rates[g], d.rates[g])
			rate.Cells = append(rate.Cells, report.Of(x, ""))
		}
		t.Rows, rates.Rows = append(t.Rows, row), append(rates.Rows, rate)
	}
	m.Tables = append(m.Tables, t, rates)
	return nil
}

func (d *dropper) up(m *measurement, i int) error {
	d.rates = map[string][]float64{}
	s, err := newSite(m, fmt.Sprintf("f%d", i), 1, d.lab)
	d.site = &floodSite{site: s}
	if err != nil {
		return err
	}
	if err := yard.LoadYardObjects(&d.site.yard, nil); err != nil {
		return err
	}
	if err := d.start(m, d.site); err != nil {
		return err
	}
	if err := s.nodes[0].Do(gro); err != nil {
		return err
	}
	if d.by == "" {
		d.by = "up0"
	}
	if d.site.packet, err = d.serialize(); err != nil {
		return err
	}
	return d.from(d.site).Do(func() error {
		d.site.device, err = device(d.by)
		return err
	})
}

// serialize addresses the frame to the device at the other end.
func (d *dropper) serialize() ([]byte, error) {
	if d.frame.Dst == "" {
		d.frame.Dst = d.site.b.Addr4
	}
	d.frame.Payload = make([]byte, 18)
	b, err := d.frame.Serialize()
	if err != nil {
		return nil, err
	}
	host, name := &d.site.nodes[0].Host, "up0"
	if d.by == "eth0" {
		host, name = d.site.a, "eth0"
	}
	err = host.Do(func() error {
		l, err := net.InterfaceByName(name)
		if err == nil && d.by == "eth0" {
			copy(b[6:], l.HardwareAddr)
			copy(b, gatewayMAC(d.site.a))
		} else if err == nil {
			copy(b, l.HardwareAddr)
		}
		return err
	})
	return b, err
}

// gatewayMAC is that of the node's side of a pod's veth, as the pod has it.
func gatewayMAC(pod *lab.Host) net.HardwareAddr {
	out, _ := pod.Run(context.Background(), "sh", "-c", "ping -c1 -W1 "+gateway+" >/dev/null 2>&1; ip neigh show dev eth0")
	fields := strings.Fields(out)
	for i, f := range fields {
		if f == "lladdr" {
			mac, _ := net.ParseMAC(fields[i+1])
			return mac
		}
	}
	return net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
}

// burst floods for a while; what was not dropped where it should be does not count.
func (d *dropper) burst(m *measurement, generator string) (float64, error) {
	before, err := d.count(m, d.site)
	if err != nil {
		return 0, err
	}
	took, frames := time.Duration(pick(m, 400, 60))*time.Millisecond, pick(m, 1000000, 100000)
	if generator == "live" {
		took, err = d.live(frames)
	} else {
		_, err = send(d.from(d.site), "raw", d.by, hex.EncodeToString(d.site.packet), took.Milliseconds())
	}
	if err != nil {
		return 0, err
	}
	after, err := d.count(m, d.site)
	if err != nil {
		return 0, err
	}
	if after <= before {
		return 0, errors.New("nothing was dropped there")
	}
	if dropped := float64(after - before); generator == "live" && dropped < .8*float64(frames) {
		return 0, fmt.Errorf("only %.1f %% of the frames were dropped there: the others were lost on their way", 100*dropped/float64(frames))
	}
	return float64(after-before) / took.Seconds(), nil
}

// live sends frames by XDP's test run out of the sender's device, and returns how long it took.
func (d *dropper) live(frames int) (took time.Duration, err error) {
	err = d.from(d.site).Do(func() error {
		if err := traffic.RealTime(); err != nil {
			return err
		}
		checksum := binary.LittleEndian.Uint16(d.site.packet[24:])
		if err := errors.Join(d.site.yard.SendTo.Set(uint32(d.site.device)), d.site.yard.SendChecksum.Set(uint32(checksum))); err != nil {
			return err
		}
		began := time.Now()
		_, err := d.site.yard.Send.Run(&ebpf.RunOptions{Data: d.site.packet, Repeat: uint32(frames), Flags: liveFrames})
		took = time.Since(began)
		return err
	})
	return took, err
}

const liveFrames = 1 << 1 // BPF_F_TEST_XDP_LIVE_FRAMES

// Starts.

func nftRules(text string) func(context.Context, *floodSite) error {
	return func(ctx context.Context, s *floodSite) error {
		if err := s.addPods(ctx); err != nil {
			return err
		}
		return apply(ctx, s.nodes[0], ruleset{nft, text})
	}
}

func netdev(name string) func(context.Context, *floodSite) error {
	return nftRules("table netdev flood { chain c { type filter hook ingress device " + name + " priority 0; ip saddr " + stranger + " counter drop; }; }\n")
}

func netdevPod(ctx context.Context, s *floodSite) error { return netdev("va")(ctx, s) }

func prerouting(ctx context.Context, s *floodSite) error {
	return nftRules("table ip flood { chain c { type filter hook prerouting priority -300; ip saddr "+stranger+" counter drop; }; }\n")(ctx, s)
}

func forwardHook(ctx context.Context, s *floodSite) error {
	return nftRules("table ip flood { chain c { type filter hook forward priority 0; ip saddr "+stranger+" counter drop; }; }\n")(ctx, s)
}

// denied is on the shield's list.
func denied(ctx context.Context, s *floodSite) error {
	n := s.nodes[0]
	list := filepath.Join(n.RunDir(), "shield-deny")
	if err := os.WriteFile(list, []byte(stranger+"\n"), 0o600); err != nil {
		return err
	}
	n.Flags("--shield-deny-file", list)
	if err := s.weir(ctx, 1); err != nil {
		return err
	}
	var status string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if status = n.Weir(ctx, "status").Stdout; strings.Contains(status, "1 address or prefix denied at the uplinks") {
			return nil
		}
	}
	return fmt.Errorf("the shield's list is not in force: %s", end300(status))
}

// isolated lets pod a in to pod b and nobody else.
func isolated(ctx context.Context, s *floodSite) error { return s.weir(ctx, 1) }

func atPod(ctx context.Context, s *floodSite) error { return s.weir(ctx, 0) }

// Counters.

func nftCounter(ctx context.Context, s *floodSite) (n uint64, err error) {
	out, err := s.nodes[0].Run(ctx, "nft", "list", "ruleset")
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	_, after, _ := strings.Cut(out, "packets ")
	_, err = fmt.Sscan(after, &n)
	return n, err
}

// dropsFor counts the drops of one reason.
func dropsFor(reason bpf.WeirDropReason) func(context.Context, *floodSite) (uint64, error) {
	return func(_ context.Context, s *floodSite) (uint64, error) {
		return s.counted(bpf.WeirCounterCOUNT_DROP + bpf.WeirCounter(reason))
	}
}

// byShield counts the drops of one reason that nothing else had to do with: what TCX's
// programs drop they note as a denial as well, or count that they did not.
func byShield(reason bpf.WeirDropReason) func(context.Context, *floodSite) (uint64, error) {
	return func(_ context.Context, s *floodSite) (uint64, error) {
		dropped, err := s.counted(bpf.WeirCounterCOUNT_DROP + bpf.WeirCounter(reason))
		if err != nil {
			return 0, err
		}
		behind, err := s.counted(bpf.WeirCounterCOUNT_DENIAL_EMITTED, bpf.WeirCounterCOUNT_DENIAL_LOST, bpf.WeirCounterCOUNT_DENIAL_SUPPRESSED)
		return dropped - min(dropped, behind), err
	}
}

// counted is the sum of some of the programs' counters.
func (s *floodSite) counted(counters ...bpf.WeirCounter) (sum uint64, err error) {
	m, err := ebpf.LoadPinnedMap(maps.Path(s.nodes[0].BPFFSDir(), bpf.WeirMapCounters), nil)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	for _, c := range counters {
		var byCPU []uint64
		if err := m.Lookup(uint32(c), &byCPU); err != nil {
			return 0, err
		}
		for _, n := range byCPU {
			sum += n
		}
	}
	return sum, nil
}

// gro turns generic receive offload on for all devices of the thread's namespace: one that
// has it takes live frames.
func gro() error {
	devices, err := net.Interfaces()
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, d := range devices {
		if d.Flags&net.FlagLoopback != 0 {
			continue
		}
		on := struct{ command, value uint32 }{unix.ETHTOOL_SGRO, 1}
		request := struct {
			name  [unix.IFNAMSIZ]byte
			value unsafe.Pointer
			_     [16]byte
		}{value: unsafe.Pointer(&on)}
		copy(request.name[:], d.Name)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return fmt.Errorf("gro of %s: %w", d.Name, errno)
		}
	}
	return nil
}
