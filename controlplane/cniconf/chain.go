package cniconf

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Chained is the configuration of the network that Weir is chained to, as the file beside
// ours has it, with weir-cni behind its plugins.
func (f *File) Chained() ([]byte, error) {
	path, list, err := f.find()
	if err != nil {
		return nil, err
	}
	if filepath.Base(path) < filepath.Base(f.Path) {
		return nil, fmt.Errorf("chain to network %s: %s sorts before %s, and the runtime takes the first: give --cni-conf a name that sorts before it",
			f.Chain, path, f.Path)
	}
	var plugins []json.RawMessage
	if err := json.Unmarshal(list["plugins"], &plugins); err != nil || len(plugins) == 0 {
		return nil, fmt.Errorf("chain to network %s: %s has no list of plugins", f.Chain, path)
	}
	for _, p := range plugins {
		var plugin struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(p, &plugin); err == nil && plugin.Type == "weir-cni" {
			return nil, fmt.Errorf("chain to network %s: %s has weir-cni already: take it out there, or do without --cni-chain", f.Chain, path)
		}
	}
	own, err := json.Marshal(object{"type": "weir-cni", "stateDir": f.StateDir, "bpffsDir": f.BPFFSDir})
	if err != nil {
		return nil, err
	}
	if list["plugins"], err = json.Marshal(append(plugins, own)); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(list, "", "  ")
	return append(text, '\n'), err
}

// find looks for the network of that name in the runtime's directory, in the order in which
// the runtime does, and returns it as a list: a file may have a single plugin, too. What is
// not whole may be another's that is being written.
func (f *File) find() (string, map[string]json.RawMessage, error) {
	dir := filepath.Dir(f.Path)
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return "", nil, fmt.Errorf("chain to network %s: %w", f.Chain, err)
	}
	var others []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if path == f.Path || !isConfiguration(path) {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var network map[string]json.RawMessage
		var name string
		if json.Unmarshal(text, &network) != nil || json.Unmarshal(network["name"], &name) != nil {
			continue
		}
		if name == f.Chain {
			list, err := listOf(network)
			return path, list, err
		}
		others = append(others, fmt.Sprintf("%s in %s", name, e.Name()))
	}
	found := "there is no other"
	if len(others) > 0 {
		found = "there are " + strings.Join(others, ", ")
	}
	return "", nil, fmt.Errorf("chain to network %s: no file in %s has that name yet, %s: its plugin has to write it, or cniChain is misspelt", f.Chain, dir, found)
}

// listOf makes a list of a file's single plugin, as the runtime would.
func listOf(network map[string]json.RawMessage) (map[string]json.RawMessage, error) {
	if _, single := network["type"]; !single || network["plugins"] != nil {
		return network, nil
	}
	plugin, err := json.Marshal(network)
	if err != nil {
		return nil, err
	}
	list := map[string]json.RawMessage{"name": network["name"], "plugins": slices.Concat(json.RawMessage("["), plugin, json.RawMessage("]"))}
	for _, key := range []string{"cniVersion", "disableCheck"} {
		if value, ok := network[key]; ok {
			list[key] = value
		}
	}
	return list, nil
}
