package cniconf

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

func TestFileFollowsTheRanges(t *testing.T) {
	dir := t.TempDir()
	f := &File{Path: filepath.Join(dir, "05-weir.conflist"), StateDir: "/run/weir", BPFFSDir: "/sys/fs/bpf/weir", Log: slog.New(slog.DiscardHandler)}
	f.Want(nil)
	if _, err := os.Stat(f.Path); err == nil {
		t.Fatal("it is there before the ranges are known")
	}
	for _, cidrs := range [][]netip.Prefix{
		{netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("fd00:1::/64")},
		{netip.MustParsePrefix("10.0.2.0/24")},
	} {
		f.Want(cidrs)
		list, err := libcni.NetworkConfFromFile(f.Path) // as a runtime reads it
		if err != nil || list.Name != "weir" || len(list.Plugins) != 1 || list.Plugins[0].Network.Type != "weir-cni" {
			t.Fatalf("%+v, %v", list, err)
		}
		for _, p := range cidrs {
			if !bytes.Contains(list.Plugins[0].Bytes, []byte(p.String())) {
				t.Errorf("%s is not in %s", p, list.Plugins[0].Bytes)
			}
		}
	}
	before, err := os.Stat(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	f.Want([]netip.Prefix{netip.MustParsePrefix("10.0.2.0/24")})
	if after, err := os.Stat(f.Path); err != nil || !os.SameFile(before, after) {
		t.Errorf("an unchanged file was written again (%v)", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

func TestFailureIsSaidOnce(t *testing.T) {
	var log bytes.Buffer
	f := &File{Path: filepath.Join(t.TempDir(), "none", "05-weir.conflist"), Log: slog.New(slog.NewTextHandler(&log, nil))}
	for range 3 {
		f.Want([]netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")})
	}
	if n := strings.Count(log.String(), "NotReady"); n != 1 || !strings.Contains(log.String(), f.Path) {
		t.Errorf("said %d times:\n%s", n, &log)
	}
}
