package jsonfile

import (
	"path/filepath"
	"testing"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/flowfeed"
)

// BenchmarkFile writes ended flows in an exporter's batches; one operation is one flow.
func BenchmarkFile(b *testing.B) {
	const batch = 512
	feed := flowfeed.New(b, 0)
	var events []datapath.Event
	for port := range uint16(batch) {
		events = append(events, flowfeed.Ended(port+1))
	}
	all := feed.Records(events...)
	for _, c := range []struct {
		name   string
		fields []string
	}{{"all", nil}, {"some", []string{"time", "verdict", "IP", "l4", "source", "destination"}}} {
		b.Run(c.name, func(b *testing.B) {
			fields, err := ParseFields(c.fields)
			if err != nil {
				b.Fatal(err)
			}
			f := New(Options{Path: filepath.Join(b.TempDir(), "flows.json"), Size: 100 << 20, Keep: 1, Fields: fields}, feed.Log)
			b.ReportAllocs()
			b.ResetTimer()
			for left := b.N; left > 0; left -= batch {
				if _, err := f.Send(b.Context(), all[:min(left, batch)]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "flows/s")
		})
	}
}
