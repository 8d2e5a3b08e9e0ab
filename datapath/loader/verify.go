package loader

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
)

// Verify loads every program, unpinned and attached to nothing, and prints what it cost
// the kernel's verifier.
func Verify(w io.Writer) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "program\tinstructions verified\ttranslated\tjited\t")
	for _, load := range []func() (*ebpf.CollectionSpec, error){bpf.LoadWeir, bpf.LoadSock, bpf.LoadObserve, bpf.LoadStub} {
		spec, err := load()
		if err != nil {
			return fmt.Errorf("read embedded programs: %w", err)
		}
		if err := verify(out, spec); err != nil {
			return err
		}
	}
	return out.Flush()
}

func verify(w io.Writer, spec *ebpf.CollectionSpec) error {
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return explain(err)
	}
	defer c.Close()
	for _, name := range slices.Sorted(maps.Keys(c.Programs)) {
		info, err := c.Programs[name].Info()
		if err != nil {
			return fmt.Errorf("ask about %s: %w", name, err)
		}
		verified, _ := info.VerifiedInstructions()
		translated, _ := info.TranslatedSize()
		jited, _ := info.JitedSize()
		fmt.Fprintf(w, "%s\t%d\t%d B\t%d B\t\n", name, verified, translated, jited)
	}
	return nil
}
