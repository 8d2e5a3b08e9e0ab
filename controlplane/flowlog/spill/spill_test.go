package spill

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func open(t testing.TB, dir string, size int64) *Store {
	t.Helper()
	s, err := Open(Options{Dir: dir, Size: size, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// block n is of minute n, and of data that does not compress.
func block(n, size int) *Block {
	at := noon.Add(time.Duration(n) * time.Minute)
	r := rand.New(rand.NewPCG(uint64(n), 1))
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return &Block{Run: 1, First: uint64(n), Last: uint64(n), Count: 1, From: at, Until: at, Data: data}
}

// found are the blocks' numbers; their data must be what was written.
func found(t *testing.T, s *Store, from, until time.Time, backward bool) string {
	t.Helper()
	var out []string
	for b := range s.Blocks(from, until, backward) {
		if want := block(int(b.First), len(b.Data)); !bytes.Equal(b.Data, want.Data) || !b.From.Equal(want.From) || b.Count != 1 {
			t.Errorf("block %d came back as another", b.First)
		}
		out = append(out, fmt.Sprint(b.First))
	}
	return strings.Join(out, " ")
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	must(t, err)
	return names
}

func TestBlocksComeBack(t *testing.T) {
	dir := t.TempDir() + "/flows"
	s := open(t, dir, SizeLeast)
	for i := range 5 {
		must(t, s.Append(block(i, 50_000))) // three a segment
	}
	minute := func(n int) time.Time { return noon.Add(time.Duration(n) * time.Minute) }
	check := func(s *Store) {
		t.Helper()
		for _, c := range []struct {
			from, until time.Time
			backward    bool
			want        string
		}{
			{time.Time{}, time.Time{}, false, "0 1 2 3 4"},
			{time.Time{}, time.Time{}, true, "4 3 2 1 0"},
			{minute(2), time.Time{}, false, "2 3 4"},
			{minute(1), minute(3), true, "3 2 1"},
			{minute(9), time.Time{}, false, ""},
		} {
			if got := found(t, s, c.from, c.until, c.backward); got != c.want {
				t.Errorf("%v to %v, backward %v: %q, want %q", c.from, c.until, c.backward, got, c.want)
			}
		}
	}
	check(s)
	again := open(t, dir, SizeLeast) // the first was killed: it closed nothing
	check(again)
	must(t, again.Append(block(5, 10)))
	if got := found(t, again, time.Time{}, time.Time{}, false); got != "0 1 2 3 4 5" {
		t.Errorf("after a restart: %s", got)
	}
	if st := again.Status(); st.Corrupt != 0 || !st.Oldest.Equal(noon) || st.Segments != len(files(t, dir)) || st.Segments < 3 {
		t.Errorf("%+v, %d files", st, len(files(t, dir)))
	}
	for _, f := range files(t, dir) {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
	}
}

func TestSizeAndAgeAreBounded(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, SizeLeast)
	for i := range 100 {
		must(t, s.Append(block(i, 30_000)))
		total := int64(0)
		for _, f := range files(t, dir) {
			info, err := os.Stat(f)
			must(t, err)
			total += info.Size()
		}
		if st := s.Status(); total > SizeLeast || st.Bytes != total {
			t.Fatalf("%d bytes on disk, %d said", total, st.Bytes)
		}
	}
	if got := found(t, s, time.Time{}, time.Time{}, true); !strings.HasPrefix(got, "99 98 97 ") || len(strings.Fields(got)) < 25 {
		t.Errorf("kept: %s", got)
	}
	s.opts.Age = time.Hour
	s.Expire(noon.Add(99*time.Minute + 2*time.Hour))
	if got := found(t, s, time.Time{}, time.Time{}, false); got != "" || len(files(t, dir)) != 0 {
		t.Errorf("kept beyond its age: %s, %v", got, files(t, dir))
	}
	must(t, s.Append(block(3, 10)))
}

// A tail that was cut off and bytes that changed cost the block they are in, and no other.
func TestDamageIsSkippedAndCounted(t *testing.T) {
	const size = 1000
	for name, c := range map[string]struct {
		damage func(b []byte) []byte
		want   string
	}{
		"cut in data":      {func(b []byte) []byte { return b[:4*(headerSize+size)+500] }, "0 1 2 3"},
		"cut in a header":  {func(b []byte) []byte { return b[:4*(headerSize+size)+20] }, "0 1 2 3"},
		"data":             {func(b []byte) []byte { b[headerSize+5] ^= 1; return b }, "1 2 3 4"},
		"a header":         {func(b []byte) []byte { b[headerSize+size+9] ^= 1; return b }, "0 2 3 4"},
		"a mark":           {func(b []byte) []byte { b[0] = 0; return b }, "1 2 3 4"},
		"a hole":           {func(b []byte) []byte { clear(b[size : 2*size]); return b }, "2 3 4"},
		"a length":         {func(b []byte) []byte { b[6] = 0xff; return b }, "1 2 3 4"},
		"something before": {func(b []byte) []byte { return append([]byte("WFBWFB\x01garbage"), b...) }, "0 1 2 3 4"},
		"all":              {func(b []byte) []byte { return bytes.Repeat([]byte{'W'}, 5000) }, ""},
	} {
		dir := t.TempDir()
		s := open(t, dir, SizeLeast)
		for i := range 5 {
			must(t, s.Append(block(i, size)))
		}
		must(t, s.Close())
		path := files(t, dir)[0]
		b, err := os.ReadFile(path)
		must(t, err)
		must(t, os.WriteFile(path, c.damage(b), 0o600))
		s = open(t, dir, SizeLeast)
		for range 2 { // said once
			if got := found(t, s, time.Time{}, time.Time{}, false); got != c.want {
				t.Errorf("%s: %q, want %q", name, got, c.want)
			}
		}
		if st := s.Status(); st.Corrupt != 1 || st.Skipped == 0 {
			t.Errorf("%s: %+v", name, st)
		}
		must(t, s.Append(block(7, 10)))
		if got := strings.TrimSpace(c.want + " 7"); found(t, s, time.Time{}, time.Time{}, false) != got {
			t.Errorf("%s: nothing comes after it", name)
		}
	}
}

// A full disk is an error each time, leaves nothing half written, and is over when there is room.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a small tmpfs")
	}
	dir, err := os.MkdirTemp("/run", "weirt-spill-")
	must(t, err)
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH); _ = os.Remove(dir) })
	s := open(t, dir, SizeLeast)
	must(t, s.Append(block(0, 10_000)))
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	must(t, f.Close())
	failed := 0
	for i := 1; i < 20; i++ {
		if s.Append(block(i, 10_000)) != nil {
			failed++
		}
	}
	if failed != 19 {
		t.Errorf("%d of 19 failed on a full disk", failed)
	}
	must(t, os.Remove(ballast))
	must(t, s.Append(block(20, 10_000)))
	if got := found(t, s, time.Time{}, time.Time{}, false); got != "0 20" {
		t.Errorf("found %s", got)
	}
	if got := found(t, open(t, dir, SizeLeast), time.Time{}, time.Time{}, false); got != "0 20" {
		t.Errorf("found %s after a restart", got)
	}
}

func TestTooSmall(t *testing.T) {
	if _, err := Open(Options{Dir: t.TempDir(), Size: 1000}); err == nil {
		t.Error("opened")
	}
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := Open(Options{Dir: file, Size: SizeLeast}); err == nil {
		t.Error("a file was opened as a directory")
	}
}

// FuzzRead: whatever a file holds, what is found was written, and it ends.
func FuzzRead(f *testing.F) {
	line := append(block(1, 30).header(), block(1, 30).Data...)
	f.Add(append(append([]byte{}, line...), line...))
	f.Add(line[:70])
	f.Add([]byte("WFB\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "00000000000000000001"+suffix), b, 0o600))
		s := open(t, dir, SizeLeast)
		for range s.Blocks(time.Time{}, time.Time{}, false) {
		}
	})
}

// A FIFO among the files is not waited for, and not written to.
func TestOpenLeavesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mkfifo(filepath.Join(dir, "00000000000000000001.flows"), 0o600))
	s := open(t, dir, SizeLeast)
	must(t, s.Append(block(1, 100)))
	if got := found(t, s, time.Time{}, time.Time{}, false); got != "1" {
		t.Errorf("%q", got)
	}
}
