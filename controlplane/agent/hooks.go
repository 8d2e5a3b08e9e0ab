package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/controlplane/node"
	"github.com/weirnet/weir/datapath/loader"
)

// Hooks attaches the node's programs to devices. Attaching what is attached is harmless.
type Hooks interface {
	// AttachPod attaches to the host side of a pod's veth; shield, XDP too.
	// It pins below name. chained: another plugin made the interface.
	AttachPod(ifindex int, name string, shield, chained bool) error
	// AttachDevice attaches to a device that is no pod's.
	AttachDevice(ifindex int, name string, role loader.Role) error
	// Detach detaches everything of a device that is gone; a live one keeps its programs.
	Detach(name string) error
	// Release detaches everything of a live device.
	Release(name string) error
	Attached() ([]loader.Attachment, error)
	// Restore loads the programs again if they are not where links find them, and
	// reports whether it did.
	Restore() (bool, error)
}

// BPF is the Hooks that package loader pins.
type BPF struct {
	Dir       string         // on a bpffs
	UplinkXDP loader.XDPMode // of the shield on uplinks
	Programs  loader.Config  // what they were loaded with
	Observed  func() bool    // the kernel took those on tracepoints; nil = they are not looked after
}

var _ Hooks = BPF{}

// AttachPod implements Hooks.
func (b BPF) AttachPod(ifindex int, name string, shield, chained bool) error {
	mode := loader.XDPOff
	if shield {
		mode = loader.XDPAuto
	}
	if chained {
		return loader.AttachChained(b.Dir, ifindex, name, mode)
	}
	return loader.AttachPod(b.Dir, ifindex, name, mode)
}

// AttachDevice implements Hooks.
func (b BPF) AttachDevice(ifindex int, name string, role loader.Role) error {
	return loader.AttachNetwork(b.Dir, ifindex, name, role, b.UplinkXDP)
}

// Detach implements Hooks.
func (b BPF) Detach(name string) error { return loader.DetachGone(b.Dir, name) }

// Release implements Hooks.
func (b BPF) Release(name string) error { return loader.DetachNetwork(b.Dir, name) }

// Attached implements Hooks.
func (b BPF) Attached() ([]loader.Attachment, error) { return loader.Attached(b.Dir) }

// Restore implements Hooks.
func (b BPF) Restore() (bool, error) {
	if loader.Switching(b.Dir) {
		return false, nil // soon these programs are in force nowhere
	}
	intact, err := loader.Intact(b.Dir)
	if err == nil && intact {
		intact, err = loader.SocketsIntact(b.Programs)
	}
	if err == nil && intact && b.Observed != nil && b.Observed() && !loader.ObserversIntact(b.Dir) {
		return true, loader.Observe(b.Programs)
	}
	if err != nil || intact {
		return false, err
	}
	loaded, err := loader.Load(b.Programs)
	if err != nil {
		return false, err
	}
	return true, loaded.Close()
}

// How often what somebody took away is looked for and put back: links and programs, which
// leave a pod open or cut off, more often than what is in the maps.
const (
	recheckHooks = 5 * time.Second
	recheckMaps  = 30 * time.Second
)

// hooked is what is attached to the node's devices, and what could not be.
type hooked struct {
	busy  sync.Mutex // one attachDevices at a time
	state node.State

	mu       sync.Mutex
	hooks    []string
	warnings []string
}

func (h *hooked) report() (hooks, warnings []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string{}, h.hooks...), append([]string{}, h.warnings...)
}

// recheck notices what others did to the pinned state, and mends it.
func (a *Agent) recheck(ctx context.Context) error {
	hooks, maps := time.NewTicker(cmp.Or(a.Recheck, recheckHooks)), time.NewTicker(cmp.Or(a.Recheck, recheckMaps))
	defer hooks.Stop()
	defer maps.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hooks.C:
			a.recheckHooks()
		case <-maps.C:
			a.recheckMaps()
		}
	}
}

func (a *Agent) recheckHooks() {
	switch restored, err := a.Hooks.Restore(); {
	case err != nil:
		a.Log.Error("recheck programs", "error", err)
	case restored:
		a.Log.Error("somebody removed programs: they are loaded again")
	}
	if err := a.attachPods(); err != nil {
		a.Log.Error("recheck hooks", "error", err)
	}
	a.attachDevices(nil)
}

// rechecker is a Kernel whose memory others can write.
type rechecker interface {
	Recheck() (damaged []string, err error)
}

func (a *Agent) recheckMaps() {
	defer a.shieldAgain()
	kernel, ok := a.Kernel.(rechecker)
	if !ok {
		return
	}
	a.live.RLock() // it compares with the State that was committed
	damaged, err := kernel.Recheck()
	a.live.RUnlock()
	if err != nil {
		a.Log.Error("recheck maps", "error", err)
	}
	if len(damaged) > 0 {
		a.Log.Error("somebody changed what is enforced: it is put right", "changed", damaged)
		a.change(func(*input) {})
	}
}

// beginning are endpoints whose plugins may still be at their interfaces, which are down until
// their programs are attached. A plugin that died there leaves that to attachPods.
type beginning struct {
	mu    sync.Mutex
	since map[uint32]time.Time // by endpoint number
}

const beginsWithin = 3 * time.Second

func (b *beginning) note(r *endpoint.Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.since == nil {
		b.since = map[uint32]time.Time{}
	}
	b.since[r.Number] = time.Now()
}

func (b *beginning) has(r *endpoint.Record) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.since, func(_ uint32, since time.Time) bool { return time.Since(since) > beginsWithin })
	_, has := b.since[r.Number]
	return has
}

// attachPods attaches to the pods' interfaces what they lost.
func (a *Agent) attachPods() error {
	attached, err := a.Hooks.Attached()
	if err != nil {
		return err
	}
	has := map[loader.Attachment]bool{}
	shielded := map[string]bool{}
	for _, at := range attached {
		at.Filter = false
		has[at] = true
		shielded[at.Name] = shielded[at.Name] || at.Hook == "shield"
	}
	for _, r := range a.records.All() {
		if a.begin.has(r) {
			continue // its plugin attaches
		}
		at := loader.Attachment{Name: r.Pins(), Ifindex: int(r.HostIfindex)}
		from, to := at, at
		from.Hook, to.Hook = "from_pod", "to_pod"
		if has[from] && has[to] {
			continue
		}
		if alive, err := a.Network.Has(r.HostIfindex, r.HostIfName); err != nil || !alive {
			continue // its DEL is on the way
		}
		a.Log.Warn("attach again: a pod's interface had lost its programs", "pod", r.Pod(), "interface", r.HostIfName)
		if err := a.Hooks.AttachPod(at.Ifindex, at.Name, shielded[at.Name], r.Chained); err != nil {
			return fmt.Errorf("attach to the interface of pod %s: %w", r.Pod(), err)
		}
	}
	return nil
}

// attachDevices attaches to the node's devices, those of s or, with nil, of the last
// call, and removes what is pinned for interfaces that are gone.
func (a *Agent) attachDevices(s *node.State) {
	a.hooked.busy.Lock()
	defer a.hooked.busy.Unlock()
	if s != nil {
		a.hooked.state = *s
	}
	var warnings []string
	here := map[string]bool{}
	chained := a.chained()
	bridges := bridgesOf(a.hooked.state.Devices, chained)
	for _, d := range a.hooked.state.Devices {
		if chained[d.Index] {
			continue // a pod's
		}
		here[d.Name] = true
		role := a.role(d)
		if role == loader.Uplink && (bridges[d.Index] || bridges[d.Master]) {
			// Pods' packets come by there as well, and those of the link that are for pods do not.
			role = loader.Plain
			warnings = append(warnings, fmt.Sprintf("uplink %s: it shares a bridge with pods: from_network is not attached; "+
				"what comes in is judged at the pods, and a pod can write to the link under any address that it may reach", d.Name))
		}
		if role == loader.Uplink && d.Raw {
			// The programs read Ethernet. On a raw device a sender could write what they take
			// for a header; what leaves there undecided fails to parse, and is dropped.
			role = loader.Plain
			warnings = append(warnings, fmt.Sprintf("uplink %s: its packets have no Ethernet header: from_network is not attached; "+
				"what comes in is judged at the pods, answers through the node's NAT as new traffic", d.Name))
		}
		err := a.Hooks.AttachDevice(d.Index, d.Name, role)
		if err != nil && !errors.Is(err, unix.ENODEV) {
			warnings = append(warnings, fmt.Sprintf("device %s: %v", d.Name, err))
		}
	}
	for _, name := range a.Uplinks {
		if !here[name] {
			warnings = append(warnings, fmt.Sprintf("uplink %s: there is no such device", name))
		}
	}
	attached, err := a.Hooks.Attached()
	if err != nil {
		warnings = append(warnings, err.Error())
	}
	warnings = append(warnings, a.detachGone(attached)...)
	a.attached(a.hooked.set(a.Log.Warn, hookNames(attached, here), warnings))
}

// chained are the pods' interfaces that another plugin made, by index.
func (a *Agent) chained() map[int]bool {
	out := map[int]bool{}
	for _, r := range a.records.All() {
		if r.Chained {
			out[int(r.HostIfindex)] = true
		}
	}
	return out
}

// bridgesOf are the bridges that pods' interfaces are ports of.
func bridgesOf(devices []node.Device, pods map[int]bool) map[int]bool {
	out := map[int]bool{}
	for _, d := range devices {
		if pods[d.Index] && d.Master != 0 {
			out[d.Master] = true
		}
	}
	return out
}

// detachAsDevice takes from a chained pod's interface what it got as one of the node's
// devices, before its pod was known.
func (a *Agent) detachAsDevice(r *endpoint.Record) {
	if !r.Chained {
		return
	}
	a.hooked.busy.Lock()
	err := a.Hooks.Release(r.HostIfName)
	if err == nil {
		a.hooked.drop(r.HostIfName)
	}
	port := slices.ContainsFunc(a.hooked.state.Devices, func(d node.Device) bool { return d.Index == int(r.HostIfindex) && d.Master != 0 })
	a.hooked.busy.Unlock()
	if err != nil {
		a.Log.Error("release interface of pod", "pod", r.Pod(), "interface", r.HostIfName, "error", err)
	}
	if port {
		a.attachDevices(nil) // its bridge has another role now
	}
}

func (a *Agent) role(d node.Device) loader.Role {
	switch {
	case d.Tunnel:
		return loader.Tunnel
	case len(a.Uplinks) == 0 && d.DefaultRoute, slices.Contains(a.Uplinks, d.Name):
		return loader.Uplink
	}
	return loader.Plain
}

func (a *Agent) detachGone(attached []loader.Attachment) []string {
	gone := map[string]bool{}
	for _, at := range attached {
		if a.gone(at) {
			gone[at.Name] = true
		}
	}
	var warnings []string
	for _, name := range slices.Sorted(maps.Keys(gone)) {
		if err := a.Hooks.Detach(name); err != nil {
			warnings = append(warnings, err.Error())
		}
	}
	return warnings
}

// gone asks the kernel now: the plugin may have made an interface since the node's state
// was read. A pod's interface that lives under another name keeps its programs.
func (a *Agent) gone(at loader.Attachment) bool {
	if at.Ifindex == 0 {
		return true
	}
	if endpoint.IsHostIfName(at.Name) && !at.Filter {
		return false
	}
	has, err := a.Network.Has(uint32(at.Ifindex), at.Name)
	return err == nil && !has
}

// hookNames lists what is attached to the devices; pods' interfaces all have the same.
func hookNames(attached []loader.Attachment, here map[string]bool) []string {
	var out []string
	for _, at := range attached {
		if !here[at.Name] || endpoint.IsHostIfName(at.Name) {
			continue
		}
		how := "tcx"
		switch {
		case at.Filter:
			how = "clsact"
		case at.Hook == "shield":
			how = "xdp"
		}
		out = append(out, fmt.Sprintf("%s %s (%s)", at.Hook, at.Name, how))
	}
	return out
}

// drop forgets the hooks of a device.
func (h *hooked) drop(device string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hooks = slices.DeleteFunc(slices.Clone(h.hooks), func(hook string) bool { return strings.Contains(hook, " "+device+" (") })
}

// set returns whether the hooks are others.
func (h *hooked) set(warn func(string, ...any), hooks, warnings []string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range warnings {
		if !slices.Contains(h.warnings, w) {
			warn(w)
		}
	}
	changed := !slices.Equal(h.hooks, hooks)
	h.hooks, h.warnings = hooks, warnings
	return changed
}
