// Package jsonfile writes flows to a file, one Hubble message a line as weir flows -o json
// has them, and puts the file aside when it is large.
package jsonfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/flowexport"
	"github.com/weirnet/weir/controlplane/flowlog"
)

// Options of a File.
type Options struct {
	Path   string
	Size   int64         // the file is put aside before it is larger; 0 = never
	Keep   int           // files put aside that stay; 0 = all
	Age    time.Duration // those put aside longer ago are removed; 0 = none
	Fields Fields        // of flows; zero = all
}

// File is a flowexport.Target. A line is whole or not there: what a full disk cut off is
// taken back. The file may be moved or removed at any time (logrotate): it is made again.
type File struct {
	Options
	log     Messages
	encoder *flowlog.Encoder
	room    []byte // that lines are made in
	file    *os.File
	regular bool // else a pipe or a device: no size, never put aside
	size    int64
	pruned  time.Time
}

// Messages makes a record the API's; it is a *flowlog.Log.
type Messages interface {
	Message(*flowlog.Record) *observerpb.GetFlowsResponse
	Encoder() *flowlog.Encoder
}

// New returns a File that is opened when it is first written.
func New(o Options, log Messages) *File { return &File{Options: o, log: log, encoder: log.Encoder()} }

// Send implements flowexport.Target.
func (f *File) Send(ctx context.Context, records []*flowlog.Record) (settled int, err error) {
	if err := f.open(); err != nil {
		return 0, err
	}
	if !f.regular { // a pipe that nobody reads
		file := f.file
		_ = file.SetWriteDeadline(time.Time{})
		defer context.AfterFunc(ctx, func() { _ = file.SetWriteDeadline(time.Now()) })()
	}
	lines := chunk{text: *bytes.NewBuffer(f.room[:0])}
	defer func() { f.room = lines.text.Bytes()[:0] }()
	for _, r := range records {
		if err := f.add(&lines, r); err != nil {
			n, failed := f.write(&lines)
			if failed != nil {
				return settled + n, failed
			}
			return settled + n, &flowexport.RefusedError{N: 1, Err: err}
		}
		if !f.full(lines.len()) || f.size+int64(lines.before()) == 0 {
			continue
		}
		last := lines.cut()
		n, err := f.write(&lines)
		if settled += n; err == nil {
			err = f.rotate()
		}
		if err != nil {
			return settled, err
		}
		lines = last
	}
	n, err := f.write(&lines)
	if err == nil {
		err = f.prune(time.Now())
	}
	return settled + n, err
}

// lineRoom is as much as most lines take.
const lineRoom = 2048

// chunk is lines that are written at once.
type chunk struct {
	text bytes.Buffer
	ends []int // of each line
}

// add adds a record's line, if it can be made.
func (f *File) add(c *chunk, r *flowlog.Record) error {
	start := c.text.Len()
	var err error
	if f.Fields.root == nil {
		var line []byte
		c.text.Grow(lineRoom)
		line, err = f.encoder.AppendRecord(c.text.AvailableBuffer(), r)
		c.text.Write(line)
	} else {
		err = flowlog.AppendLine(&c.text, f.Fields.Of(f.log.Message(r)))
	}
	if err != nil {
		c.text.Truncate(start)
		return err
	}
	c.ends = append(c.ends, c.text.Len())
	return nil
}

func (c *chunk) len() int { return c.text.Len() }

// before is the length without the last line.
func (c *chunk) before() int {
	if len(c.ends) < 2 {
		return 0
	}
	return c.ends[len(c.ends)-2]
}

// cut takes the last line off and returns it.
func (c *chunk) cut() (last chunk) {
	n := c.before()
	last.text.Write(c.text.Bytes()[n:])
	last.ends = []int{last.text.Len()}
	c.text.Truncate(n)
	c.ends = c.ends[:len(c.ends)-1]
	return last
}

func (f *File) full(more int) bool {
	return f.regular && f.Size > 0 && f.size+int64(more) > f.Size
}

// write returns how many of the lines are in the file.
func (f *File) write(c *chunk) (lines int, err error) {
	if c.len() == 0 {
		return 0, nil
	}
	n, err := f.file.Write(c.text.Bytes())
	if err == nil {
		f.size += int64(n)
		return len(c.ends), nil
	}
	whole := 0
	for _, end := range c.ends {
		if end > n {
			break
		}
		lines, whole = lines+1, end
	}
	f.size += int64(whole)
	if f.regular && n > whole {
		err = errors.Join(err, f.file.Truncate(f.size))
	}
	return lines, err
}

// open makes sure that the file at the path is the one that is open.
func (f *File) open() error {
	if f.file != nil {
		have, err := f.file.Stat()
		if err != nil {
			return err
		}
		if at, err := os.Stat(f.Path); err == nil && os.SameFile(at, have) {
			f.size = have.Size() // others may have cut it
			return nil
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	file, err := os.OpenFile(f.Path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil {
		f.file, f.regular, f.size = file, info.Mode().IsRegular(), info.Size()
		err = f.mend()
	}
	if err != nil {
		_ = file.Close()
		f.file = nil
	}
	return err
}

// tail is how much of a file's end is looked at for a line that was cut off.
const tail = 64 << 10

// mend takes off a flow's line that has no end: the machine went down in it.
func (f *File) mend() error {
	if !f.regular || f.size == 0 {
		return nil
	}
	end := make([]byte, min(f.size, tail))
	if _, err := f.file.ReadAt(end, f.size-int64(len(end))); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	start := bytes.LastIndexByte(end, '\n') + 1
	last := end[start:]
	if len(last) == 0 {
		return nil
	}
	if last[0] != '{' || start == 0 && int64(len(end)) < f.size {
		return fmt.Errorf("%s does not end with a line of JSON: it is some other file", f.Path)
	}
	f.size -= int64(len(last))
	return f.file.Truncate(f.size)
}

// Close implements flowexport.Target.
func (f *File) Close() error {
	if f.file == nil {
		return nil
	}
	err := f.file.Close()
	f.file = nil
	return err
}
