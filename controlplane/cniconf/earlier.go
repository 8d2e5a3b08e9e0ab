package cniconf

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// isConfiguration reports whether a runtime reads a file of that name.
func isConfiguration(path string) bool {
	return slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(path))
}

// Warnings name files that a runtime takes instead of ours. Chained says so of the other
// network's; a file that speaks of weir-cni hands pods on to it, as Multus' does.
func (f *File) Warnings() []string {
	if f == nil || f.Chain != "" {
		return nil
	}
	dir := filepath.Dir(f.Path)
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil // it cannot be written either, which is said
	}
	var earlier []string
	for _, e := range entries {
		if e.Name() >= filepath.Base(f.Path) {
			break
		}
		path := filepath.Join(dir, e.Name())
		if e.IsDir() || !isConfiguration(path) {
			continue
		}
		if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte("weir-cni")) {
			continue
		}
		earlier = append(earlier, path)
	}
	if len(earlier) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%s: sorts before %s, and the container runtime takes the first: pods that start get their network from it, and no policy. "+
		"Move it away, or give --cni-conf a name that sorts before it, and restart those pods", strings.Join(earlier, ", "), filepath.Base(f.Path))}
}

// sayEarlier logs those warnings when they are new.
func (f *File) sayEarlier() {
	text := strings.Join(f.Warnings(), "; ")
	f.mu.Lock()
	defer f.mu.Unlock()
	if text != "" && text != f.before {
		f.Log.Warn(text)
	}
	f.before = text
}
