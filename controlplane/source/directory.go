package source

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
)

const (
	joinTime   = 10 * time.Millisecond // changes closer than this are one scan
	busyTime   = 3 * time.Millisecond  // until a file that is being written is tried again
	rescanTime = 2 * time.Second       // for what no event tells: links to elsewhere, lost events
	awayTime   = 100 * time.Millisecond
)

// Directory is a directory of Kubernetes YAML. One Run at a time; Sync from anywhere.
type Directory struct {
	dir   string
	log   *slog.Logger
	store *store
	syncs chan chan<- uint64
	ended chan struct{} // closed when Run returns

	// The rest belongs to Run.
	files     map[string]*file
	winners   map[key]enforced
	dirError  *api.ObjectError
	dirty     bool  // something is not published or not saved
	last      index // as published, by an earlier run at first
	published bool  // by this run
	reported  map[api.ObjectError]bool
}

// NewDirectory reads what stateDir has of an earlier run. It is an error if dir is no
// directory. What stateDir knows of another directory is forgotten, except the revision.
func NewDirectory(dir, stateDir string, log *slog.Logger) (*Directory, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("source directory: %w", err)
	}
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("source directory: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("source directory: %q is not a directory", dir)
	}
	d := &Directory{
		dir: dir, log: log, syncs: make(chan chan<- uint64), ended: make(chan struct{}),
		files: map[string]*file{}, winners: map[key]enforced{}, reported: map[api.ObjectError]bool{},
	}
	if d.store, err = openStore(stateDir); err != nil {
		return nil, fmt.Errorf("source state: %w", err)
	}
	if err := d.restore(); err != nil {
		return nil, fmt.Errorf("source state: %w", err)
	}
	return d, nil
}

// restore the last good contents and the winners.
func (d *Directory) restore() error {
	i, err := d.store.load()
	if errors.Is(err, errDamaged) {
		d.log.Error("source: last good contents, duplicates and revision of earlier runs are lost", "error", err)
	} else if err != nil {
		return err
	}
	d.last = i
	if i.Directory != d.dir {
		return nil
	}
	for name, sum := range i.Files {
		text, err := d.store.content(sum)
		if err != nil {
			d.log.Warn("last good content is lost", "file", name, "error", err)
			continue
		}
		objects, errs := parse(name, text)
		if len(errs) > 0 {
			d.log.Warn("last good content is good no more", "file", name, "error", printable(errs[0]).String())
			continue
		}
		c := &content{objects: objects}
		hex.Decode(c.sum[:], []byte(sum))
		d.files[name] = &file{good: c}
	}
	for _, w := range i.Winners {
		e := enforced{file: w.File}
		hex.Decode(e.hash[:], []byte(w.Hash))
		d.winners[key{w.Kind, types.NamespacedName{Namespace: w.Namespace, Name: w.Name}}] = e
	}
	d.winners = merge(d.files, d.winners, nil).winners
	return nil
}

// Run calls f with everything the directory holds, then again whenever that changes,
// one call at a time, until ctx is done; then it returns nil. The first change after a
// quiet time is scanned at once, those within 10 ms of it together. It logs each error
// when it appears. It is called once.
func (d *Directory) Run(ctx context.Context, f func(Update)) error {
	defer close(d.ended)
	w := newWatch(d.dir, d.log)
	defer w.close()
	due := time.NewTimer(0)
	defer due.Stop()
	var scanned, next time.Time // the last scan, the one that due is set for
	var waiters []chan<- uint64
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.changed:
			if at := scanned.Add(joinTime); at.Before(next) {
				next = at
				due.Reset(time.Until(at))
			}
			continue
		case s := <-d.syncs:
			waiters = append(waiters, s)
		case <-due.C:
		}
		w.follow()
		scanned = time.Now()
		busy := d.scan()
		if !busy || d.published { // the rest need not wait for a file being written
			d.publish(f)
		}
		if !busy {
			for _, s := range waiters {
				s <- d.last.Revision
			}
			waiters = nil
		}
		next = time.Now().Add(d.pause(busy))
		due.Reset(time.Until(next))
	}
}

// pause until the next scan if no event comes before.
func (d *Directory) pause(busy bool) time.Duration {
	switch {
	case busy:
		return busyTime
	case d.dirError != nil:
		return awayTime
	}
	return rescanTime
}

// Sync scans now, whatever events have come, and returns the revision that holds
// everything that was on disk at the call; Run has called back with it. A file that
// somebody holds open for writing is waited for, at most a second. Sync waits for Run
// to begin.
func (d *Directory) Sync(ctx context.Context) (uint64, error) {
	answer := make(chan uint64, 1)
	for syncs := d.syncs; ; {
		select {
		case syncs <- answer:
			syncs = nil
		case revision := <-answer:
			return revision, nil
		case <-d.ended:
			return 0, errors.New("sync: the source has ended")
		case <-ctx.Done():
			return 0, fmt.Errorf("sync: %w", context.Cause(ctx))
		}
	}
}

// publish what the files hold, if that is new. It is saved first: a revision that was
// seen is never given to other content.
func (d *Directory) publish(f func(Update)) {
	if d.published && !d.dirty {
		return
	}
	m := merge(d.files, d.winners, d.dirError)
	d.winners = m.winners
	i := d.index(m)
	err := d.store.save(i, d.contents())
	if err != nil {
		m.addError(api.ObjectError{Message: fmt.Sprintf(
			"source state: %v: everything is enforced, but a restart would not know the last good contents; make room or mend the state directory", err)})
		i = d.index(m)
	}
	d.dirty = err != nil
	same := d.published && i.Revision == d.last.Revision
	d.last, d.published = i, true
	if same {
		return
	}
	d.report(m.errors)
	f(Update{Revision: i.Revision, Cluster: m.cluster, Errors: m.errors, places: m.winners})
}

func (d *Directory) contents() []*content {
	var out []*content
	for _, f := range d.files {
		if f.good != nil {
			out = append(out, f.good)
		}
	}
	return out
}

// index of m, with the revision that follows d.last if m is other than that.
func (d *Directory) index(m merged) index {
	i := index{
		Version: 1, Directory: d.dir, Revision: d.last.Revision,
		Fingerprint: hex.EncodeToString(m.fingerprint[:]), Files: map[string]string{},
	}
	if i.Revision == 0 || i.Fingerprint != d.last.Fingerprint {
		i.Revision++
	}
	for name, f := range d.files {
		if f.good != nil {
			i.Files[name] = hex.EncodeToString(f.good.sum[:])
		}
	}
	for _, k := range m.contested {
		w := m.winners[k]
		i.Winners = append(i.Winners, winner{k.kind, k.Namespace, k.Name, w.file, hex.EncodeToString(w.hash[:])})
	}
	return i
}

// report errors that are new, and those that are gone.
func (d *Directory) report(errs []api.ObjectError) {
	now := map[api.ObjectError]bool{}
	for _, e := range errs {
		if now[e] = true; !d.reported[e] {
			d.log.Warn("source: " + e.String())
		}
	}
	for e := range d.reported {
		if !now[e] {
			d.log.Info("source: mended: " + e.String())
		}
	}
	d.reported = now
}
