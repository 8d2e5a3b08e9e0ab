// Package statedir is the agent's directory: who holds it, and small JSON files in it
// that are replaced whole.
package statedir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// LockName is the file whose lock says that the directory is held; it has the pid.
const LockName = "agent.lock"

// Dir is a state directory that this process holds until it ends or Closes it.
type Dir struct {
	path string
	lock *os.File
}

// Open makes the directory (0700) if it is not there and holds it. It fails at once,
// naming the pid, when another process does.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(path, LockName), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("hold state directory: %w", err)
	}
	if err := hold(f, path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Dir{path: path, lock: f}, nil
}

func hold(f *os.File, path string) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		pid, _ := io.ReadAll(io.LimitReader(f, 32))
		return fmt.Errorf("an agent (pid %s) runs on state directory %s already: stop it or choose another --state-dir",
			strings.TrimSpace(string(pid)), path)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	if _, err := f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	return nil
}

// Close lets another process hold the directory.
func (d *Dir) Close() error { return d.lock.Close() }

// Path of the directory, or of what lies below it.
func (d *Dir) Path(elem ...string) string { return filepath.Join(append([]string{d.path}, elem...)...) }

// Save replaces the file by v as JSON: whoever reads it, after a crash too, finds the
// old content or the new. It is not synced to the disk: what it describes lives in the
// kernel's memory and is gone after a power loss anyway.
func (d *Dir) Save(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("save %s: %w", name, err)
	}
	path := d.Path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("save %s: %w", name, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-") // 0600
	if err != nil {
		return fmt.Errorf("save %s: %w", name, err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("save %s: %w", name, errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// Append adds data to a file, which is made if it is not there: whoever reads it after a crash
// finds the old content and perhaps a part of data. Like Save it does not sync.
func (d *Dir) Append(name string, data []byte) error {
	f, err := os.OpenFile(d.Path(name), os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("append to %s: %w", name, err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		if _, err = f.Write(data); err != nil { // half of it would spoil what comes after
			err = errors.Join(err, f.Truncate(size))
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("append to %s: %w", name, err)
	}
	return nil
}

// Read is the content of a file, nil if there is none.
func (d *Dir) Read(name string) ([]byte, error) {
	data, err := os.ReadFile(d.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	return data, nil
}

// Load reads a file that Save wrote into v; false: there is none.
func (d *Dir) Load(name string, v any) (bool, error) {
	data, err := os.ReadFile(d.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		return false, fmt.Errorf("load %s: %w", d.Path(name), err)
	}
	return true, nil
}

// Remove removes a file; one that is not there is no error.
func (d *Dir) Remove(name string) error {
	if err := os.Remove(d.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove state: %w", err)
	}
	return nil
}

// List names the files that Save made in a directory below; what a crash left half
// written is removed.
func (d *Dir) List(name string) ([]string, error) {
	entries, err := os.ReadDir(d.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list state: %w", err)
	}
	var out []string
	for _, e := range entries {
		file := filepath.Join(name, e.Name())
		if strings.HasPrefix(e.Name(), ".new-") {
			if err := d.Remove(file); err != nil {
				return nil, err
			}
			continue
		}
		out = append(out, file)
	}
	return out, nil
}
