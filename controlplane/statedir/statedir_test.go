package statedir

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestOneHolder(t *testing.T) {
	path := t.TempDir() + "/state"
	d := open(t, path)
	_, err := Open(path)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("pid %d)", os.Getpid())) || !strings.Contains(err.Error(), path) {
		t.Fatalf("second Open: %v, want pid and directory", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

func TestSaveLoadList(t *testing.T) {
	d := open(t, t.TempDir()+"/state")
	var got []int
	if ok, err := d.Load("a/1.json", &got); ok || err != nil {
		t.Fatalf("load of nothing: %v, %v", ok, err)
	}
	if err := d.Save("a/1.json", []int{1, 2}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.Path("a", ".new-123"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	files, err := d.List("a")
	if err != nil || len(files) != 1 || files[0] != "a/1.json" {
		t.Fatalf("list: %v, %v", files, err)
	}
	if ok, err := d.Load(files[0], &got); !ok || err != nil || len(got) != 2 {
		t.Fatalf("load: %v, %v, %v", got, ok, err)
	}
	if st, _ := os.Stat(d.Path("a", "1.json")); st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v", st.Mode())
	}
	if err := d.Remove("a/1.json"); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove("a/1.json"); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedFileIsAnError(t *testing.T) {
	d := open(t, t.TempDir())
	if err := os.WriteFile(d.Path("x.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got map[string]int
	if _, err := d.Load("x.json", &got); err == nil || !strings.Contains(err.Error(), "x.json") {
		t.Fatalf("got %v", err)
	}
}
