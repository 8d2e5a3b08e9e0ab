package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Hooks, by the names of their pins and (with stub_ before them) of their stubs.
const (
	fromPod      = "from_pod"
	toPod        = "to_pod"
	toNetwork    = "to_network"
	fromNetwork  = "from_network"
	fromTunnel   = "from_tunnel"
	shield       = "shield" // of either kind
	shieldPod    = "shield_pod"
	shieldUplink = "shield_uplink"
)

// Attachment is a hook of an interface that is pinned.
type Attachment struct {
	Name    string // as given to AttachPod or AttachNetwork
	Hook    string // from_pod, to_pod, to_network, from_network, from_tunnel or shield
	Ifindex int    // 0 = nowhere any more: the interface is gone, or somebody removed the filter
	Filter  bool   // a netlink filter, where the kernel has no TCX
}

// AttachPod attaches the pinned stubs to the host side of a pod's veth and pins the links
// below name. Calling it again is harmless; what is pinned for another interface, or in
// another XDP mode, is replaced. It works in the calling thread's network namespace.
func AttachPod(bpffsDir string, ifindex int, name string, xdp XDPMode) error {
	a := attacher{bpffsDir, ifindex, name}
	return a.attach(xdp, shieldPod,
		tcHook{fromPod, ebpf.AttachTCXIngress}, tcHook{toPod, ebpf.AttachTCXEgress})
}

// AttachChained is AttachPod for a veth that another CNI plugin made. It refuses one from
// which a program of that plugin's redirects packets past ours.
func AttachChained(bpffsDir string, ifindex int, name string, xdp XDPMode) error {
	if err := refuseRedirects(ifindex); err != nil {
		return err
	}
	return AttachPod(bpffsDir, ifindex, name, xdp)
}

// Role is what a device that is no endpoint is to the node.
type Role int

// Roles.
const (
	Plain  Role = iota
	Uplink      // it leads out of the node
	Tunnel      // to the other nodes alone
)

// ingress is the hook for what comes in by a device of that role, "" = none.
func (r Role) ingress() string { return [...]string{"", fromNetwork, fromTunnel}[r] }

// AttachNetwork attaches to a device of the node that is no endpoint: to_network always,
// what its role asks for at ingress, and the shield to an uplink. Repeatable as AttachPod.
func AttachNetwork(bpffsDir string, ifindex int, name string, role Role, xdp XDPMode) error {
	a := attacher{bpffsDir, ifindex, name}
	hooks := []tcHook{{toNetwork, ebpf.AttachTCXEgress}}
	if in := role.ingress(); in != "" {
		hooks = append(hooks, tcHook{in, ebpf.AttachTCXIngress})
	}
	if role != Uplink {
		xdp = XDPOff
	}
	for _, in := range []string{fromNetwork, fromTunnel} { // first: filters of either have one place
		if in == role.ingress() || !exists(a.dir()) {
			continue
		}
		if err := errors.Join(a.release(in), a.releaseFilters(in, 0)); err != nil {
			return err
		}
	}
	return a.attach(xdp, shieldUplink, hooks...)
}

// attacher is one interface's place below links.
type attacher struct {
	bpffsDir string
	ifindex  int
	name     string
}

type tcHook struct {
	name string
	at   ebpf.AttachType
}

// place is before all others for what comes in and behind them for what goes out: the
// packets are judged as the network has them, whatever others make of them between.
func (h tcHook) place() link.Anchor {
	if h.at == ebpf.AttachTCXIngress {
		return link.Head()
	}
	return link.Tail()
}

func (a attacher) dir() string             { return filepath.Join(a.bpffsDir, linksDir, pinName(a.name)) }
func (a attacher) pin(hook string) string  { return filepath.Join(a.dir(), hook) }
func (a attacher) stub(hook string) string { return filepath.Join(a.bpffsDir, progsDir, "stub_"+hook) }

func (a attacher) attach(xdp XDPMode, shieldStub string, hooks ...tcHook) error {
	if err := onBPFFS(a.bpffsDir); err != nil {
		return err
	}
	if a.name == "" || strings.ContainsAny(a.name, "/") {
		return fmt.Errorf("attach interface %d: bad name %q", a.ifindex, a.name)
	}
	links := filepath.Join(a.bpffsDir, linksDir)
	if err := os.MkdirAll(links, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", links, err)
	}
	unlock, err := lockLinks(a.bpffsDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.MkdirAll(a.dir(), 0o700); err != nil {
		return fmt.Errorf("make %s: %w", a.dir(), err)
	}
	for _, h := range hooks {
		if err := a.attachTC(h); err != nil {
			return fmt.Errorf("attach %s to interface %d: %w", h.name, a.ifindex, err)
		}
	}
	if err := a.attachShield(shieldStub, xdp); err != nil {
		return fmt.Errorf("attach %s (xdp %s) to interface %d: %w", shieldStub, xdp, a.ifindex, err)
	}
	return nil
}

func (a attacher) attachTC(h tcHook) error {
	p, err := a.loadStub(h.name)
	if err != nil {
		return err
	}
	defer p.Close()
	if done, err := a.pinned(h.name, p, nil); done || err != nil {
		return err
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: a.ifindex, Program: p, Attach: h.at, Anchor: h.place()})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return a.attachFilter(h, p)
	}
	if err != nil {
		return err
	}
	return a.pinLink(h.name, l)
}

func (a attacher) attachShield(stub string, mode XDPMode) error {
	if mode == XDPOff {
		return a.release(shield)
	}
	p, err := a.loadStub(stub)
	if err != nil {
		return err
	}
	defer p.Close()
	if done, err := a.pinned(shield, p, mode.fitsMode); done || err != nil {
		return err
	}
	l, err := attachXDP(p, a.ifindex, mode)
	if err != nil {
		return err
	}
	return a.pinLink(shield, l)
}

func (a attacher) loadStub(hook string) (*ebpf.Program, error) {
	p, err := ebpf.LoadPinnedProgram(a.stub(hook), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no program is pinned as %s: the agent has not loaded them yet", a.stub(hook))
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned program %s: %w", a.stub(hook), err)
	}
	return p, nil
}

func (a attacher) pinLink(hook string, l link.Link) error {
	defer l.Close()
	if err := l.Pin(a.pin(hook)); err != nil {
		return fmt.Errorf("pin %s: %w", a.pin(hook), err)
	}
	return nil
}

// pinned reports whether the hook is attached as it should be; a pin that is not is
// released.
func (a attacher) pinned(hook string, p *ebpf.Program, fits func(ifindex int) bool) (bool, error) {
	if !exists(a.pin(hook)) {
		return false, nil
	}
	l, err := link.LoadPinnedLink(a.pin(hook), nil)
	if err != nil {
		return false, fmt.Errorf("open pinned link %s: %w", a.pin(hook), err)
	}
	defer l.Close()
	ifindex, program, err := linkTarget(l)
	if err != nil {
		return false, err
	}
	want, err := p.Info()
	if err != nil {
		return false, fmt.Errorf("ask about program: %w", err)
	}
	if id, _ := want.ID(); ifindex == a.ifindex && program == id && (fits == nil || fits(ifindex)) {
		return true, nil
	}
	return false, releaseLink(l, a.pin(hook))
}

// linkTarget is where a link is attached (0 = nowhere any more) and its program.
func linkTarget(l link.Link) (ifindex int, program ebpf.ProgramID, err error) {
	info, err := l.Info()
	if err != nil {
		return 0, 0, fmt.Errorf("ask about link: %w", err)
	}
	switch {
	case info.TCX() != nil:
		ifindex = int(info.TCX().Ifindex)
	case info.XDP() != nil:
		ifindex = int(info.XDP().Ifindex)
	}
	return ifindex, info.Program, nil
}

// interfaceExists reports true where it cannot tell.
func interfaceExists(ifindex int) bool {
	var gone netlink.LinkNotFoundError
	_, err := netlink.LinkByIndex(ifindex)
	return !errors.As(err, &gone)
}

// releaseLink detaches now, not when the kernel gets to the last reference.
func releaseLink(l link.Link, pin string) error {
	if err := l.Unpin(); err != nil {
		return fmt.Errorf("unpin %s: %w", pin, err)
	}
	if d, ok := l.(interface{ Detach() error }); ok {
		if err := d.Detach(); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, ebpf.ErrNotSupported) {
			return fmt.Errorf("detach %s: %w", pin, err)
		}
	}
	return nil
}

// release detaches a hook if it is attached.
func (a attacher) release(hook string) error {
	if !exists(a.pin(hook)) {
		return nil
	}
	l, err := link.LoadPinnedLink(a.pin(hook), nil)
	if err != nil {
		return fmt.Errorf("open pinned link %s: %w", a.pin(hook), err)
	}
	defer l.Close()
	return releaseLink(l, a.pin(hook))
}

// DetachPod detaches everything that is pinned below name, of a pod or of a network
// device. What is not there is no error.
func DetachPod(bpffsDir, name string) error {
	unlock, err := lockLinks(bpffsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	return attacher{bpffsDir: bpffsDir, name: name}.detach()
}

// DetachGone does so if no interface is left that anything below name is attached to. It
// never takes the programs from a live interface, however old the caller's knowledge:
// another pod may have got that name since.
func DetachGone(bpffsDir, name string) error {
	unlock, err := lockLinks(bpffsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	a := attacher{bpffsDir: bpffsDir, name: name}
	pins, err := os.ReadDir(a.dir())
	if err != nil {
		return unlessGone(err)
	}
	for _, pin := range pins {
		at, err := a.describe(pin.Name())
		if err != nil {
			return fmt.Errorf("detach %s: %w", name, err)
		}
		if at.Ifindex != 0 && !(at.Filter && !interfaceExists(at.Ifindex)) {
			return nil
		}
	}
	return a.detach()
}

// lockLinks serialises those who attach and detach, the agent and CNI plugins.
func lockLinks(bpffsDir string) (unlock func(), err error) {
	d, err := os.Open(filepath.Join(bpffsDir, linksDir))
	if err != nil {
		return nil, fmt.Errorf("open links directory: %w", err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		d.Close()
		return nil, fmt.Errorf("lock %s: %w", d.Name(), err)
	}
	return func() { d.Close() }, nil
}

func (a attacher) detach() error {
	name := a.name
	entries, err := os.ReadDir(a.dir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", a.dir(), err)
	}
	var errs []error
	for _, e := range entries {
		if _, _, ok := filterOf(e.Name()); ok {
			errs = append(errs, a.releaseFilter(e.Name()))
		} else {
			errs = append(errs, a.release(e.Name()))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach %s: %w", name, err)
	}
	if err := os.Remove(a.dir()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", a.dir(), err)
	}
	return nil
}

// DetachNetwork is DetachPod for a device of AttachNetwork.
func DetachNetwork(bpffsDir, name string) error { return DetachPod(bpffsDir, name) }

// DetachAll detaches every hook that is pinned.
func DetachAll(bpffsDir string) error {
	attached, err := Attached(bpffsDir)
	names := map[string]bool{}
	errs := []error{err}
	for _, at := range attached {
		if !names[at.Name] {
			names[at.Name] = true
			errs = append(errs, DetachPod(bpffsDir, at.Name))
		}
	}
	return errors.Join(errs...)
}

// Attached lists the hooks that are pinned, by name and hook. What cannot be read is in
// the error; the list holds the others.
func Attached(bpffsDir string) ([]Attachment, error) {
	root := filepath.Join(bpffsDir, linksDir)
	dirs, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", root, err)
	}
	var all []Attachment
	var errs []error
	for _, dir := range dirs {
		a := attacher{bpffsDir: bpffsDir, name: unpinName(dir.Name())}
		pins, err := os.ReadDir(a.dir())
		errs = append(errs, unlessGone(err))
		for _, pin := range pins {
			at, err := a.describe(pin.Name())
			errs = append(errs, unlessGone(err))
			if err == nil {
				all = append(all, at)
			}
		}
	}
	slices.SortFunc(all, func(x, y Attachment) int { return strings.Compare(x.Name+"/"+x.Hook, y.Name+"/"+y.Hook) })
	return all, errors.Join(errs...)
}

// unlessGone is nil for what somebody detached while we looked.
func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (a attacher) describe(pin string) (Attachment, error) {
	if hook, ifindex, ok := filterOf(pin); ok {
		program, err := attacher{a.bpffsDir, ifindex, a.name}.filterProgram(hook)
		if program == 0 {
			ifindex = 0
		}
		return Attachment{Name: a.name, Hook: hook, Ifindex: ifindex, Filter: true}, err
	}
	l, err := link.LoadPinnedLink(a.pin(pin), nil)
	if err != nil {
		return Attachment{}, fmt.Errorf("open pinned link %s: %w", a.pin(pin), err)
	}
	defer l.Close()
	ifindex, _, err := linkTarget(l)
	return Attachment{Name: a.name, Hook: pin, Ifindex: ifindex}, err
}

// Remove detaches every hook and takes programs and maps out of the kernel: nothing is
// enforced any more, and nothing is remembered.
func Remove(bpffsDir string) error {
	if err := onBPFFS(bpffsDir); err != nil {
		return err
	}
	errs := []error{DetachAll(bpffsDir), DetachSockets(bpffsDir)}
	for _, sub := range []string{linksDir, socketsDir, observersDir, progsDir, mapsDir} {
		errs = append(errs, os.RemoveAll(filepath.Join(bpffsDir, sub)))
	}
	return errors.Join(errs...)
}
