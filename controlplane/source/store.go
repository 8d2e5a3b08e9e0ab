package source

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// store keeps what must outlive the agent below the state directory:
//
//	source/index.json   the revision, which content each file has, which duplicates won
//	source/good-SHA256  a content
//
// Contents are written first, then the index, each by rename; then contents that the
// index no longer names are removed. A content that does not have its name's sum, after
// a crash of the machine, counts as not there.
type store struct {
	dir   string
	saved map[string]bool // names of contents on disk
}

const (
	indexName  = "index.json"
	goodPrefix = "good-"
)

type index struct {
	Version     int               `json:"version"`
	Directory   string            `json:"directory"`
	Revision    uint64            `json:"revision"`
	Fingerprint string            `json:"fingerprint"` // of the revision, hex
	Files       map[string]string `json:"files"`       // name -> sum of its last good content
	Winners     []winner          `json:"winners"`     // of contested objects
}

type winner struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	File      string `json:"file"`
	Hash      string `json:"hash"`
}

func openStore(stateDir string) (*store, error) {
	s := &store{dir: filepath.Join(stateDir, "source"), saved: map[string]bool{}}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), goodPrefix) {
			s.saved[e.Name()] = true
		} else if strings.HasPrefix(e.Name(), "tmp-") {
			os.Remove(filepath.Join(s.dir, e.Name()))
		}
	}
	return s, nil
}

// errDamaged is an index that cannot be read as one, after a crash of the machine.
var errDamaged = errors.New("is damaged")

// load the index; a store without one has the zero index.
func (s *store) load() (index, error) {
	var i index
	text, err := os.ReadFile(filepath.Join(s.dir, indexName))
	if errors.Is(err, fs.ErrNotExist) {
		return i, nil
	}
	if err != nil {
		return i, err
	}
	if err := json.Unmarshal(text, &i); err != nil {
		return index{}, fmt.Errorf("%s %w: %v", filepath.Join(s.dir, indexName), errDamaged, err)
	}
	return i, nil
}

// content whose sum is given in hex.
func (s *store) content(sum string) ([]byte, error) {
	name := filepath.Join(s.dir, goodPrefix+sum)
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if got := sha256.Sum256(text); hex.EncodeToString(got[:]) != sum {
		return nil, fmt.Errorf("%s is damaged", name)
	}
	return text, nil
}

// save i and those of contents that are not saved yet.
func (s *store) save(i index, contents []*content) error {
	for _, c := range contents {
		name := goodPrefix + hex.EncodeToString(c.sum[:])
		if c.text == nil {
			continue
		}
		if !s.saved[name] {
			if err := s.write(name, c.text); err != nil {
				return err
			}
			s.saved[name] = true
		}
		c.text = nil
	}
	text, err := json.Marshal(i)
	if err != nil {
		return err
	}
	if err := s.write(indexName, text); err != nil {
		return err
	}
	s.collect(i)
	return nil
}

func (s *store) collect(i index) {
	used := map[string]bool{}
	for _, sum := range i.Files {
		used[goodPrefix+sum] = true
	}
	for name := range s.saved {
		if !used[name] && os.Remove(filepath.Join(s.dir, name)) == nil {
			delete(s.saved, name)
		}
	}
}

// write by rename, 0600.
func (s *store) write(name string, text []byte) error {
	f, err := os.CreateTemp(s.dir, "tmp-")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(s.dir, name))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
