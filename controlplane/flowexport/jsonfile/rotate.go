package jsonfile

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// aside is the time in the name of a file that was put aside:
// flows.json becomes flows-20261127T213000.123456Z.json.
const aside = "20060102T150405.000000Z"

// rotate puts the file aside and begins another.
func (f *File) rotate() error {
	if err := f.Close(); err != nil {
		return err
	}
	prefix, ext := f.parts()
	if err := os.Rename(f.Path, prefix+time.Now().UTC().Format(aside)+ext); err != nil {
		return err
	}
	f.pruned = time.Time{}
	return f.open()
}

func (f *File) parts() (prefix, ext string) {
	ext = filepath.Ext(f.Path)
	return strings.TrimSuffix(f.Path, ext) + "-", ext
}

// prune removes files put aside: the oldest above Keep, and those older than Age. It looks
// once a minute and after each rotation.
func (f *File) prune(now time.Time) error {
	if !f.regular || f.Keep <= 0 && f.Age <= 0 || now.Sub(f.pruned) < time.Minute {
		return nil
	}
	f.pruned = now
	kept, err := f.putAside()
	if err != nil {
		return err
	}
	for i, k := range kept {
		if f.Keep > 0 && i < len(kept)-f.Keep || f.Age > 0 && now.Sub(k.at) > f.Age {
			if err := os.Remove(k.path); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
	}
	return nil
}

type kept struct {
	path string
	at   time.Time
}

// putAside are the files put aside, oldest first.
func (f *File) putAside() ([]kept, error) {
	entries, err := os.ReadDir(filepath.Dir(f.Path))
	if err != nil {
		return nil, err
	}
	prefix, ext := f.parts()
	var out []kept
	for _, e := range entries {
		text, ok := strings.CutPrefix(e.Name(), filepath.Base(prefix))
		text, isOurs := strings.CutSuffix(text, ext)
		at, err := time.Parse(aside, text)
		if ok && isOurs && err == nil && e.Type().IsRegular() {
			out = append(out, kept{filepath.Join(filepath.Dir(f.Path), e.Name()), at})
		}
	}
	slices.SortFunc(out, func(a, b kept) int { return a.at.Compare(b.at) })
	return out, nil
}
