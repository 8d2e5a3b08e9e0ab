package loader

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/tests/sandbox"
)

// other is a program of somebody else's, that lets everything on.
func other(t *testing.T, name string) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	must(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

func otherFilter(t *testing.T, ifindex int, p *ebpf.Program, name string) {
	t.Helper()
	a := attacher{ifindex: ifindex}
	must(t, a.addClsact())
	f := a.filter(fromPod)
	f.Handle, f.Priority, f.Fd, f.Name, f.DirectAction = 1, 2, p.FD(), name, true
	must(t, netlink.FilterReplace(f))
}

// Where a plugin's programs redirect, ours would not see the packets: chaining to it is
// refused, by TCX and by filters, and nothing is attached. Other programs are no matter.
func TestChainedToRedirects(t *testing.T) {
	sandbox.Netns(t)
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	load(t, small(dir))
	refused := func(ifindex int, plugin string) {
		t.Helper()
		if err := AttachChained(dir, ifindex, "weir1", XDPOff); err == nil || !strings.Contains(err.Error(), plugin) || !strings.Contains(err.Error(), "redirects") {
			t.Errorf("error %v, want one that names %s", err, plugin)
		}
		if got := attachedTo(t, dir); len(got) != 0 {
			t.Errorf("attached: %v", got)
		}
	}
	one := veth(t, "one")
	otherFilter(t, one, other(t, "cil_from_contai"), "cil_from_container-one")
	refused(one, "Cilium")
	two := veth(t, "two")
	otherFilter(t, two, other(t, "bandwidth"), "bandwidth.o:[egress]")
	if hasTCX(t) {
		three := veth(t, "three")
		l, err := link.AttachTCX(link.TCXOptions{Interface: three, Program: other(t, "cali_tc_preambl"), Attach: ebpf.AttachTCXEgress})
		must(t, err)
		defer l.Close()
		refused(three, "Calico")
	}
	must(t, AttachChained(dir, two, "weir1", XDPOff))
	if got := attachedTo(t, dir); got["weir1/from_pod"] != two || got["weir1/to_pod"] != two {
		t.Errorf("attached: %v", got)
	}
}

// Ours come first for what comes in and last for what goes out, whoever was there before.
func TestPlaceAmongOthers(t *testing.T) {
	if sandbox.Netns(t); !hasTCX(t) {
		return // filters have their priority
	}
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	load(t, small(dir))
	one := veth(t, "one")
	for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		for _, name := range []string{"first", "second"} {
			l, err := link.AttachTCX(link.TCXOptions{Interface: one, Program: other(t, name), Attach: at})
			must(t, err)
			defer l.Close()
		}
	}
	must(t, AttachChained(dir, one, "weir1", XDPOff))
	names := func(at ebpf.AttachType) (out []string) {
		r, err := link.QueryPrograms(link.QueryOptions{Target: one, Attach: at})
		must(t, err)
		for _, p := range r.Programs {
			out = append(out, programName(p.ID))
		}
		return out
	}
	if got := names(ebpf.AttachTCXIngress); !slices.Equal(got, []string{"stub_from_pod", "first", "second"}) {
		t.Errorf("ingress: %v", got)
	}
	if got := names(ebpf.AttachTCXEgress); !slices.Equal(got, []string{"first", "second", "stub_to_pod"}) {
		t.Errorf("egress: %v", got)
	}
}

// A device that becomes a pod's gives up what it had as a device, and takes nothing of the
// pod's with it: by filters both have one place.
func TestFiltersOfADeviceThatBecomesAPods(t *testing.T) {
	sandbox.Netns(t)
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	load(t, small(dir))
	one := veth(t, "one")
	attach := func(a attacher, hooks ...tcHook) {
		t.Helper()
		must(t, a.attach(XDPOff, shieldPod)) // its directory
		for _, h := range hooks {
			p, err := a.loadStub(h.name)
			must(t, err)
			defer p.Close()
			must(t, a.attachFilter(h, p))
		}
	}
	attach(attacher{dir, one, "one"}, tcHook{toNetwork, ebpf.AttachTCXEgress})
	attach(attacher{dir, one, "weir1"}, tcHook{fromPod, ebpf.AttachTCXIngress}, tcHook{toPod, ebpf.AttachTCXEgress})
	must(t, DetachNetwork(dir, "one"))
	if got := attachedTo(t, dir); len(got) != 2 || got["weir1/from_pod"] != one || got["weir1/to_pod"] != one {
		t.Errorf("attached: %v, want the pod's", got)
	}
	if n := filtersAt(t, one, uint32(netlink.HANDLE_MIN_EGRESS)); n != 1 {
		t.Errorf("%d filters at egress, want the pod's", n)
	}
	must(t, DetachPod(dir, "weir1"))
	list, err := netlink.FilterList(attacher{ifindex: one}.device(), uint32(netlink.HANDLE_MIN_EGRESS))
	must(t, err)
	if len(list) != 0 {
		t.Errorf("%d filters are left", len(list))
	}
}
