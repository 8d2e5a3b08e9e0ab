package loader

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Where the kernel has no TCX (before 6.6), hooks are direct-action filters of a clsact
// qdisc. They live as long as their interface, without a link; what is pinned in place of
// one is the stub, by the name of hook and ifindex, so that it can be found again. Unlike a
// link, a filter can be removed by anybody who may configure the interface.
const (
	filterHandle   = 0x5745
	filterPriority = 1 // first: what an earlier filter accepts, a later one never sees
	filterInfix    = "_filter_"
)

func filterPin(hook string, ifindex int) string { return hook + filterInfix + strconv.Itoa(ifindex) }

// filterOf reads a pin's name; ok is false for a link's.
func filterOf(pin string) (hook string, ifindex int, ok bool) {
	hook, number, ok := strings.Cut(pin, filterInfix)
	ifindex, err := strconv.Atoi(number)
	return hook, ifindex, ok && err == nil
}

func (a attacher) attachFilter(h tcHook, p *ebpf.Program) error {
	if err := a.releaseFilters(h.name, a.ifindex); err != nil {
		return err
	}
	if done, err := a.hasFilter(h.name, p); done || err != nil {
		return err
	}
	if err := a.addClsact(); err != nil {
		return err
	}
	f := a.filter(h.name)
	f.Fd, f.Name, f.DirectAction = p.FD(), "weir_"+h.name, true
	if err := netlink.FilterReplace(f); err != nil {
		return fmt.Errorf("add filter: %w", err)
	}
	return a.pinFilter(h.name, p)
}

// addClsact leaves a clsact that is there. An ingress qdisc in its place would run filters of
// either direction at ingress.
func (a attacher) addClsact() error {
	clsact := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: a.ifindex, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0),
	}}
	err := netlink.QdiscAdd(clsact)
	if !errors.Is(err, unix.EEXIST) {
		if err != nil {
			return fmt.Errorf("add clsact: %w", err)
		}
		return nil
	}
	there, err := netlink.QdiscList(a.device())
	if err != nil {
		return fmt.Errorf("list qdiscs: %w", err)
	}
	for _, q := range there {
		if q.Attrs().Parent == netlink.HANDLE_CLSACT && q.Type() != "clsact" {
			return fmt.Errorf("add clsact: the interface has a qdisc %s, which excludes it", q.Type())
		}
	}
	return nil
}

func (a attacher) pinFilter(hook string, p *ebpf.Program) error {
	pin := a.pin(filterPin(hook, a.ifindex))
	if err := os.Remove(pin); unlessGone(err) != nil { // of an earlier stub
		return fmt.Errorf("unpin %s: %w", pin, err)
	}
	mark, err := p.Clone() // pinning the stub itself would move its pin
	if err != nil {
		return fmt.Errorf("pin %s: %w", pin, err)
	}
	defer mark.Close()
	if err := mark.Pin(pin); err != nil {
		return fmt.Errorf("pin %s: %w", pin, err)
	}
	return nil
}

// filter is the place of a hook's filter.
func (a attacher) filter(hook string) *netlink.BpfFilter {
	parent := uint32(netlink.HANDLE_MIN_EGRESS)
	if hook == fromPod || hook == fromNetwork || hook == fromTunnel {
		parent = netlink.HANDLE_MIN_INGRESS
	}
	return &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
		LinkIndex: a.ifindex, Parent: parent, Handle: filterHandle, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
	}}
}

// device is the interface for netlink's lists, which ask for the index alone.
func (a attacher) device() netlink.Link {
	return &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: a.ifindex}}
}

// hasFilter reports whether the hook is pinned and its filter runs p.
func (a attacher) hasFilter(hook string, p *ebpf.Program) (bool, error) {
	if !exists(a.pin(filterPin(hook, a.ifindex))) {
		return false, nil
	}
	info, err := p.Info()
	if err != nil {
		return false, fmt.Errorf("ask about program: %w", err)
	}
	want, _ := info.ID()
	id, err := a.filterProgram(hook)
	return id == want, err
}

// filterProgram is the program of the hook's filter, 0 if it is gone or its interface is.
func (a attacher) filterProgram(hook string) (ebpf.ProgramID, error) {
	list, err := netlink.FilterList(a.device(), a.filter(hook).Parent)
	if err != nil {
		return 0, fmt.Errorf("list filters of interface %d: %w", a.ifindex, err)
	}
	for _, f := range list {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Handle == filterHandle && b.Priority == filterPriority {
			return ebpf.ProgramID(b.Id), nil
		}
	}
	return 0, nil
}

// releaseFilters removes the filters pinned for a hook, but those of one interface (0 = none).
func (a attacher) releaseFilters(hook string, but int) error {
	entries, err := os.ReadDir(a.dir())
	if err != nil {
		return fmt.Errorf("read %s: %w", a.dir(), err)
	}
	for _, e := range entries {
		if h, ifindex, ok := filterOf(e.Name()); ok && h == hook && ifindex != but {
			if err := a.releaseFilter(e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// isAnothers reports whether the place of the filter that a pin names has been taken: hooks
// of a device and hooks of a pod have one place, if a device became a pod's.
func (a attacher) isAnothers(pin string) (bool, error) {
	hook, _, _ := filterOf(pin)
	there, err := a.filterProgram(hook)
	if err != nil || there == 0 {
		return false, nil // the removal says what is wrong
	}
	p, err := ebpf.LoadPinnedProgram(a.pin(pin), nil)
	if err != nil {
		return false, fmt.Errorf("open pinned program %s: %w", a.pin(pin), err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return false, fmt.Errorf("ask about program: %w", err)
	}
	id, _ := info.ID()
	return id != there, nil
}

// releaseFilter removes the filter a pin names; the interface may be gone, and with it the filter.
func (a attacher) releaseFilter(pin string) error {
	hook, ifindex, _ := filterOf(pin)
	at := attacher{a.bpffsDir, ifindex, a.name}
	theirs, err := at.isAnothers(pin)
	if err == nil && !theirs {
		err = netlink.FilterDel(at.filter(hook))
	}
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove filter of %s from interface %d: %w", hook, ifindex, err)
	}
	if err := os.Remove(a.pin(pin)); err != nil {
		return fmt.Errorf("unpin %s: %w", a.pin(pin), err)
	}
	return nil
}
