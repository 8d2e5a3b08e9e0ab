//go:build cost

package cluster

import (
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/tests/lab"
)

const (
	costRounds = 12
	costBurst  = 250 * time.Millisecond // at real-time priority, on one CPU
	costPort   = 9100
)

// TestTunnelCost prints what is left of native routing's speed in the tunnel: the median of
// ratios, each of two bursts one after the other. All runs on one CPU at real-time priority,
// both ends of it.
func TestTunnelCost(t *testing.T) {
	var conns [2][2]int // by mode; ping-pong, bulk
	for i, mode := range modes {
		p := newPair(t, "--routing", mode)
		web, db := p.add(0, "web", "web"), p.add(1, "db", "db")
		p.enforced()
		p.routed(&web.Host, &db.Host)
		for kind := range conns[i] {
			conns[i][kind] = p.pipe(&web.Host, &db.Host, costPort+kind, kind == 0)
		}
	}
	for kind, what := range []string{"ping-pong of 64 bytes", "bulk"} {
		var ratios []float64
		for round := range costRounds {
			var got [2]float64
			for _, mode := range []int{round % 2, 1 - round%2} {
				n, err := burst(conns[mode][kind], kind == 0)
				if err != nil {
					t.Fatal(err)
				}
				got[mode] = n
			}
			ratios = append(ratios, got[1]/got[0])
		}
		slices.Sort(ratios)
		t.Logf("TCP %s: vxlan is %.2f of native (%.2f to %.2f in %d rounds)", what, ratios[costRounds/2], ratios[0], ratios[costRounds-1], costRounds)
	}
}

// pipe connects two pods; the far end sends back what comes, or takes it.
func (p *pair) pipe(from, to *lab.Host, port int, back bool) int {
	p.Helper()
	listening := make(chan error)
	go func() {
		_ = to.Do(func() error {
			l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err == nil {
				err = unix.Bind(l, &unix.SockaddrInet4{Port: port})
			}
			if err == nil {
				err = unix.Listen(l, 1)
			}
			if err == nil {
				err = realTime()
			}
			listening <- err
			if err != nil {
				return err
			}
			fd, _, err := unix.Accept(l)
			if err != nil {
				return err
			}
			b := make([]byte, 1<<16)
			for {
				n, err := unix.Read(fd, b)
				if err != nil || n == 0 {
					return err
				}
				if back {
					if _, err := unix.Write(fd, b[:n]); err != nil {
						return err
					}
				}
			}
		})
	}()
	p.must(<-listening)
	var fd int
	p.must(from.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: netip.MustParseAddr(to.Addr4).As4()})
	}))
	p.Cleanup(func() { unix.Close(fd) })
	return fd
}

// realTime makes the calling thread one of real time on one CPU; it is never handed back.
func realTime() error {
	var cpus unix.CPUSet
	cpus.Set(0)
	if err := unix.SchedSetaffinity(0, &cpus); err != nil {
		return err
	}
	return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 20}, 0)
}

// burst is how much goes through in a second of it.
func burst(fd int, back bool) (perSecond float64, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends here
		if err = realTime(); err != nil {
			return
		}
		b := make([]byte, 1<<16)
		if back {
			b = b[:64]
		}
		sent, begun := 0, time.Now()
		for err == nil && time.Since(begun) < costBurst {
			var n int
			if n, err = unix.Write(fd, b); err == nil && back {
				_, err = unix.Read(fd, b)
			}
			sent += n
		}
		perSecond = float64(sent) / time.Since(begun).Seconds()
	}()
	<-done
	time.Sleep(costBurst)
	return perSecond, err
}
