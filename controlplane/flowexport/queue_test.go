package flowexport

import (
	"testing"

	"github.com/weirnet/weir/controlplane/flowlog"
)

// Every cause that a log has records of has its place in a queue, one that an earlier agent left
// behind, too.
func TestQueueTellsEveryCause(t *testing.T) {
	causes := []string{flowlog.LostFlowEvents, flowlog.LostDenialEvents, flowlog.LostAgent, "", flowlog.LostExportQueue}
	q := newQueue(1)
	for i, cause := range causes {
		q.addLost(uint64(i+1), cause)
		q.addLost(10, cause)
	}
	got := q.take(len(causes))
	if len(got) != len(causes) {
		t.Fatalf("%d records", len(got))
	}
	for i, r := range got {
		if n, cause := r.Lost(); n != uint64(i+11) || cause != causes[i] {
			t.Errorf("%d lost to %q, want %d to %q", n, cause, i+11, causes[i])
		}
	}
}
