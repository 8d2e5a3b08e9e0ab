package reader

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/tests/sandbox"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// producer writes events into the pinned rings as the programs do.
type producer map[string]*ebpf.Program

// pinRings pins both rings and returns who writes them: a program that copies the packet
// it is tested with.
func pinRings(t testing.TB) (string, producer) {
	t.Helper()
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	must(t, rlimit.RemoveMemlock())
	must(t, os.MkdirAll(filepath.Join(dir, "maps"), 0o700))
	spec, err := bpf.LoadWeir()
	must(t, err)
	p := producer{}
	for _, name := range []string{bpf.WeirMapFlowEvents, bpf.WeirMapDenialEvents} {
		ring, err := ebpf.NewMap(spec.Maps[name])
		must(t, err)
		must(t, ring.Pin(maps.Path(dir, name)))
		p[name] = copier(t, ring)
		t.Cleanup(func() { ring.Close() })
	}
	return dir, p
}

// copier reads the event that follows an Ethernet header in the packet, and submits it.
func copier(t testing.TB, ring *ebpf.Map) *ebpf.Program {
	t.Helper()
	const size = int32(eventSize)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.Mov.Imm(asm.R2, 64),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, -size),
			asm.Mov.Imm(asm.R4, size),
			asm.FnSkbLoadBytes.Call(),
			asm.JNE.Imm(asm.R0, 0, "out"),
			asm.LoadMapPtr(asm.R1, ring.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -size),
			asm.Mov.Imm(asm.R3, size),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnRingbufOutput.Call(),
			asm.Return().WithSymbol("out"),
		},
	})
	must(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

func (p producer) emit(t testing.TB, ring string, e bpf.WeirEvent) {
	t.Helper()
	packet := make([]byte, 64+eventSize)
	copy(packet[64:], bytesOf(&e))
	ret, _, err := p[ring].Test(packet)
	must(t, err)
	if ret != 0 {
		t.Fatalf("the ring takes no event: %d", int32(ret))
	}
}

func TestReadDecodes(t *testing.T) {
	dir, p := pinRings(t)
	r, err := Open(dir)
	must(t, err)
	defer r.Close()
	var e bpf.WeirEvent
	e.Time, e.Epoch, e.Created = uint64(monotonic()), 9, 77
	e.Tuple.Saddr = netip.MustParseAddr("10.0.0.1").As16()
	e.Tuple.Daddr = netip.MustParseAddr("10.0.0.2").As16()
	e.Tuple.Sport, e.Tuple.Dport, e.Tuple.Protocol, e.Tuple.Family = 1234, 80, 6, 4
	e.Ifindex, e.Endpoint, e.Identity, e.Rule = 3, [2]uint32{1, 2}, [2]uint32{256, 257}, [2]uint32{300, 301}
	e.Kind, e.Verdict, e.Reason, e.Direction, e.Judged = 4, 2, 1, 1, 3
	e.Path, e.End, e.IcmpType, e.IcmpCode, e.PickedUp, e.TcpFlags = 1, 2, 8, 3, 1, 0x1202
	e.Packets, e.Bytes = [2]uint64{5, 6}, [2]uint64{700, 800}
	p.emit(t, bpf.WeirMapDenialEvents, e)
	got, err := r.Read()
	must(t, err)
	if d := time.Since(got.Time); d < 0 || d > time.Minute {
		t.Errorf("time %v is %v ago", got.Time, d)
	}
	got.Time = time.Time{}
	want := datapath.Event{
		Kind: datapath.EventDenied, Created: 77, Epoch: 9,
		Source: netip.MustParseAddrPort("10.0.0.1:1234"), Destination: netip.MustParseAddrPort("10.0.0.2:80"),
		Protocol: 6, Ifindex: 3, Endpoint: [2]uint32{1, 2}, Identity: [2]identityNumber{256, 257}, Rule: [2]uint32{300, 301},
		Dropped: true, Reason: datapath.ReasonPolicy, Direction: datapath.Ingress, Judged: 3, Path: 1, End: 2,
		ICMPType: 8, ICMPCode: 3, PickedUp: true, TCPFlags: 0x1202, Packets: [2]uint64{5, 6}, Bytes: [2]uint64{700, 800},
	}
	if got != want {
		t.Errorf("read %+v\nwant %+v", got, want)
	}
	e.Tuple.Family = 6
	e.Tuple.Saddr = netip.MustParseAddr("fd00::1").As16()
	p.emit(t, bpf.WeirMapFlowEvents, e)
	if got, err := r.Read(); err != nil || got.Source != netip.MustParseAddrPort("[fd00::1]:1234") {
		t.Errorf("read source %v, %v", got.Source, err)
	}
}

// Nothing is lost or doubled, in rings' order, while the reader sleeps, wakes and drains.
func TestReadLosesNothing(t *testing.T) {
	dir, p := pinRings(t)
	r, err := Open(dir)
	must(t, err)
	defer r.Close()
	const each = 3000
	go func() {
		for i := range uint64(each) {
			p.emit(t, bpf.WeirMapFlowEvents, bpf.WeirEvent{Kind: 1, Created: i, Time: uint64(monotonic())})
			p.emit(t, bpf.WeirMapDenialEvents, bpf.WeirEvent{Kind: 4, Created: i, Time: uint64(monotonic())})
			if i%500 == 0 {
				time.Sleep(3 * restMost) // let the reader go idle
			}
		}
	}()
	next := map[datapath.EventKind]uint64{}
	for range 2 * each {
		e, err := r.Read()
		must(t, err)
		if e.Created != next[e.Kind] {
			t.Fatalf("event %d of kind %d, want %d", e.Created, e.Kind, next[e.Kind])
		}
		next[e.Kind]++
	}
}

// A small ring is looked at more often than a large one, and never in a loop.
func TestRestFitsTheRing(t *testing.T) {
	for ring, want := range map[uint32]time.Duration{4096: restLeast, 1 << 20: 2 * time.Millisecond, 2 << 20: restMost, 32 << 20: restMost} {
		if got := restFor(ring); got != want {
			t.Errorf("a ring of %d bytes is left alone for %v, want %v", ring, got, want)
		}
	}
}

func TestReadAllocatesNothing(t *testing.T) {
	dir, p := pinRings(t)
	r, err := Open(dir)
	must(t, err)
	defer r.Close()
	for range 2000 {
		p.emit(t, bpf.WeirMapFlowEvents, bpf.WeirEvent{Kind: 1})
	}
	_, err = r.Read() // the first drain makes the batch's room
	must(t, err)
	if n := testing.AllocsPerRun(1000, func() { _, _ = r.Read() }); n != 0 {
		t.Errorf("%v allocations an event", n)
	}
}

func TestCloseWakesRead(t *testing.T) {
	dir, _ := pinRings(t)
	r, err := Open(dir)
	must(t, err)
	done := make(chan error)
	go func() {
		_, err := r.Read()
		done <- err
	}()
	must(t, r.Close())
	must(t, r.Close())
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read returns %v, want os.ErrClosed", err)
	}
	if _, err := r.Read(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read after Close returns %v, want os.ErrClosed", err)
	}
}

func TestOpenNamesTheRing(t *testing.T) {
	if _, err := Open(t.TempDir()); err == nil {
		t.Error("opened rings that are not there")
	}
}

func TestClockKeepsOrderAndFollowsSteps(t *testing.T) {
	c := &clock{}
	c.refresh()
	first := c.wall(1000)
	c.measured -= 2 * clockAgain
	c.refresh()
	if c.wall(1000) != first {
		t.Errorf("the offset moved by %v without a step", c.wall(1000).Sub(first))
	}
	c.offset -= 10 * clockStep // as if the wall clock had been set forward
	c.measured -= 2 * clockAgain
	c.refresh()
	if d := c.wall(1000).Sub(first); d < -time.Duration(clockStep) || d > time.Duration(clockStep) {
		t.Errorf("after a step the clock is %v off", d)
	}
}

func TestVerdictIsTheContracts(t *testing.T) {
	spec, err := bpf.LoadWeir()
	must(t, err)
	if n := enumValue(t, spec, "verdict", "VERDICT_DROPPED"); n != verdictDropped {
		t.Errorf("VERDICT_DROPPED is %d, want %d", n, verdictDropped)
	}
}

// How much was read of the rings is known to the next reader, too, whatever became of it.
func TestConsumed(t *testing.T) {
	dir, p := pinRings(t)
	for range 3 {
		p.emit(t, bpf.WeirMapFlowEvents, bpf.WeirEvent{Kind: 1})
		p.emit(t, bpf.WeirMapDenialEvents, bpf.WeirEvent{Kind: 4})
	}
	for read, want := range []uint64{0, 6} { // a drain takes all there is
		r, err := Open(dir)
		must(t, err)
		for range read {
			_, err = r.Read()
			must(t, err)
		}
		must(t, r.Close())
		again, err := Open(dir)
		must(t, err)
		bytes, denials, each, err := again.(*reader).Consumed()
		must(t, err)
		if bytes != want*each || denials != want/2*each || each < uint64(eventSize) {
			t.Errorf("after %d: %d bytes of %d each, want %d events", read, bytes, each, want)
		}
		must(t, again.Close())
	}
}
