package cni

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weirnet/weir/controlplane/api"
)

// addresses are a pod's: at most one of each family, the zero Addr for none.
type addresses struct {
	V4, V6 netip.Addr
	DNS    types.DNS
}

func (a addresses) list() []netip.Addr {
	var l []netip.Addr
	for _, ip := range []netip.Addr{a.V4, a.V6} {
		if ip.IsValid() {
			l = append(l, ip)
		}
	}
	return l
}

// allocate asks the IPAM plugin. Addresses it gave that are of no use are released.
func allocate(c *config, a api.Attachment) (addresses, error) {
	result, err := delegateAdd(c, a)
	if err != nil {
		return addresses{}, ipamError(c, err)
	}
	got, err := usable(result)
	if err != nil {
		return addresses{}, errors.Join(err, release(c, a))
	}
	return got, nil
}

func delegateAdd(c *config, a api.Attachment) (types.Result, error) {
	h, err := hostLocalOf(c, a)
	if err != nil {
		return nil, err
	}
	if h == nil {
		return invoke.DelegateAdd(context.Background(), c.IPAM.Type, c.raw, nil)
	}
	defer h.close()
	return h.add()
}

// usable takes the addresses from an IPAM result. A pod has one way out, its veth, so
// a route with a gateway of its own cannot be had.
func usable(result types.Result) (addresses, error) {
	var got addresses
	r, err := current.NewResultFromResult(result)
	if err != nil {
		return got, fail(types.ErrDecodingFailure, "ipam: %v", err)
	}
	for _, ip := range r.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		addr = addr.Unmap()
		place := &got.V6
		if addr.Is4() {
			place = &got.V4
		}
		if !ok || place.IsValid() {
			return got, invalid("ipam", "gave %v: a pod has one address of each family at most", r.IPs)
		}
		*place = addr
	}
	if len(got.list()) == 0 {
		return got, invalid("ipam", "gave no address")
	}
	for _, route := range r.Routes {
		if route.GW != nil && !isGateway(route.GW) {
			return got, invalid("ipam.routes", "%s via %s: a pod's only gateway is the node: leave gw out", route.Dst.String(), route.GW)
		}
	}
	got.DNS = r.DNS
	return got, nil
}

func isGateway(ip net.IP) bool {
	return ip.Equal(gateway4.AsSlice()) || ip.Equal(gateway6.AsSlice())
}

// release gives an attachment's addresses back; none held is no error.
func release(c *config, a api.Attachment) error {
	h, err := hostLocalOf(c, a)
	if err != nil {
		return ipamError(c, err)
	}
	if h != nil {
		defer h.close()
		if err := h.del(); err != nil {
			return ipamError(c, err)
		}
		return nil
	}
	paths := filepath.SplitList(os.Getenv("CNI_PATH"))
	plugin, err := invoke.FindInPath(c.IPAM.Type, paths)
	if err != nil {
		return invalid("ipam.type", "%v", err)
	}
	args := &invoke.Args{Command: "DEL", ContainerID: a.ContainerID, IfName: a.IfName, Path: os.Getenv("CNI_PATH"), PluginArgsStr: os.Getenv("CNI_ARGS")}
	if err := invoke.ExecPluginWithoutResult(context.Background(), plugin, c.raw, args, nil); err != nil {
		return ipamError(c, err)
	}
	return nil
}

// ipamError names the network and its plugin, and says what an empty pool needs.
func ipamError(c *config, err error) error {
	var e *types.Error
	if !errors.As(err, &e) {
		return invalid("ipam.type", "%s: %v", c.IPAM.Type, err)
	}
	hint := ""
	if strings.Contains(e.Msg, "no IP addresses available") {
		hint = ": the pool is exhausted: widen it in ipam, or remove pods"
	}
	return fail(e.Code, "addresses of network %s from %s: %s%s", c.Name, c.IPAM.Type, e.Error(), hint)
}

// gcAddresses hands GC on, for plugins that have one (host-local 1.9 has none: its
// addresses go with the DELs of gc).
func gcAddresses(ctx context.Context, c *config) error {
	if err := invoke.DelegateGC(ctx, c.IPAM.Type, c.raw, nil); err != nil {
		return ipamError(c, err)
	}
	return nil
}
