package loader

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/tests/sandbox"
)

// veth makes a pair in the test's namespace and returns one end's index.
func veth(t testing.TB, name string) int {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}))
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l.Attrs().Index
}

func attachedTo(t testing.TB, dir string) map[string]int {
	t.Helper()
	list, err := Attached(dir)
	must(t, err)
	out := map[string]int{}
	for _, a := range list {
		out[a.Name+"/"+a.Hook] = a.Ifindex
	}
	return out
}

// linkIDs are those of the hooks that are links; TCX says whether from_pod and to_pod are.
func linkIDs(t testing.TB, dir, name string) map[string]link.ID {
	t.Helper()
	out := map[string]link.ID{}
	for _, hook := range []string{fromPod, toPod, shield} {
		pin := attacher{bpffsDir: dir, name: name}.pin(hook)
		if !exists(pin) {
			continue
		}
		l, err := link.LoadPinnedLink(pin, nil)
		must(t, err)
		info, err := l.Info()
		must(t, err)
		out[hook] = info.ID
		l.Close()
	}
	return out
}

// attachedAt counts our programs at an interface's ingress or egress, by TCX or by filter.
func attachedAt(t testing.TB, ifindex int, at ebpf.AttachType) int {
	t.Helper()
	if !hasTCX(t) {
		parent := uint32(netlink.HANDLE_MIN_INGRESS)
		if at == ebpf.AttachTCXEgress {
			parent = netlink.HANDLE_MIN_EGRESS
		}
		return filtersAt(t, ifindex, parent)
	}
	r, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: at})
	must(t, err)
	return len(r.Programs)
}

func filtersAt(t testing.TB, ifindex int, parent uint32) (n int) {
	t.Helper()
	l, err := netlink.LinkByIndex(ifindex)
	must(t, err)
	list, err := netlink.FilterList(l, parent)
	must(t, err)
	for _, f := range list {
		if b, ok := f.(*netlink.BpfFilter); ok && b.DirectAction && strings.HasPrefix(b.Name, "weir_") {
			n++
		}
	}
	return n
}

// hasTCX goes by the kernel's version: one that ought to have it may not do without.
func hasTCX(t testing.TB) bool {
	t.Helper()
	return kernelVersion(t) >= 6<<16|6<<8
}

func xdpMode(t testing.TB, ifindex int) uint32 {
	t.Helper()
	l, err := netlink.LinkByIndex(ifindex)
	must(t, err)
	if l.Attrs().Xdp == nil {
		return 0
	}
	return l.Attrs().Xdp.AttachMode
}

func TestAttachPodIsIdempotent(t *testing.T) {
	sandbox.Netns(t)
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	load(t, small(dir))
	one, two := veth(t, "one"), veth(t, "two")
	must(t, AttachPod(dir, one, "weir1", XDPGeneric))
	ids := linkIDs(t, dir, "weir1")
	must(t, AttachPod(dir, one, "weir1", XDPGeneric))
	links := map[bool]int{true: 3, false: 1}[hasTCX(t)]
	if again := linkIDs(t, dir, "weir1"); len(ids) != links || again[fromPod] != ids[fromPod] || again[shield] != ids[shield] {
		t.Errorf("attached anew: links %v, before %v", again, ids)
	}
	if in, out := attachedAt(t, one, ebpf.AttachTCXIngress), attachedAt(t, one, ebpf.AttachTCXEgress); in != 1 || out != 1 {
		t.Errorf("%d programs at ingress, %d at egress, want 1 each", in, out)
	}

	must(t, AttachPod(dir, two, "weir1", XDPGeneric)) // a stale pin of another interface
	if in := attachedAt(t, one, ebpf.AttachTCXIngress); in != 0 {
		t.Errorf("%d programs left on the former interface", in)
	}
	if got := attachedTo(t, dir); len(got) != 3 || got["weir1/from_pod"] != two || got["weir1/shield"] != two {
		t.Errorf("attached: %v, want all on %d", got, two)
	}

	must(t, AttachPod(dir, two, "weir1", XDPNative))
	if mode := xdpMode(t, two); mode != 1 {
		t.Errorf("xdp mode %d after asking for native, want 1", mode)
	}
	must(t, AttachPod(dir, two, "weir1", XDPOff))
	if mode := xdpMode(t, two); mode != 0 {
		t.Errorf("xdp mode %d after asking for off", mode)
	}

	must(t, DetachPod(dir, "weir1"))
	must(t, DetachPod(dir, "weir1"))
	if got := attachedTo(t, dir); len(got) != 0 || attachedAt(t, two, ebpf.AttachTCXIngress) != 0 {
		t.Errorf("left after detaching: %v", got)
	}
}

func TestAttachOutlivesItsInterface(t *testing.T) {
	sandbox.Netns(t)
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	load(t, small(dir))
	must(t, AttachPod(dir, veth(t, "gone"), "weir1", XDPAuto))
	l, err := netlink.LinkByName("gone")
	must(t, err)
	must(t, netlink.LinkDel(l))
	if got := attachedTo(t, dir); len(got) != 3 || got["weir1/to_pod"] != 0 {
		t.Errorf("attached: %v, want three hooks to nowhere", got)
	}
	next := veth(t, "next")
	must(t, AttachPod(dir, next, "weir1", XDPAuto))
	must(t, DetachGone(dir, "weir1")) // who thinks so looked too early: another interface has the name
	if got := attachedTo(t, dir); got["weir1/to_pod"] != next || got["weir1/shield"] != next {
		t.Errorf("attached: %v, want all on %d", got, next)
	}
	l, err = netlink.LinkByName("next")
	must(t, err)
	must(t, netlink.LinkDel(l))
	must(t, DetachGone(dir, "weir1"))
	if got := attachedTo(t, dir); len(got) != 0 {
		t.Errorf("left of a gone interface: %v", got)
	}
}

func TestAttachNetwork(t *testing.T) {
	sandbox.Netns(t)
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	load(t, small(dir))
	up, other := veth(t, "up.100"), veth(t, "other")
	must(t, AttachNetwork(dir, up, "up.100", Uplink, XDPGeneric))
	must(t, AttachNetwork(dir, other, "other", Plain, XDPNative))
	want := map[string]int{"up.100/to_network": up, "up.100/from_network": up, "up.100/shield": up, "other/to_network": other}
	got := attachedTo(t, dir)
	for hook, ifindex := range want {
		if got[hook] != ifindex {
			t.Errorf("%s on %d, want %d", hook, got[hook], ifindex)
		}
	}
	if len(got) != len(want) {
		t.Errorf("attached: %v, want %v", got, want)
	}
	must(t, AttachNetwork(dir, up, "up.100", Tunnel, XDPGeneric)) // an uplink no more: no shield on what is inside
	if got := attachedTo(t, dir); len(got) != 3 || got["up.100/from_tunnel"] != up {
		t.Errorf("attached: %v, want from_tunnel and to_network twice", got)
	}
	must(t, AttachNetwork(dir, up, "up.100", Plain, XDPOff))
	if got := attachedTo(t, dir); len(got) != 2 {
		t.Errorf("attached: %v, want to_network twice", got)
	}
	must(t, DetachAll(dir))
	if got := attachedTo(t, dir); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// What happens where the kernel has no TCX.
func TestFilters(t *testing.T) {
	sandbox.Netns(t)
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	load(t, small(dir))
	one, two := veth(t, "one"), veth(t, "two")
	hooks := []tcHook{{fromPod, ebpf.AttachTCXIngress}, {toPod, ebpf.AttachTCXEgress}}
	attach := func(ifindex int) {
		t.Helper()
		a := attacher{dir, ifindex, "weir1"}
		must(t, a.attach(XDPOff, shieldPod)) // its directory
		for _, h := range hooks {
			p, err := a.loadStub(h.name)
			must(t, err)
			must(t, a.attachFilter(h, p))
			must(t, p.Close())
		}
	}
	filters := func(ifindex int) int {
		t.Helper()
		return filtersAt(t, ifindex, netlink.HANDLE_MIN_INGRESS) + filtersAt(t, ifindex, netlink.HANDLE_MIN_EGRESS)
	}
	attach(one)
	attach(one)
	if n := filters(one); n != 2 {
		t.Errorf("%d filters after attaching twice, want 2", n)
	}
	attach(two)
	if n, left := filters(two), filters(one); n != 2 || left != 0 {
		t.Errorf("%d filters on the new interface, %d on the old one", n, left)
	}
	if got := attachedTo(t, dir); len(got) != 2 || got["weir1/from_pod"] != two {
		t.Errorf("attached: %v", got)
	}

	// Somebody else's clean-up is seen, and mended.
	clsact := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{LinkIndex: two, Parent: netlink.HANDLE_CLSACT}}
	must(t, netlink.QdiscDel(clsact))
	if got := attachedTo(t, dir); len(got) != 2 || got["weir1/from_pod"] != 0 || got["weir1/to_pod"] != 0 {
		t.Errorf("attached: %v after the filters were removed, want nowhere", got)
	}
	attach(two)
	if n := filters(two); n != 2 {
		t.Errorf("%d filters after attaching again, want 2", n)
	}
	must(t, DetachPod(dir, "weir1"))
	if n := filters(two); n != 0 {
		t.Errorf("%d filters left", n)
	}
	attach(two)
	l, err := netlink.LinkByIndex(two)
	must(t, err)
	must(t, netlink.LinkDel(l))
	must(t, DetachPod(dir, "weir1"))
}

func TestAttachErrors(t *testing.T) {
	sandbox.Netns(t)
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	ifindex := veth(t, "one")
	if err := AttachPod(dir, ifindex, "weir1", XDPOff); err == nil || !strings.Contains(err.Error(), "agent") {
		t.Errorf("error %v before anything is loaded, want one that names the agent", err)
	}
	if err := AttachPod(t.TempDir(), ifindex, "weir1", XDPOff); err == nil || !strings.Contains(err.Error(), "mount -t bpf") {
		t.Errorf("error %v without a bpffs, want the mount command", err)
	}
	load(t, small(dir))
	if err := AttachPod(dir, 99999, "weir1", XDPOff); err == nil || !strings.Contains(err.Error(), "99999") {
		t.Errorf("error %v for an interface that is not there", err)
	}
	must(t, DetachPod(dir, "weir1"))
}

func TestParseXDPMode(t *testing.T) {
	for text, want := range map[string]XDPMode{"": XDPOff, "off": XDPOff, "native": XDPNative, "generic": XDPGeneric, "auto": XDPAuto} {
		got, err := ParseXDPMode(text)
		if err != nil || got != want || text != "" && got.String() != text {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	if _, err := ParseXDPMode("fast"); err == nil || !strings.Contains(err.Error(), "off, generic, native, auto") {
		t.Errorf("error %v, want the modes that exist", err)
	}
}

// An ingress qdisc has no egress: what cannot be enforced is not attached in silence.
func TestFiltersBesideAnIngressQdisc(t *testing.T) {
	sandbox.Netns(t)
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	load(t, small(dir))
	one := veth(t, "one")
	must(t, netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: one, Parent: netlink.HANDLE_INGRESS}}))
	a := attacher{dir, one, "weir1"}
	must(t, a.attach(XDPOff, shieldPod)) // its directory
	p, err := a.loadStub(toPod)
	must(t, err)
	defer p.Close()
	if err := a.attachFilter(tcHook{toPod, ebpf.AttachTCXEgress}, p); err == nil || !strings.Contains(err.Error(), "ingress") {
		t.Errorf("error %v, want one that names the ingress qdisc", err)
	}
}
