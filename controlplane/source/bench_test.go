package source

import (
	"fmt"
	"log/slog"
	"testing"
)

// One changed file among 2,000: what a scan and an update cost.
func BenchmarkChange(b *testing.B) {
	r := &rig{dir: b.TempDir(), state: b.TempDir()}
	for i := range 2000 {
		must(b, writeFile(r.dir, fmt.Sprintf("%d.yaml", i), podYAML(fmt.Sprintf("p%d", i), "1")))
	}
	d, err := NewDirectory(r.dir, r.state, slog.New(slog.DiscardHandler))
	must(b, err)
	for d.scan() {
	}
	d.publish(func(Update) {})
	i := 0
	for b.Loop() {
		i++
		must(b, writeFile(r.dir, "a.yaml", podYAML("a", fmt.Sprint(i))))
		d.scan()
		d.publish(func(Update) {})
	}
}
