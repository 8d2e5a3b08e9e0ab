package cniconf

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
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

// find looks for the list of that name in the runtime's directory. What is no list, or not
// whole, may be another's that is being written.
func (f *File) find() (string, map[string]json.RawMessage, error) {
	dir := filepath.Dir(f.Path)
	paths, err := filepath.Glob(filepath.Join(dir, "*.conflist"))
	if err != nil {
		return "", nil, err
	}
	for _, path := range paths {
		if path == f.Path {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var list map[string]json.RawMessage
		var name string
		if json.Unmarshal(text, &list) == nil && json.Unmarshal(list["name"], &name) == nil && name == f.Chain {
			return path, list, nil
		}
	}
	return "", nil, fmt.Errorf("chain to network %s: no .conflist in %s has that name yet: its plugin has to write it", f.Chain, dir)
}
