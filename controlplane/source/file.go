package source

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/api"
)

const (
	maxFileSize = 64 << 20
	// writerPatience is how long a file that somebody holds open for writing is left
	// alone; after it the file is read as it stands.
	writerPatience = 3 * time.Second
	// settleTime is how long a file must have been left unchanged where the file system
	// cannot say whether a writer has it open.
	settleTime = 10 * time.Millisecond
	// stampGrain is the coarsest clock that stamps files: a stamp younger than this when
	// the file was read may also be the stamp of a later change.
	stampGrain = 20 * time.Millisecond
)

// stamp is what changes with a file's content, as far as its directory can say.
type stamp struct {
	dev, ino   uint64
	size       int64
	mtim, ctim unix.Timespec
	mode       uint32
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{dev: st.Dev, ino: st.Ino, size: st.Size, mtim: st.Mtim, ctim: st.Ctim, mode: st.Mode}
}

// youngAt is true if the file may change after now without its stamp changing.
func (s stamp) youngAt(now time.Time, grain time.Duration) bool {
	return now.Sub(time.Unix(s.ctim.Unix())) < grain
}

func (s stamp) regular() bool { return s.mode&unix.S_IFMT == unix.S_IFREG }
func (s stamp) folder() bool  { return s.mode&unix.S_IFMT == unix.S_IFDIR }

// content is a file's objects at a moment when all its documents were valid.
type content struct {
	sum     [sha256.Size]byte // of the text
	text    []byte            // nil once it is saved
	objects []object
}

// file is what is known of one name in the directory.
type file struct {
	stamp   stamp
	young   bool              // stamp cannot be trusted: read again
	sum     [sha256.Size]byte // of the text that good and errors come from
	good    *content          // last good content; nil if there never was one
	errors  []api.ObjectError // of the text; empty if it is good
	waiting time.Time         // since when a writer has kept us from reading
}

// errBusy means that somebody is writing the file.
var errBusy = errors.New("is being written")

// read the whole text of a file that nobody is writing. With force it is read as it is.
func read(path string, force bool) ([]byte, stamp, error) {
	// O_NONBLOCK: never wait for the other end of a pipe that took the file's place.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, stamp{}, err
	}
	defer f.Close()
	at, err := statFile(f)
	if err != nil {
		return nil, at, err
	}
	if !at.regular() {
		return nil, at, errors.New("is not a regular file")
	}
	if at.size > maxFileSize {
		return nil, at, fmt.Errorf("is %d bytes: at most %d are read", at.size, maxFileSize)
	}
	if !force {
		if err := keepWritersOut(f, at); err != nil {
			return nil, at, err
		}
		if at, err = statFile(f); err != nil {
			return nil, at, err
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(text) > maxFileSize {
		err = fmt.Errorf("grew beyond %d bytes: at most that many are read", maxFileSize)
	}
	return text, at, err
}

func statFile(f *os.File) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return stamp{}, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return stampOf(&st), nil
}

// keepWritersOut takes a read lease on f, which the kernel grants only if no one has
// the file open for writing, and which makes those who want to wait until f is closed.
// So a file that is edited in place is never seen half written. Where there are no
// leases, a file must have been left alone for settleTime.
func keepWritersOut(f *os.File, at stamp) error {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EAGAIN), at.youngAt(time.Now(), settleTime):
		return errBusy
	}
	return nil
}
