package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/tests/bench/yard"
	"github.com/weirnet/weir/tests/testnode"
)

// mode is what the feeder (yard.bpf.c) makes another in each packet.
type mode uint32

const (
	same   mode = iota // nothing
	random             // one of flows, by their ports
	next               // the next one, by its ports
)

// shot is a packet and the program that it is fed to.
type shot struct {
	name    string
	on      *rig // that has the program; nil: who fires it
	program *ebpf.Program
	ifindex int
	mark    uint16 // ours
	outer   string // address of the tunnel's end that it comes from, "" = of none
	frame   testnode.Frame
	repeat  int
	want    int // verdict

	mode   mode
	flows  uint32
	port   uint16 // the port that few flows differ in
	swap   bool   // that is the source port
	opened *shot  // fired once before the first burst
	before *shot  // fired before each burst
	drain  bool   // the rings are emptied before each burst: those who are full are cheap

	next  uint32 // of mode next
	bytes []byte
}

// rig fires shots.
type rig struct {
	ctx   context.Context
	yard  yard.YardObjects
	rings []*ringbuf.Reader
}

// newRig has room for so many of the floor's entries, of which a flow takes two.
func newRig(ctx context.Context, entries uint32) (*rig, error) {
	r := &rig{ctx: ctx}
	spec, err := yard.LoadYard()
	if err != nil {
		return nil, err
	}
	spec.Maps["floor_flows"].MaxEntries = entries
	if err := spec.LoadAndAssign(&r.yard, nil); err != nil {
		return nil, fmt.Errorf("load the yardsticks: %w", err)
	}
	return r, r.read(r.yard.FloorEvents)
}

func (r *rig) read(m *ebpf.Map) error {
	reader, err := ringbuf.NewReader(m)
	if err == nil {
		r.rings = append(r.rings, reader)
	}
	return err
}

// readWeir has Weir's rings emptied, too.
func (r *rig) readWeir(bpffs string) error {
	for _, name := range []string{bpf.WeirMapFlowEvents, bpf.WeirMapDenialEvents} {
		m, err := ebpf.LoadPinnedMap(maps.Path(bpffs, name), nil)
		if err != nil {
			return err
		}
		if err := r.read(m); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) close() {
	for _, reader := range r.rings {
		reader.Close()
	}
	r.yard.Close()
}

func (r *rig) drain() error {
	var record ringbuf.Record
	for _, reader := range r.rings {
		reader.SetDeadline(time.Unix(1, 0))
		for {
			err := reader.ReadInto(&record)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// burst feeds repeat packets to the shot's program and returns what one took, in ns.
func (r *rig) burst(s *shot, repeat int) (float64, error) {
	if s.on != nil {
		r = s.on
	}
	if r.ctx.Err() != nil {
		return 0, r.ctx.Err()
	}
	if s.bytes == nil {
		b, err := s.frame.Serialize()
		if err != nil {
			return 0, fmt.Errorf("%s: %w", s.name, err)
		}
		s.bytes = b
	}
	if first := s.opened; first != nil {
		s.opened = nil
		if _, err := r.burst(first, 1); err != nil {
			return 0, err
		}
	}
	if s.before != nil {
		if _, err := r.burst(s.before, 1); err != nil {
			return 0, err
		}
	}
	if s.drain {
		if err := r.drain(); err != nil {
			return 0, err
		}
	}
	if err := r.aim(s); err != nil {
		return 0, fmt.Errorf("%s: %w", s.name, err)
	}
	opts := &ebpf.RunOptions{Data: s.bytes, Repeat: uint32(repeat), Context: testnode.Context(s.ifindex)}
	began := time.Now()
	verdict, err := r.yard.Feed.Run(opts)
	took := time.Since(began)
	s.next += uint32(repeat)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.name, err)
	}
	if int(int32(verdict)) != s.want {
		return 0, fmt.Errorf("%s: the verdict is %d, want %d: it is not what was to be measured", s.name, int32(verdict), s.want)
	}
	return float64(took.Nanoseconds()) / float64(repeat), nil
}

func (r *rig) aim(s *shot) error {
	swap := uint32(0)
	if s.swap {
		swap = 1
	}
	var family uint32
	var outer [4]uint32
	if s.outer != "" {
		a := netip.MustParseAddr(s.outer)
		if family = 6; a.Is4() {
			family, outer[0] = 4, binary.BigEndian.Uint32(a.AsSlice())
		} else {
			for i := range outer {
				outer[i] = binary.NativeEndian.Uint32(a.AsSlice()[4*i:])
			}
		}
	}
	return errors.Join(
		r.yard.FeedTunnel.Set(family), r.yard.FeedNetwork.Set(uint32(datapath.TunnelNetwork)), r.yard.FeedOuter.Set(outer),
		r.yard.Target.Update(uint32(0), s.program, ebpf.UpdateAny),
		r.yard.FeedMode.Set(uint32(s.mode)), r.yard.FeedFlows.Set(max(s.flows, 1)), r.yard.FeedNext.Set(s.next),
		r.yard.FeedPort.Set(uint32(s.port)), r.yard.FeedSwap.Set(swap), r.yard.FeedMark.Set(uint32(s.mark)<<testnode.MarkShift))
}

// rounds fires all shots in turns; samples are by shot and round, in ns a packet. The first
// burst of each is not counted.
func (r *rig) rounds(n int, shots []*shot) ([][]float64, error) {
	samples := make([][]float64, len(shots))
	for round := range n + 1 {
		for i, s := range shots {
			repeat := s.repeat
			if round == 0 && s.mode != next {
				repeat = max(1, s.repeat/10)
			}
			took, err := r.burst(s, repeat)
			if err != nil {
				return nil, err
			}
			if round > 0 {
				samples[i] = append(samples[i], took)
			}
		}
	}
	return samples, nil
}

// less is samples less the base's of the same round.
func less(samples, base []float64) []float64 {
	out := make([]float64, len(samples))
	for i := range samples {
		out[i] = max(samples[i]-base[i], 0.1)
	}
	return out
}

// stub is a hook as a link enters it.
func (n *node) stubOf(hook string) (*ebpf.Program, error) {
	return ebpf.LoadPinnedProgram(filepath.Join(n.root(), "progs", "stub_"+hook), nil)
}
