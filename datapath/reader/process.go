package reader

import (
	"bytes"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// processes says what the numbers of processes mean. The kernel's table keeps the newest, so
// an event's are looked up when it is read, and remembered for the flow's later ones.
type processes struct {
	table     *ebpf.Map // nil: there is none
	now, past map[uint32]*datapath.Process
}

// remembered is how many processes each of the two generations may have.
const remembered = 32768

// held is the bit of a number that tells holders from openers (enum process_number).
const held = uint32(bpf.WeirProcessNumberPROCESS_HELD)

// of is nil for no process, and for one that nobody remembers.
func (p *processes) of(number uint32) *datapath.Process {
	if number&^held == 0 {
		return nil
	}
	if known, ok := p.now[number]; ok {
		return known
	}
	process := p.past[number]
	if process == nil {
		if process = p.read(number); process == nil {
			return nil
		}
	}
	if len(p.now) >= remembered || p.now == nil {
		p.now, p.past = make(map[uint32]*datapath.Process), p.now
	}
	p.now[number] = process
	return process
}

func (p *processes) read(number uint32) *datapath.Process {
	var is bpf.WeirProcess
	if p.table == nil || p.table.Lookup(number&^held, &is) != nil {
		return nil
	}
	out := &datapath.Process{PID: is.Key.Pid, Start: sinceBoot(is.Key.Start), Name: text(is.Name[:]), Held: number&held != 0}
	out.Executable = path(is.Exe[:], is.ExeLength)
	if out.Executable != "" && is.ExeWhole == 0 {
		out.Executable = "..." + out.Executable
	}
	out.Cgroup = path(is.Cgroup[:], is.CgroupLength)
	return out
}

// text is a C string.
func text(b []int8) string {
	out := make([]byte, 0, len(b))
	for _, c := range b {
		if c == 0 {
			break
		}
		out = append(out, byte(c))
	}
	return string(out)
}

// path is made of names, each with its end, the last one first.
func path(b []int8, length uint16) string {
	raw := make([]byte, min(int(length), len(b)))
	for i := range raw {
		raw[i] = byte(b[i])
	}
	names := bytes.Split(bytes.TrimSuffix(raw, []byte{0}), []byte{0})
	if len(raw) == 0 {
		return ""
	}
	var out strings.Builder
	for i := len(names) - 1; i >= 0; i-- {
		out.WriteByte('/')
		out.Write(names[i])
	}
	return out.String()
}

// sinceBoot is a time of CLOCK_BOOTTIME, which goes on while the machine sleeps.
func sinceBoot(ns uint64) time.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(int64(ns) - ts.Nano())).Round(0)
}
