package loader

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// XDPMode says where the shield runs.
type XDPMode uint8

// Modes of the shield. Auto is native where the driver has it, else generic.
const (
	XDPOff XDPMode = iota
	XDPGeneric
	XDPNative
	XDPAuto
)

var xdpNames = []string{"off", "generic", "native", "auto"}

func (m XDPMode) String() string { return xdpNames[m] }

// ParseXDPMode reads off, generic, native or auto; nothing is off.
func ParseXDPMode(s string) (XDPMode, error) {
	for m, name := range xdpNames {
		if s == name {
			return XDPMode(m), nil
		}
	}
	if s == "" {
		return XDPOff, nil
	}
	return XDPOff, fmt.Errorf("xdp mode %q is none of %s", s, strings.Join(xdpNames, ", "))
}

// attempts are the kernel's modes to try, in order.
func (m XDPMode) attempts() []link.XDPAttachFlags {
	switch m {
	case XDPGeneric:
		return []link.XDPAttachFlags{link.XDPGenericMode}
	case XDPNative:
		return []link.XDPAttachFlags{link.XDPDriverMode}
	case XDPAuto:
		return []link.XDPAttachFlags{link.XDPDriverMode, link.XDPGenericMode}
	}
	return nil
}

func attachXDP(p *ebpf.Program, ifindex int, mode XDPMode) (link.Link, error) {
	var errs []error
	for _, flags := range mode.attempts() {
		l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: ifindex, Flags: flags})
		if err == nil {
			return l, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// fitsMode reports whether what is attached to the interface is what mode asks for.
func (m XDPMode) fitsMode(ifindex int) bool {
	if m == XDPAuto {
		return true
	}
	dev, err := netlink.LinkByIndex(ifindex)
	if err != nil || dev.Attrs().Xdp == nil {
		return false
	}
	switch dev.Attrs().Xdp.AttachMode {
	case nl.XDP_ATTACHED_DRV:
		return m == XDPNative
	case nl.XDP_ATTACHED_SKB:
		return m == XDPGeneric
	}
	return false
}
