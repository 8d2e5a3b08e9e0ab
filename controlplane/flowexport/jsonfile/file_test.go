package jsonfile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/flowfeed"
	"github.com/weirnet/weir/tests/sandbox"
)

// records are n flows from source ports 1, 2, ...
func records(t *testing.T, n int) (*flowlog.Log, []*flowlog.Record) {
	t.Helper()
	var events []datapath.Event
	for port := range n {
		events = append(events, flowfeed.Began(uint16(port+1)))
	}
	feed := flowfeed.New(t, 0)
	return feed.Log, feed.Records(events...)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// send writes all, as an exporter would: it goes on where it failed, and gives up after ten times.
func send(t *testing.T, f *File, all []*flowlog.Record) error {
	t.Helper()
	var err error
	for range 10 {
		var n int
		n, err = f.Send(t.Context(), all)
		all = all[n:]
		if err == nil {
			return nil
		}
	}
	return err
}

// ports reads the source ports of files' flows; every line must be a whole message.
func ports(t *testing.T, paths ...string) (out []uint32) {
	t.Helper()
	for _, path := range paths {
		b, err := os.ReadFile(path)
		must(t, err)
		if len(b) > 0 && b[len(b)-1] != '\n' {
			t.Fatalf("%s does not end with a line", path)
		}
		for line := range bytes.Lines(b) {
			var m observerpb.GetFlowsResponse
			if err := protojson.Unmarshal(line, &m); err != nil {
				t.Fatalf("%s: %v: %q", path, err, line)
			}
			out = append(out, m.GetFlow().GetL4().GetTCP().GetSourcePort())
		}
	}
	return out
}

func upTo(n int) (out []uint32) {
	for i := range n {
		out = append(out, uint32(i+1))
	}
	return out
}

func (f *File) names(t *testing.T) (out []string) {
	t.Helper()
	kept, err := f.putAside()
	must(t, err)
	for _, k := range kept {
		out = append(out, k.path)
	}
	return append(out, f.Path)
}

func TestFileIsPutAside(t *testing.T) {
	log, all := records(t, 1000)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "flows-mine.json"), nil, 0o600)) // not one of ours
	f := New(Options{Path: filepath.Join(dir, "flows.json"), Size: 50_000}, log)
	must(t, send(t, f, all[:600]))
	must(t, send(t, f, all[600:]))
	names := f.names(t)
	if got := ports(t, names...); !slices.Equal(got, upTo(1000)) {
		t.Fatalf("%d flows in %v: %v", len(got), names, got)
	}
	for _, name := range names {
		info, err := os.Stat(name)
		must(t, err)
		if info.Size() > 50_000 || info.Size() < 45_000 && name != f.Path || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, %v", name, info.Size(), info.Mode())
		}
	}

	// The newest so many stay, and none that are too old.
	f.Keep = 3
	f.pruned = time.Time{}
	must(t, send(t, f, all[:1]))
	if after := f.names(t); !slices.Equal(after, names[len(names)-4:]) {
		t.Errorf("kept %v of %v", after, names)
	}
	f.Age = time.Hour
	f.pruned = time.Time{}
	must(t, f.prune(time.Now().Add(59*time.Minute)))
	if after := f.names(t); len(after) != 4 {
		t.Errorf("after 59 minutes: %v", after)
	}
	f.pruned = time.Time{}
	must(t, f.prune(time.Now().Add(61*time.Minute)))
	if after := f.names(t); len(after) != 1 {
		t.Errorf("after 61 minutes: %v", after)
	}
	if _, err := os.Stat(filepath.Join(dir, "flows-mine.json")); err != nil {
		t.Error(err)
	}
}

// On a full disk what is written is whole lines, and it goes on once there is room.
func TestDiskIsFull(t *testing.T) {
	sandbox.Root(t)
	log, all := records(t, 1000)
	disk := t.TempDir()
	must(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256k"))
	defer func() { must(t, unix.Unmount(disk, unix.MNT_DETACH)) }()
	ballast := filepath.Join(disk, "ballast")
	must(t, os.WriteFile(ballast, make([]byte, 100_000), 0o600))
	f := New(Options{Path: filepath.Join(disk, "flows.json")}, log)
	n, err := f.Send(t.Context(), all)
	if !errors.Is(err, unix.ENOSPC) || n == 0 || n == len(all) {
		t.Fatalf("%d of %d: %v", n, len(all), err)
	}
	if got := ports(t, f.Path); !slices.Equal(got, upTo(n)) {
		t.Fatalf("%d settled, the file has %v", n, got)
	}
	again, err := f.Send(t.Context(), all[n:])
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("%d: %v", again, err)
	}
	n += again
	must(t, os.Remove(ballast))
	more, err := f.Send(t.Context(), all[n:n+50])
	must(t, err)
	if got := ports(t, f.Path); !slices.Equal(got, upTo(n+more)) {
		t.Fatalf("%d settled, the file has %v", n+more, got)
	}
}

// Others may move the file away, remove it, or cut it (logrotate does any of these).
func TestFileIsMovedAway(t *testing.T) {
	log, all := records(t, 40)
	f := New(Options{Path: filepath.Join(t.TempDir(), "flows.json"), Size: 1 << 20}, log)
	moved := f.Path + ".1"
	must(t, send(t, f, all[:10]))
	must(t, os.Rename(f.Path, moved))
	must(t, send(t, f, all[10:20]))
	if got := ports(t, moved, f.Path); !slices.Equal(got, upTo(20)) {
		t.Errorf("moved: %v", got)
	}
	must(t, os.Truncate(f.Path, 0))
	must(t, send(t, f, all[20:30]))
	if got := ports(t, f.Path); !slices.Equal(got, upTo(30)[20:]) {
		t.Errorf("cut: %v", got)
	}
	must(t, os.Remove(f.Path))
	must(t, send(t, f, all[30:]))
	if got := ports(t, f.Path); !slices.Equal(got, upTo(40)[30:]) {
		t.Errorf("removed: %v", got)
	}
}

// What the machine left half written is taken off; what is not ours is left alone.
func TestFileThatIsThere(t *testing.T) {
	log, all := records(t, 20)
	f := New(Options{Path: filepath.Join(t.TempDir(), "flows.json")}, log)
	must(t, send(t, f, all[:10]))
	must(t, f.Close())
	info, err := os.Stat(f.Path)
	must(t, err)
	must(t, os.Truncate(f.Path, info.Size()-7))
	must(t, send(t, New(f.Options, log), all[10:]))
	if got, want := ports(t, f.Path), slices.Concat(upTo(9), upTo(20)[10:]); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}

	const other = "root:x:0:0"
	must(t, os.WriteFile(f.Path, []byte(other), 0o600))
	if err := send(t, New(f.Options, log), all); err == nil || !strings.Contains(err.Error(), "some other file") {
		t.Errorf("another's file: %v", err)
	}
	if b, err := os.ReadFile(f.Path); err != nil || string(b) != other {
		t.Errorf("%q, %v", b, err)
	}
}

func TestFileThatCannotBe(t *testing.T) {
	log, all := records(t, 10)
	dir := filepath.Join(t.TempDir(), "later")
	f := New(Options{Path: filepath.Join(dir, "flows.json")}, log)
	if err := send(t, f, all); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), f.Path) {
		t.Errorf("no directory: %v", err)
	}
	must(t, os.Mkdir(dir, 0o700))
	must(t, send(t, f, all))
	if got := ports(t, f.Path); !slices.Equal(got, upTo(10)) {
		t.Errorf("%v", got)
	}
	if err := send(t, New(Options{Path: dir}, log), all); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a directory: %v", err)
	}
	must(t, f.Close())
	must(t, f.Close())
}

// A pipe that nobody reads does not hold up the end.
func TestPipe(t *testing.T) {
	log, all := records(t, 400)
	path := filepath.Join(t.TempDir(), "pipe")
	must(t, unix.Mkfifo(path, 0o600))
	f := New(Options{Path: path, Size: 1}, log)
	read, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer read.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	begin := time.Now()
	n, err := f.Send(ctx, all)
	if err == nil || n == 0 || n == len(all) || time.Since(begin) > 10*time.Second {
		t.Fatalf("%d after %s: %v", n, time.Since(begin), err)
	}
}

func TestFields(t *testing.T) {
	log, all := records(t, 1)
	fields, err := ParseFields([]string{"verdict", "source.pod_name", "IP.destination", "l4", "l4.TCP.flags", "l4.UDP"})
	must(t, err)
	f := New(Options{Path: filepath.Join(t.TempDir(), "flows.json"), Fields: fields}, log)
	must(t, send(t, f, append(all, flowlog.LostRecord(3, "", time.Unix(1e9, 0)))))
	got, err := os.ReadFile(f.Path)
	must(t, err)
	const want = `{"flow":{"verdict":"FORWARDED","IP":{"destination":"10.0.0.3"},"l4":{"TCP":{"source_port":1,"destination_port":6379,"flags":{"SYN":true}}},"source":{"pod_name":"web-1"}},"node_name":"worker-1","time":"2026-11-24T12:00:00.123Z"}
{"lost_events":{"source":"HUBBLE_RING_BUFFER","num_events_lost":"3"},"node_name":"worker-1","time":"2001-09-09T01:46:40Z"}
`
	if string(got) != want {
		t.Errorf("got  %swant %s", got, want)
	}
	if !json.Valid(bytes.TrimSpace(bytes.Split(got, []byte("\n"))[0])) {
		t.Error("no JSON")
	}
	for _, c := range []struct{ path, want string }{
		{"nonsense", `Flow has no field "nonsense"`},
		{"source.nonsense", `Endpoint has no field "nonsense"`},
		{"verdict.name", "Flow.verdict has no fields"},
		{"", `no field ""`},
		{"source.", `no field ""`},
		{"source.labels.x", "has no fields"},
	} {
		if _, err := ParseFields([]string{c.path}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v", c.path, err)
		}
	}
}
