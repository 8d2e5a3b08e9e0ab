package collector

import (
	"testing"

	"github.com/weirnet/weir/controlplane/flowexport/otlp"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/flowfeed"
)

// BenchmarkLogs sends ended flows to a receiver on this machine, which takes a good part of the time;
// one operation is one flow.
func BenchmarkLogs(b *testing.B) {
	const batch = 512
	feed := flowfeed.New(b, 0)
	var events []datapath.Event
	for port := range uint16(batch) {
		events = append(events, flowfeed.Ended(port+1))
	}
	all := feed.Records(events...)
	for _, c := range []struct {
		name, protocol string
		gzip           bool
	}{{"grpc", otlp.GRPC, false}, {"grpc-gzip", otlp.GRPC, true}, {"http-gzip", otlp.HTTP, true}} {
		b.Run(c.name, func(b *testing.B) {
			address := freeAddress(b)
			s, _ := collect(b, c.protocol, address, nil)
			s.forget = true
			o := to(b, "http", c.protocol, address)
			o.Gzip = c.gzip
			l := otlp.NewLogs(o)
			defer l.Close()
			b.ReportAllocs()
			b.ResetTimer()
			for left := b.N; left > 0; left -= batch {
				if n, err := l.Send(b.Context(), all[:min(left, batch)]); err != nil || n != min(left, batch) {
					b.Fatal(n, err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "flows/s")
		})
	}
}
