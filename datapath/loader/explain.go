package loader

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// The oldest kernel that Weir supports. What older ones lack is in needs; those from 5.17
// on lack nothing of it, but nobody has looked whether their verifiers take the programs.
const (
	floor     = 6<<16 | 1<<8
	floorText = "Weir needs Linux 6.1 or newer"
)

// needs are the kernel's features that the programs cannot do without, with the version
// that brought them.
var needs = []struct {
	name  string
	probe func() error
}{
	{"BPF ring buffers (Linux 5.8)", func() error { return features.HaveMapType(ebpf.RingBuf) }},
	{"bpf_redirect_peer (Linux 5.10)", helper(asm.FnRedirectPeer)},
	{"bpf_timer (Linux 5.15)", helper(asm.FnTimerInit)},
	{"bpf_loop (Linux 5.17)", helper(asm.FnLoop)},
	{"XDP programs (Linux 4.8)", func() error { return features.HaveProgramType(ebpf.XDP) }},
}

func helper(fn asm.BuiltinFunc) func() error {
	return func() error { return features.HaveProgramHelper(ebpf.SchedCLS, fn) }
}

func missing() (names []string) {
	for _, n := range needs {
		if errors.Is(n.probe(), ebpf.ErrNotSupported) {
			names = append(names, n.name)
		}
	}
	return names
}

// explain turns a failed load into one line: what the kernel lacks, or what its verifier
// said first and last.
func explain(err error) error {
	if names := missing(); len(names) > 0 {
		return fmt.Errorf("this kernel lacks %s: %s: %w", strings.Join(names, ", "), floorText, err)
	}
	var refused *ebpf.VerifierError
	if !errors.As(err, &refused) {
		return err
	}
	lines := refused.Log
	if len(lines) > 6 {
		lines = append(lines[:2:2], lines[len(lines)-4:]...)
	}
	err = fmt.Errorf("the kernel's verifier refuses the programs: %s: %w", strings.Join(lines, "; "), err)
	if version, e := features.LinuxVersionCode(); e == nil && version < floor {
		err = fmt.Errorf("%s: %w", floorText, err)
	}
	return err
}
