// Package build says what a program was made from.
package build

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// Set by the linker, see the Makefile.
var version, revision string

// modified ends a revision whose tree had changes on top.
const modified = "-dirty"

// Info is what a program was made from.
type Info struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the source
	Modified bool   `json:"modified,omitempty"` // the source had changes on top of it
	Go       string `json:"go"`
}

// Read says so of this program: as the Makefile stamped it, or else as `go build` and `go
// install` do.
func Read() Info {
	i := Info{Version: version, Go: runtime.Version()}
	i.Revision, i.Modified = strings.CutSuffix(revision, modified)
	if info, ok := debug.ReadBuildInfo(); ok && i.Version == "" {
		i.Version = info.Main.Version
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				i.Revision = s.Value
			case "vcs.modified":
				i.Modified = s.Value == "true"
			}
		}
	}
	if i.Version == "" {
		i.Version = "unknown"
	}
	return i
}

// String is the version and the revision, as "0.1.0 (13d20d5eae39, modified)".
func (i Info) String() string {
	if i.Revision == "" {
		return i.Version
	}
	mark := ""
	if i.Modified {
		mark = ", modified"
	}
	return fmt.Sprintf("%s (%s%s)", i.Version, i.Revision[:min(12, len(i.Revision))], mark)
}
