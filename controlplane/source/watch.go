package source

import (
	"log/slog"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// watch says when something in a directory may have changed. It only saves time: what
// it misses, or all if the system has no watches left, is found by the next rescan.
type watch struct {
	dir     string
	log     *slog.Logger
	fs      *fsnotify.Watcher // nil: none to be had
	on      [2]uint64         // device and inode of the directory that is watched
	changed chan struct{}
}

func newWatch(dir string, log *slog.Logger) *watch {
	w := &watch{dir: dir, log: log, changed: make(chan struct{}, 1)}
	var err error
	if w.fs, err = fsnotify.NewWatcher(); err != nil {
		log.Warn("no file events: changes are seen by the rescan only; raise fs.inotify.max_user_instances", "every", rescanTime, "error", err)
		return w
	}
	go w.forward()
	w.follow()
	return w
}

// forward makes one signal of any number of events and errors. Files that are not
// wanted count too: links lead through them.
func (w *watch) forward() {
	for {
		select {
		case _, ok := <-w.fs.Events:
			if !ok {
				return
			}
		case err, ok := <-w.fs.Errors:
			if !ok {
				return
			}
			w.log.Debug("file events were lost", "error", err)
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

// follow the directory's name to the directory that has it now.
func (w *watch) follow() {
	var st unix.Stat_t
	if w.fs == nil || unix.Stat(w.dir, &st) != nil {
		return
	}
	on := [2]uint64{st.Dev, st.Ino}
	if on == w.on && len(w.fs.WatchList()) > 0 {
		return
	}
	w.fs.Remove(w.dir) // of the earlier directory, if it still exists
	if err := w.fs.Add(w.dir); err != nil {
		w.log.Warn("no file events: changes are seen by the rescan only; raise fs.inotify.max_user_watches", "every", rescanTime, "error", err)
		return
	}
	w.on = on
}

func (w *watch) close() {
	if w.fs != nil {
		w.fs.Close()
	}
}
