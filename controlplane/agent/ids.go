package agent

import (
	"fmt"
	"os"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/statedir"
)

// What the numbers in the kernel mean: all of them as of some time, and a line for each that was
// given out since. The second is begun anew when it has grown as long as the first.
const (
	idsFile = "ids.json"
	idsLog  = "ids.log"

	idsLogLeast = 256 << 10 // bytes
)

// savedIDs writes the id tables.
type savedIDs struct {
	dir   *statedir.Dir
	whole int // bytes of the first file; 0: it was not written since the start
	lines int // of the second
}

// load reads them; false: there are none.
func (s *savedIDs) load(ids *policy.Allocator) (bool, error) {
	found, err := s.dir.Load(idsFile, ids)
	if err != nil || !found {
		return found, err
	}
	lines, err := s.dir.Read(idsLog)
	if err == nil {
		err = ids.Replay(lines)
	}
	if err != nil {
		return true, fmt.Errorf("load %s: %w", s.dir.Path(idsLog), err)
	}
	return true, nil
}

// save what was given out since the last save.
func (s *savedIDs) save(ids *policy.Allocator) error {
	if s.whole == 0 || s.lines > max(s.whole, idsLogLeast) {
		return s.saveWhole(ids)
	}
	lines, n := ids.Unsaved()
	if n == 0 {
		return nil
	}
	if err := s.dir.Append(idsLog, lines); err != nil {
		return err
	}
	s.lines += len(lines)
	ids.Saved(n)
	return nil
}

func (s *savedIDs) saveWhole(ids *policy.Allocator) error {
	if err := s.dir.Save(idsFile, ids); err != nil {
		return err
	}
	file, err := os.Stat(s.dir.Path(idsFile))
	if err != nil {
		return fmt.Errorf("save %s: %w", idsFile, err)
	}
	ids.SavedAll() // the lines that a crash leaves here tell nothing new
	s.whole, s.lines = int(file.Size()), 0
	return s.dir.Remove(idsLog)
}
