package format

import (
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestWideNamesEachDayButToday(t *testing.T) {
	now := time.Now()
	midnight := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, now.Location())
	w, got := &Wide{}, ""
	for _, at := range []time.Time{midnight.Add(-25 * time.Hour), midnight.Add(-time.Hour), midnight.Add(-time.Minute), now, now} {
		line := w.Line(&observerpb.GetFlowsResponse{Time: timestamppb.New(at), ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: &flowpb.Flow{}}})
		if day, _, above := strings.Cut(line, "\n"); above {
			got += day
		}
		got += "."
	}
	day := func(ago time.Duration) string { return midnight.Add(-ago).Format(time.DateOnly) }
	if want := day(25*time.Hour) + "." + day(time.Hour) + ".." + midnight.Format(time.DateOnly) + ".."; got != want {
		t.Errorf("days above rows: %q, want %q", got, want)
	}
	if line := (&Wide{}).Line(&observerpb.GetFlowsResponse{Time: timestamppb.New(now), ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: &flowpb.Flow{}}}); strings.Contains(line, "\n") {
		t.Errorf("today is named: %q", line)
	}
}
