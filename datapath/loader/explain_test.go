package loader

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/tests/sandbox"
)

func kernelVersion(t testing.TB) uint32 {
	t.Helper()
	version, err := features.LinuxVersionCode()
	must(t, err)
	return version
}

// A kernel from the floor on has all that is needed; one below it is told what it lacks, in
// one line.
func TestKernelHasWhatIsNeeded(t *testing.T) {
	sandbox.Root(t)
	lacks := missing()
	if kernelVersion(t) >= floor {
		if len(lacks) > 0 {
			t.Errorf("this kernel lacks %v", lacks)
		}
		return
	}
	_, err := Load(small(filepath.Join(sandbox.BPFFS(t), "weir")))
	if err == nil {
		t.Fatalf("the programs load below the floor, without %v", lacks)
	}
	for _, want := range append(lacks, "Linux 6.1") {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %s", err, want)
		}
	}
	if len(lacks) == 0 || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q, want one line that names what is missing", err)
	}
}

func TestRefusedProgramIsExplained(t *testing.T) {
	sandbox.Root(t)
	spec, err := bpf.LoadWeir()
	must(t, err)
	bad := spec.Programs[bpf.WeirProgShieldPod]
	bad.Instructions = bad.Instructions[:1]
	_, err = ebpf.NewCollection(spec)
	if err == nil {
		t.Fatal("a truncated program was loaded")
	}
	if text := explain(err).Error(); !strings.Contains(text, bpf.WeirProgShieldPod) {
		t.Errorf("error %q does not name the program", text)
	}
}
