package loader

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// redirecting are plugins whose programs on pods' interfaces hand packets on by themselves,
// by what the names of those begin with. What they redirect our programs do not see.
var redirecting = map[string]string{"cil_": "Cilium", "cali_": "Calico", "calico_": "Calico"}

// refuseRedirects is an error if a program that redirects sits on the interface, as far as
// names tell. What may not be asked for want of privileges is nothing.
func refuseRedirects(ifindex int) error {
	for _, name := range programsAt(ifindex) {
		for prefix, plugin := range redirecting {
			if strings.HasPrefix(name, prefix) {
				return fmt.Errorf("interface %d has program %s of %s, which redirects packets past other programs: "+
					"policy would not hold; Weir cannot be chained to %s's BPF datapath", ifindex, name, plugin, plugin)
			}
		}
	}
	return nil
}

// programsAt are the names of the TC programs at an interface, by TCX and by filters.
func programsAt(ifindex int) (names []string) {
	for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		all, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: at})
		if err != nil {
			continue // before TCX
		}
		for _, a := range all.Programs {
			if name := programName(a.ID); name != "" {
				names = append(names, name)
			}
		}
	}
	device := attacher{ifindex: ifindex}.device()
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := netlink.FilterList(device, parent)
		if err != nil {
			continue // no clsact
		}
		for _, f := range filters {
			if b, ok := f.(*netlink.BpfFilter); ok {
				names = append(names, b.Name)
			}
		}
	}
	return names
}

func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return info.Name
}
