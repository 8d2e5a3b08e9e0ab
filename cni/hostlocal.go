package cni

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"

	"github.com/weirnet/weir/controlplane/api"
)

// hostLocal is the IPAM plugin whose own packages work in this process: running it costs
// as much as all the rest of an ADD. Files and lock are the plugin's, which may run beside.
type hostLocal struct {
	conf  *allocator.IPAMConfig
	store *disk.Store
	at    api.Attachment
}

// hostLocalOf is nil where the plugin itself has to run: it is another one, or is asked for
// what only its main package does.
func hostLocalOf(c *config, at api.Attachment) (*hostLocal, error) {
	if c.IPAM.Type != "host-local" {
		return nil, nil
	}
	conf, _, err := allocator.LoadIPAMConfig(c.raw, os.Getenv("CNI_ARGS"))
	if err != nil {
		return nil, fail(types.ErrInternal, "%v", err)
	}
	if conf.ResolvConf != "" {
		return nil, nil
	}
	store, err := disk.New(conf.Name, conf.DataDir)
	if err != nil {
		return nil, fail(types.ErrInternal, "%v", err)
	}
	return &hostLocal{conf: conf, store: store, at: at}, nil
}

func (h *hostLocal) close() { _ = h.store.Close() }

// add takes an address of each range set. What it took goes back if it fails.
func (h *hostLocal) add() (_ types.Result, err error) {
	asked := map[string]net.IP{}
	for _, ip := range h.conf.IPArgs {
		asked[ip.String()] = ip
	}
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion, Routes: h.conf.Routes}
	defer func() {
		if err != nil && len(r.IPs) > 0 {
			err = errors.Join(err, h.del())
		}
	}()
	for i := range h.conf.Ranges {
		set := &h.conf.Ranges[i]
		var wanted net.IP
		for key, ip := range asked {
			if set.Contains(ip) {
				wanted = ip
				delete(asked, key)
				break
			}
		}
		ip, err := h.allocator(i).Get(h.at.ContainerID, h.at.IfName, wanted)
		if err != nil {
			return nil, fail(types.ErrInternal, "failed to allocate for range %d: %v", i, err)
		}
		r.IPs = append(r.IPs, ip)
	}
	for _, ip := range asked {
		return nil, fail(types.ErrInternal, "no range holds the requested address %s", ip)
	}
	return r, nil
}

// del gives back what the attachment holds of any range set.
func (h *hostLocal) del() error {
	var errs []error
	for i := range h.conf.Ranges {
		if err := h.allocator(i).Release(h.at.ContainerID, h.at.IfName); err != nil {
			errs = append(errs, fmt.Errorf("release of range %d: %w", i, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fail(types.ErrInternal, "%v", err)
	}
	return nil
}

func (h *hostLocal) allocator(i int) *allocator.IPAllocator {
	return allocator.NewIPAllocator(&h.conf.Ranges[i], h.store, i)
}
