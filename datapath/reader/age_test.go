package reader

import (
	"testing"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// A flow ended with its newest packet, not when the sweep found it over.
func TestAge(t *testing.T) {
	const second = uint64(time.Second)
	for kind, want := range map[datapath.EventKind]time.Duration{
		datapath.EventNew: 12 * time.Second, datapath.EventRevoked: 12 * time.Second,
		datapath.EventEnded: time.Second, datapath.EventDenied: 0,
	} {
		e := bpf.WeirEvent{Kind: uint8(kind), Created: 5 * second, Last: 6 * second, Time: 17 * second}
		if got := age(&e); got != want {
			t.Errorf("kind %d: %s, want %s", kind, got, want)
		}
	}
}
