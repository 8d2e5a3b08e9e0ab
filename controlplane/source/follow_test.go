package source

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// followFile hands a file's texts, or errors, to the test one by one.
func followFile(t *testing.T, path string) (next func(within time.Duration) string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	got, ended := make(chan string, 16), make(chan struct{})
	go func() {
		defer close(ended)
		Follow(ctx, path, slog.New(slog.DiscardHandler), func(text []byte, err error) {
			if err != nil {
				text = []byte("error")
			}
			got <- string(text)
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return func(within time.Duration) string {
		select {
		case text := <-got:
			return text
		case <-time.After(within):
			return "nothing"
		}
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const soon = 10 * time.Second // an event is faster; the rescan takes 2 s

func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	next := followFile(t, path)
	expect := func(what, want string) {
		t.Helper()
		if got := next(soon); got != want {
			t.Fatalf("%s: %q, want %q", what, got, want)
		}
	}
	expect("no file", "error")
	put(t, path, "one")
	expect("a file", "one")
	put(t, path, "two")
	expect("written over", "two")
	put(t, path+".new", "three")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	expect("replaced", "three")
	put(t, path, "three")
	if got := next(3 * time.Second); got != "nothing" {
		t.Errorf("the same text again: %q", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	expect("gone", "error")
	put(t, path, "three")
	expect("back", "three")
}

// A writer's file is read once it is whole.
func TestFollowWaitsForTheWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	put(t, path, "one\n")
	next := followFile(t, path)
	if got := next(soon); got != "one\n" {
		t.Fatal(got)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"198.51.100.1", "00\n", "203.0.113.0/24\n"} {
		if _, err := f.WriteString(part); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := next(soon); got != "198.51.100.100\n203.0.113.0/24\n" {
		t.Errorf("half a file: %q", got)
	}
}

// As a kubelet brings a ConfigMap: the file is a link through a link to a directory that is replaced.
func TestFollowConfigMap(t *testing.T) {
	dir := t.TempDir()
	version := func(name, text string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, name, "list"), text)
		if err := os.Symlink(name, filepath.Join(dir, "..tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version("..1", "one")
	if err := os.Symlink("..data/list", filepath.Join(dir, "list")); err != nil {
		t.Fatal(err)
	}
	next := followFile(t, filepath.Join(dir, "list"))
	if got := next(soon); got != "one" {
		t.Fatal(got)
	}
	begun := time.Now()
	version("..2", "two")
	if got := next(soon); got != "two" || time.Since(begun) > time.Second {
		t.Errorf("the next version: %q after %v", got, time.Since(begun))
	}
}
