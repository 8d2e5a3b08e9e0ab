package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weirnet/weir/datapath/loader"
)

// Defaults of the configuration.
const (
	DefaultStateDir = "/run/weir"
	DefaultBPFFSDir = "/sys/fs/bpf/weir"
	DefaultXDP      = "off"
)

const (
	minMTU = 1280 // what IPv6 asks of a link
	maxMTU = 65535
)

// config is the network configuration as the runtime hands it over; raw is what IPAM gets.
type config struct {
	CNIVersion string          `json:"cniVersion"`
	Name       string          `json:"name"`
	StateDir   string          `json:"stateDir"` // the agent's --state-dir
	BPFFSDir   string          `json:"bpffsDir"` // the agent's --bpffs-dir
	XDP        string          `json:"xdp"`      // off, generic, native, auto
	MTU        int             `json:"mtu"`      // 0: that of the node's way out
	IPAM       types.IPAM      `json:"ipam"`     // none: another plugin makes the interface, see chained
	DNS        types.DNS       `json:"dns"`      // in the result, unless IPAM has its own
	PrevResult json.RawMessage `json:"prevResult"`

	Valid []types.GCAttachment `json:"cni.dev/valid-attachments"`

	raw    []byte
	xdp    loader.XDPMode
	pins   string // BPFFSDir as the plugin can open it, see reachBPFFS
	podMTU int    // the agent's: what fits its tunnel, 0 = there is none
}

// known are the keys a configuration may have; those in the second line are the
// specification's and mean nothing to us.
var known = []string{
	"cniVersion", "name", "type", "stateDir", "bpffsDir", "xdp", "mtu", "ipam", "dns", "prevResult", "cni.dev/valid-attachments",
	"args", "capabilities", "runtimeConfig", "cni.dev/attachments", "disableCheck", "disableGC",
}

// parseConfig returns the configuration with its defaults. An error (code 7) names the
// key; the configuration then still holds what could be read, which is enough for DEL.
func parseConfig(data []byte) (*config, error) {
	c := &config{StateDir: DefaultStateDir, BPFFSDir: DefaultBPFFSDir, XDP: DefaultXDP, raw: data}
	if err := json.Unmarshal(data, c); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) && wrong.Field != "" {
			return c, invalid(wrong.Field, "must be %s, not %s", wrong.Type, wrong.Value)
		}
		return c, fail(types.ErrDecodingFailure, "network configuration: %v", err)
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(data, &keys); err != nil {
		return c, fail(types.ErrDecodingFailure, "network configuration: %v", err)
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if !slices.Contains(known, key) {
			return c, invalid(key, "unknown key (known: %s)", strings.Join(known[:9], ", "))
		}
	}
	return c, c.validate()
}

func invalid(key, format string, a ...any) *types.Error {
	return fail(types.ErrInvalidNetworkConfig, "%s: %s", key, fmt.Sprintf(format, a...))
}

// isPluginName says what may be looked for in CNI_PATH.
func isPluginName(s string) bool {
	return s != "" && consistsOf(s[:1], lower+upper+digits) && consistsOf(s, lower+upper+digits+"_.-")
}

func (c *config) validate() error {
	if err := absolute("stateDir", c.StateDir); err != nil {
		return err
	}
	if err := absolute("bpffsDir", c.BPFFSDir); err != nil {
		return err
	}
	mode, err := loader.ParseXDPMode(c.XDP)
	if err != nil {
		return invalid("xdp", "%v", err)
	}
	c.xdp = mode
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
		return invalid("mtu", "%d is not 0 (the node's) or between %d and %d", c.MTU, minMTU, maxMTU)
	}
	if c.chained() {
		return c.validateChained()
	}
	if !isPluginName(c.IPAM.Type) {
		return invalid("ipam.type", "%q is not the name of a plugin", c.IPAM.Type)
	}
	return nil
}

// has reports whether the configuration has a key at all, be its value what it may.
func (c *config) has(key string) bool {
	var keys map[string]json.RawMessage
	return json.Unmarshal(c.raw, &keys) == nil && keys[key] != nil
}

func absolute(key, dir string) error {
	if !filepath.IsAbs(dir) || slices.Contains(strings.Split(dir, "/"), "..") {
		return invalid(key, "%q is not an absolute path without \"..\"", dir)
	}
	return nil
}
