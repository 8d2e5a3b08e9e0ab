// Package cniconf writes the container runtime's configuration for the CNI plugin. A node
// is not ready before it is there, so it comes last: when the node's own addresses for
// pods are known and what the cluster holds is enforced.
package cniconf

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// File is a conflist in the runtime's directory. One goroutine writes; any asks why it does not.
type File struct {
	Path     string // ends in .conflist
	StateDir string // the agent's, as the plugin finds it
	BPFFSDir string // likewise
	Chain    string // name of another plugin's network that Weir is chained to; "" = Weir makes the network
	// HostPorts is what the portmap plugin serves those with, nftables or iptables; "" or none:
	// nobody does. Not when chained: then it is in the other's list, or is not.
	HostPorts string
	Log       *slog.Logger

	mu      sync.Mutex
	failed  string // why it does not say what it should; said already
	written bool
	before  string // what sorts before it; said already
}

type object = map[string]any

// Content is the configuration for pods in the ranges, one of a family or of each.
func (f *File) Content(podCIDRs []netip.Prefix) ([]byte, error) {
	var ranges [][]object
	for _, p := range podCIDRs {
		ranges = append(ranges, []object{{"subnet": p.String()}})
	}
	plugins := []object{{
		"type": "weir-cni", "stateDir": f.StateDir, "bpffsDir": f.BPFFSDir,
		"ipam": object{"type": "host-local", "ranges": ranges},
	}}
	if f.HostPorts != "" && f.HostPorts != "none" { // named: to find out takes portmap longer than all else it does
		plugins = append(plugins, object{"type": "portmap", "backend": f.HostPorts, "capabilities": object{"portMappings": true}})
	}
	text, err := json.MarshalIndent(object{"cniVersion": "1.1.0", "name": "weir", "plugins": plugins}, "", "  ")
	return append(text, '\n'), err
}

// Want makes the file say these ranges. It is called often; an error is logged once.
func (f *File) Want(podCIDRs []netip.Prefix) {
	if len(podCIDRs) == 0 {
		f.fail("the Node has no spec.podCIDRs: there are no addresses for its pods")
		return
	}
	f.want(func() ([]byte, error) { return f.Content(podCIDRs) }, "podCIDRs", podCIDRs)
	f.sayEarlier()
}

// Follow makes the file say what the network of Chain says, and Weir after it, until ctx is
// over: whoever writes that may come later, and write it again.
func (f *File) Follow(ctx context.Context) {
	for {
		f.want(f.Chained, "chain", f.Chain)
		select {
		case <-ctx.Done():
			return
		case <-time.After(followPause):
		}
	}
}

const followPause = 5 * time.Second

func (f *File) want(content func() ([]byte, error), what string, value any) {
	changed, err := f.write(content)
	if err != nil {
		f.fail(err.Error())
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed, f.written = "", true
	if changed {
		f.Log.Info("wrote the container runtime's network configuration", "file", f.Path, what, value)
	}
}

func (f *File) fail(why string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if why != f.failed {
		f.Log.Error(f.meaning(), "error", why)
	}
	f.failed = why
}

// meaning of a file that does not say what it should.
func (f *File) meaning() string {
	if f.Chain != "" {
		return "the container runtime gets no network configuration with Weir in it: pods that start without it are not judged"
	}
	return "the container runtime gets no network configuration: the node stays NotReady"
}

// Unready says why the file does not say what it should; empty: it does.
func (f *File) Unready() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.failed != "":
		return []string{f.meaning() + ": " + f.failed}
	case !f.written:
		return []string{f.meaning() + ": what the API server holds is not enforced yet"}
	}
	return nil
}

func (f *File) write(content func() ([]byte, error)) (changed bool, err error) {
	text, err := content()
	if err != nil {
		return false, err
	}
	if have, err := os.ReadFile(f.Path); err == nil && bytes.Equal(have, text) {
		return false, nil
	}
	// The runtime watches the directory, and reads no hidden files.
	fresh := filepath.Join(filepath.Dir(f.Path), "."+filepath.Base(f.Path)+".new")
	if err = os.WriteFile(fresh, text, 0o644); err == nil {
		err = os.Rename(fresh, f.Path)
	}
	if err != nil {
		return false, fmt.Errorf("write %s: %w", f.Path, err)
	}
	return true, nil
}
