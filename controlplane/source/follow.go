package source

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Follow hands on the text of one file, or why it cannot be read, at first and after every change,
// until ctx is over. A file that somebody is writing is left until it is whole.
func Follow(ctx context.Context, path string, log *slog.Logger, got func(text []byte, err error)) {
	w := newWatch(filepath.Dir(path), log)
	defer w.close()
	due := time.NewTimer(0)
	defer due.Stop()
	f := followed{path: path}
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.changed:
		case <-due.C:
		}
		w.follow()
		due.Reset(f.look(got))
	}
}

// followed is a file as it was handed on.
type followed struct {
	path    string
	told    bool
	stamp   stamp
	young   bool
	sum     [sha256.Size]byte
	failed  string
	waiting time.Time // since when a writer has kept us from reading
}

// look hands on what changed, and returns when to look again whatever happens.
func (f *followed) look(got func([]byte, error)) time.Duration {
	var st unix.Stat_t
	if unix.Stat(f.path, &st) == nil && f.told && f.failed == "" && !f.young && stampOf(&st) == f.stamp {
		return rescanTime
	}
	force := !f.waiting.IsZero() && time.Since(f.waiting) > writerPatience
	now := time.Now()
	text, at, err := read(f.path, force)
	if errors.Is(err, errBusy) {
		if f.waiting.IsZero() {
			f.waiting = now
		}
		return busyTime
	}
	f.waiting, f.stamp, f.young = time.Time{}, at, at.youngAt(now, stampGrain)
	failed, sum := "", sha256.Sum256(text)
	if err != nil {
		failed, text = err.Error(), nil
	}
	if !f.told || failed != f.failed || failed == "" && sum != f.sum {
		got(text, err)
	}
	if f.told, f.failed = true, failed; failed == "" {
		f.sum = sum
	}
	if f.young && failed == "" {
		return stampGrain
	}
	return rescanTime
}
