package reader

import (
	"time"

	"golang.org/x/sys/unix"
)

// clock turns the kernel's monotonic time into wall time. The offset between the two
// changes when somebody sets the wall clock: it is measured again from time to time, and
// a difference too small to be that is left alone, so that the order of events stays.
type clock struct {
	offset   int64 // wall - monotonic, ns
	measured int64 // monotonic, ns
}

const (
	clockAgain = int64(time.Second)
	clockStep  = int64(time.Millisecond)
)

// refresh measures the offset if it is old.
func (c *clock) refresh() {
	before := monotonic()
	if c.measured != 0 && before-c.measured < clockAgain {
		return
	}
	wall := time.Now().UnixNano()
	after := monotonic()
	offset := wall - (before + (after-before)/2)
	if c.measured == 0 || offset-c.offset > clockStep || c.offset-offset > clockStep {
		c.offset = offset
	}
	c.measured = after
}

func (c *clock) wall(ktime uint64) time.Time { return time.Unix(0, int64(ktime)+c.offset) }

func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // it exists on every Linux
	}
	return ts.Nano()
}
