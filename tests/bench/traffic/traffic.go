// Package traffic sends and receives what benchmarks measure. Each end is a process of its
// own, one thread at real-time priority on the last CPU that is either in a system call or
// about to make the next: no allocation, no scheduler of Go's. Bursts are of less than a
// second: a CPU at that priority runs nothing else.
package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Command is the first argument of a process that is to be one end.
const Command = "traffic"

// Environment keeps Go from interrupting the thread.
const Environment = "GODEBUG=asyncpreemptoff=1"

// longest burst; of those at ordinary priority, longestOrdinary.
var longest = 950 * time.Millisecond

const longestOrdinary = 30 * time.Second

// kinds of ends, by name; what they print is a rate a second.
var kinds = map[string]struct {
	usage    string
	args     int
	run      func(args []string) error
	ordinary bool // on any CPU, at ordinary priority
}{
	"echo":     {"PORT", 1, echo, false},
	"take":     {"PORT", 1, take, false},
	"pingpong": {"ADDRESS PORT MILLISECONDS", 3, pingpong, false},
	"connect":  {"ADDRESS PORT MILLISECONDS", 3, connect, false},
	"bulk":     {"ADDRESS PORT MILLISECONDS", 3, bulk, false},
	"udp":      {"ADDRESS PORT MILLISECONDS", 3, udp, false},
	"opening":  {"ADDRESS PORT MILLISECONDS", 3, opening, false},
	"answer":   {"ADDRESS PORT MILLISECONDS", 3, answer, false},
	"raw":      {"DEVICE HEX-FRAME MILLISECONDS", 3, raw, false},
	"host":     {"PORT", 1, echo, true},
	"churn":    {"ADDRESS PORT MILLISECONDS", 3, churn, true}, // prints how many there were
}

// Main is such a process.
func Main(args []string) int {
	runtime.LockOSThread()
	err := errors.New("traffic KIND ARGUMENTS")
	if len(args) > 0 {
		kind, ok := kinds[args[0]]
		switch {
		case !ok:
			err = fmt.Errorf("traffic: there is no %q", args[0])
		case len(args)-1 != kind.args:
			err = fmt.Errorf("traffic %s %s", args[0], kind.usage)
		default:
			err = nil
			if kind.ordinary {
				longest = longestOrdinary
			} else {
				err = RealTime()
			}
			if err == nil {
				err = kind.run(args[1:])
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// RealTime pins the thread to the last CPU at SCHED_RR 20.
func RealTime() error {
	var set unix.CPUSet
	set.Set(runtime.NumCPU() - 1)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 20}, 0); err != nil {
		return fmt.Errorf("real-time priority: %w", err)
	}
	return nil
}

// burst is how long to send.
func burst(text string) (time.Duration, error) {
	ms, err := strconv.Atoi(text)
	d := time.Duration(ms) * time.Millisecond
	if err != nil || d <= 0 || d > longest {
		return 0, fmt.Errorf("%q is not between 1 and %d ms", text, longest.Milliseconds())
	}
	return d, nil
}

// now is the monotonic clock, in ns.
func now() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return t.Nano()
}

// target is a socket address as the kernel reads it.
type target struct {
	bytes [28]byte
	size  uintptr
	inet  int
}

func parseTarget(address, port string) (*target, error) {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	t := &target{size: 16, inet: unix.AF_INET}
	if a.Is6() {
		t.size, t.inet = 28, unix.AF_INET6
		copy(t.bytes[8:], a.AsSlice())
	} else {
		copy(t.bytes[4:], a.AsSlice())
	}
	*(*uint16)(unsafe.Pointer(&t.bytes[0])) = uint16(t.inet)
	t.bytes[2], t.bytes[3] = byte(n>>8), byte(n)
	return t, nil
}

// The calls below are raw: Go's scheduler does not hear of them.

func socket(inet, kind int) (uintptr, error) {
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(inet), uintptr(kind), 0)
	return fd, failed(errno)
}

func (t *target) connect(fd uintptr) error {
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&t.bytes)), t.size)
	return failed(errno)
}

func read(fd uintptr, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), failed(errno)
}

func write(fd uintptr, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), failed(errno)
}

func closeFD(fd uintptr) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0) }

// failed is errno as an error; nil costs nothing.
func failed(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

func noDelay(fd uintptr) error {
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

func rate(n uint64, since int64) { fmt.Printf("%.1f\n", float64(n)*1e9/float64(now()-since)) }
