package cni_test

import (
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/weirnet/weir/bpf"
)

// loadPrograms pins the real stubs as the agent would. With nothing behind them they
// drop every packet, like the agent's programs do before there is an endpoint.
func (n *node) loadPrograms() {
	n.t.Helper()
	spec, err := bpf.LoadStub()
	if err != nil {
		n.t.Fatal(err)
	}
	if n.stubs, err = ebpf.NewCollection(spec); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(n.stubs.Close)
	dir := filepath.Join(n.bpffsDir(), "progs")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	for name, p := range n.stubs.Programs {
		if err := p.Pin(filepath.Join(dir, name)); err != nil {
			n.t.Fatal(err)
		}
	}
}

// openPrograms puts programs behind the stubs that let everything pass.
func (n *node) openPrograms() {
	n.t.Helper()
	const next = -1 // TCX_NEXT
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, next), asm.Return()},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = p.Close() })
	for _, hook := range []bpf.StubHook{bpf.StubHookHOOK_FROM_POD, bpf.StubHookHOOK_TO_POD} {
		if err := n.stubs.Maps[bpf.StubMapTcProgs].Put(2*uint32(hook), p); err != nil {
			n.t.Fatal(err)
		}
	}
}
