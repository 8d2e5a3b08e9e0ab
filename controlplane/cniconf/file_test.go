package cniconf

import (
	"bytes"
	"context"
	"encoding/json"
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

// An agent that is upgraded finds what an older one wrote, without portmap: it becomes this
// one's; and the way back is the same.
func TestAnOlderFileIsReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "05-weir.conflist")
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}
	older := `{"cniVersion":"1.1.0","name":"weir","plugins":[{"type":"weir-cni","stateDir":"/run/weir","bpffsDir":"/sys/fs/bpf/weir","ipam":{"type":"host-local","ranges":[[{"subnet":"10.0.1.0/24"}]]}}]}`
	if err := os.WriteFile(path, []byte(older), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ hostPorts, want string }{
		{"nftables", "weir-cni portmap"}, {"iptables", "weir-cni portmap"}, {"none", "weir-cni"}, {"nftables", "weir-cni portmap"},
	} {
		f := &File{Path: path, StateDir: "/run/weir", BPFFSDir: "/sys/fs/bpf/weir", HostPorts: c.hostPorts, Log: slog.New(slog.DiscardHandler)}
		f.Want(cidrs)
		list, err := libcni.NetworkConfFromFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var types []string
		for _, p := range list.Plugins {
			types = append(types, p.Network.Type)
			if p.Network.Type == "portmap" && (!p.Network.Capabilities["portMappings"] || !bytes.Contains(p.Bytes, []byte(`"backend":"`+c.hostPorts+`"`))) {
				t.Errorf("%s: %s", c.hostPorts, p.Bytes)
			}
		}
		if got := strings.Join(types, " "); got != c.want || list.Name != "weir" {
			t.Errorf("%s: network %s of %s, want %s", c.hostPorts, list.Name, got, c.want)
		}
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

// Chained: the other's list, whole, and weir-cni behind it; what changes there is followed.
func TestFileFollowsAnothersNetwork(t *testing.T) {
	dir := t.TempDir()
	f := &File{Path: filepath.Join(dir, "05-weir.conflist"), StateDir: "/run/weir", BPFFSDir: "/sys/fs/bpf/weir", Chain: "cbr0", Log: slog.New(slog.DiscardHandler)}
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string) {
		t.Helper()
		if _, err := f.Chained(); err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "cbr0") {
			t.Errorf("error %v, want one that says %q", err, what)
		}
	}
	put("09-other.conflist", `{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"bridge"}]}`)
	put("10-half.conflist", `{"cniVersion":"1.0.0","na`)
	put("10-notes.txt", `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"bridge"}]}`)
	refused("there are other in 09-other.conflist")
	put("10-flannel.conflist", `{"cniVersion":"1.0.0","name":"cbr0"}`)
	refused("no list of plugins")
	put("10-flannel.conflist", `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"flannel"},{"type":"weir-cni"}]}`)
	refused("weir-cni already")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, mtu := range []string{"1400", "1450"} {
		put("10-flannel.conflist", `{"cniVersion":"1.0.0","name":"cbr0","disableCheck":true,"plugins":[{"type":"flannel","delegate":{"mtu":`+mtu+`}},{"type":"portmap"}]}`)
		f.Follow(ctx)
		list, err := libcni.NetworkConfFromFile(f.Path)
		if err != nil || list.Name != "cbr0" || len(list.Plugins) != 3 || !list.DisableCheck || list.CNIVersion != "1.0.0" {
			t.Fatalf("%+v, %v", list, err)
		}
		last := list.Plugins[2]
		if last.Network.Type != "weir-cni" || last.Network.IPAM.Type != "" || !bytes.Contains(last.Bytes, []byte("/run/weir")) {
			t.Errorf("%s", last.Bytes)
		}
		if !bytes.Contains(list.Plugins[0].Bytes, []byte(mtu)) || list.Plugins[1].Network.Type != "portmap" {
			t.Errorf("%s, %s", list.Plugins[0].Bytes, list.Plugins[1].Bytes)
		}
	}
	f.Path = filepath.Join(dir, "99-weir.conflist")
	refused("sorts before")
}

// A network of a single plugin, not a list: it becomes the list that the runtime would make
// of it. Of two files of one name the runtime's first counts.
func TestFileFollowsASinglePlugin(t *testing.T) {
	for _, name := range []string{"10-single.conf", "10-single.json"} {
		dir := t.TempDir()
		f := &File{Path: filepath.Join(dir, "05-weir.conflist"), StateDir: "/run/weir", BPFFSDir: "/sys/fs/bpf/weir", Chain: "cbr0", Log: slog.New(slog.DiscardHandler)}
		single := filepath.Join(dir, name)
		for path, text := range map[string]string{
			single:                                  `{"cniVersion":"0.3.1","name":"cbr0","type":"bridge","bridge":"cni0","ipam":{"type":"host-local","subnet":"10.0.0.0/24"}}`,
			filepath.Join(dir, "20-later.conflist"): `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"ptp"}]}`,
		} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		f.Follow(ctx)
		if why := f.Unready(); len(why) > 0 {
			t.Fatal(why)
		}
		list, err := libcni.NetworkConfFromFile(f.Path)
		if err != nil || list.Name != "cbr0" || list.CNIVersion != "0.3.1" || len(list.Plugins) != 2 {
			t.Fatalf("%+v, %v", list, err)
		}
		//lint:ignore SA1019 what runtimes read such files with
		one, err := libcni.ConfFromFile(single)
		if err != nil {
			t.Fatal(err)
		}
		//lint:ignore SA1019 likewise
		want, err := libcni.ConfListFromConf(one)
		if err != nil {
			t.Fatal(err)
		}
		first := list.Plugins[0]
		if first.Network.Type != "bridge" || first.Network.IPAM.Type != "host-local" || compact(t, first.Bytes) != compact(t, want.Plugins[0].Bytes) {
			t.Errorf("the first plugin is\n%s, of the runtime\n%s", first.Bytes, want.Plugins[0].Bytes)
		}
		if list.Plugins[1].Network.Type != "weir-cni" {
			t.Errorf("%s", list.Plugins[1].Bytes)
		}
	}
}

func compact(t *testing.T, text []byte) string {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal(text, &object); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// As long as the file does not say what it should, the agent is not ready, and says why.
func TestUnready(t *testing.T) {
	dir := t.TempDir()
	f := &File{Path: filepath.Join(dir, "05-weir.conflist"), Log: slog.New(slog.DiscardHandler)}
	wants := func(what string) {
		t.Helper()
		got := strings.Join(f.Unready(), "; ")
		if what == "" && got != "" || !strings.Contains(got, what) {
			t.Errorf("unready: %q, want %q", got, what)
		}
	}
	wants("not enforced yet")
	f.Want(nil)
	wants("no spec.podCIDRs")
	f.Want([]netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")})
	wants("")
	f.Chain = "cbr0"
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f.Follow(ctx)
	wants("pods that start without it are not judged: chain to network cbr0")
}

// A file that the runtime takes instead of ours is told of, once in the log; others are not.
func TestEarlierFilesAreToldOf(t *testing.T) {
	dir := t.TempDir()
	var log bytes.Buffer
	f := &File{Path: filepath.Join(dir, "05-weir.conflist"), Log: slog.New(slog.NewTextHandler(&log, nil))}
	want := func() { f.Want([]netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}) }
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"10-other.conflist": `{"name": "other"}`, "01-readme.txt": "x", ".00-new.conf.tmp": "x",
		"00-multus.conf": `{"type": "multus", "delegates": [{"plugins": [{"type": "weir-cni"}]}]}`,
	} {
		put(name, text)
	}
	if want(); len(f.Warnings()) != 0 || strings.Contains(log.String(), "sorts before") {
		t.Errorf("warnings %q\n%s", f.Warnings(), &log)
	}
	put("04-other.conf", `{"name": "other", "type": "bridge"}`)
	want()
	want()
	if got := f.Warnings(); len(got) != 1 || !strings.HasPrefix(got[0], dir+"/04-other.conf: sorts before 05-weir.conflist") || strings.Count(log.String(), "level=WARN") != 1 {
		t.Errorf("warnings %q\n%s", got, &log)
	}
	if f.Chain = "other"; len(f.Warnings()) != 0 {
		t.Error("chained: that the other's file is first is said when it is looked for")
	}
	if f = nil; len(f.Warnings()) != 0 {
		t.Error("no file")
	}
}
