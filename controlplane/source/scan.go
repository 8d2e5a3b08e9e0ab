package source

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/api"
)

// scanTries bounds how often a scan begins again because the directory changed under it.
// A directory that never holds still counts as it was read.
const scanTries = 8

// listing is the files of a directory by name.
type listing map[string]stamp

// wanted names are read: YAML and JSON that is not hidden.
func wanted(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(name, ".")
	}
	return false
}

// list the wanted files. A symbolic link counts as what it points to; one that points
// nowhere has the zero stamp. Directories are left out.
func list(dir string) (listing, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	out := listing{}
	for _, name := range names {
		if !wanted(name) {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(int(f.Fd()), name, &st, 0); err != nil {
			if unix.Fstatat(int(f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue // removed since it was listed
			}
			st = unix.Stat_t{}
		}
		if s := stampOf(&st); !s.folder() {
			out[name] = s
		}
	}
	return out, nil
}

// scan brings files up to date with the directory. busy means that something was being
// written and is not in yet. An unreadable directory changes nothing: what it last held
// stays.
//
// Neither reading a directory nor reading several files is atomic: a file renamed
// meanwhile can be missed under both names, and two links can be read from before and
// after a swap. So a scan that found a change counts only when nothing has changed
// behind it.
func (d *Directory) scan() (busy bool) {
	now, err := list(d.dir)
	for try := 0; err == nil; try++ {
		var changed bool
		changed, busy = d.readChanged(now)
		d.dirty = d.dirty || changed
		if !changed || try == scanTries {
			break
		}
		var after listing
		if after, err = list(d.dir); maps.Equal(now, after) {
			break
		}
		now = after
	}
	if d.setDirError(err); err != nil {
		return false
	}
	maps.DeleteFunc(d.files, func(name string, _ *file) bool {
		_, there := now[name]
		return !there
	})
	return busy
}

func (d *Directory) setDirError(err error) {
	var now *api.ObjectError
	if err != nil {
		now = &api.ObjectError{Message: fmt.Sprintf("directory %q: %v: what it last held stays in force; bring it back", d.dir, reason(err))}
	}
	if (now == nil) != (d.dirError == nil) || now != nil && *now != *d.dirError {
		d.dirty = true
	}
	d.dirError = now
}

// reason is err without the path, which the message has already.
func reason(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// readChanged reads the files whose stamp is new. changed covers names that are gone.
func (d *Directory) readChanged(now listing) (changed, busy bool) {
	for name := range d.files {
		if _, there := now[name]; !there {
			changed = true
		}
	}
	for name, at := range now {
		f := d.files[name]
		if f != nil && f.stamp == at && !f.young && f.waiting.IsZero() {
			continue
		}
		if f == nil {
			f = &file{}
			d.files[name] = f
			changed = true
		}
		switch read, wait := d.refresh(name, f); {
		case wait:
			busy = true
		case read:
			changed = true
		}
	}
	return changed, busy
}

// refresh reads one file; changed means that its content or errors did.
func (d *Directory) refresh(name string, f *file) (changed, busy bool) {
	force := !f.waiting.IsZero() && time.Since(f.waiting) > writerPatience
	text, at, err := read(filepath.Join(d.dir, name), force)
	if errors.Is(err, errBusy) {
		if f.waiting.IsZero() {
			f.waiting = time.Now()
		}
		return false, true
	}
	f.waiting = time.Time{}
	f.stamp, f.young = at, at.youngAt(time.Now(), stampGrain)
	if err != nil {
		sum := sha256.Sum256([]byte("error: " + reason(err).Error()))
		changed = f.sum != sum
		f.sum, f.errors = sum, []api.ObjectError{{Message: fmt.Sprintf("%v: mend or remove the file", reason(err))}}
		return changed, false
	}
	sum := sha256.Sum256(text)
	if sum == f.sum {
		return false, false
	}
	f.sum = sum
	if f.good != nil && f.good.sum == sum { // mended by taking the change back
		f.errors = nil
		return true, false
	}
	objects, errs := parse(name, text)
	if f.errors = errs; len(errs) == 0 {
		f.good = &content{sum: sum, text: text, objects: objects}
	}
	return true, false
}
