package packet

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/datapath/reader"
	"github.com/weirnet/weir/tests/testnode"
)

// What a new flow costs the agent, from the kernel's ring to the log: read, named, kept. The
// ring is filled by the real programs while the clock stands; ns/op is of one event.
func BenchmarkIngest(b *testing.B) {
	const volleys = 11000 // events that fit the ring
	n := testnode.New(b, loader.Config{Sizes: loader.Sizes{"flows": 1 << 21}, FlowShare: 1 << 20})
	n.State.Rulesets = rulesets()
	pod := n.AddPod(b, "10.0.0.1", "fd00::1", idA, open, open)
	n.Commit(b)
	hook, err := n.Hook("from_pod")
	if err != nil {
		b.Fatal(err)
	}
	defer hook.Close()
	in, err := reader.Open(n.Config.BPFFSDir)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.StopTimer()
	log := flowlog.New(nobody{}, flowlog.Options{Node: "n"})
	sent := uint64(0)
	var spent time.Duration
	for done := 0; done < b.N; {
		dst := fmt.Sprintf("203.0.%d.%d", sent/volleys/250, sent/volleys%250+1)
		frame := testnode.UDP(pod.Addr4, 1, dst, 53).Bytes(b)
		err := <-n.Thread(func() error {
			for i := range volleys {
				frame[34], frame[35] = byte((i+1000)>>8), byte(i+1000)
				if _, err := hook.Run(frame, pod.Ifindex, pod.Ifindex, 0); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		sent += volleys
		ctx, cancel := context.WithCancel(b.Context())
		began := time.Now()
		b.StartTimer()
		ran := make(chan error, 1)
		go func() { ran <- log.Run(ctx, in) }()
		for log.Status().Read < sent && time.Since(began) < 20*time.Second {
			time.Sleep(100 * time.Microsecond)
		}
		b.StopTimer()
		spent += time.Since(began)
		if got := log.Status().Read; got != sent {
			b.Fatalf("%d events, %d read", sent, got)
		}
		cancel()
		<-ran
		if in, err = reader.Open(n.Config.BPFFSDir); err != nil {
			b.Fatal(err)
		}
		done += volleys
	}
	b.ReportMetric(float64(sent)/spent.Seconds(), "events/s")
	_ = in.Close()
}
