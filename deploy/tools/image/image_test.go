package main

import (
	"archive/tar"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// built is a directory of programs, as old and as private as the machine made them.
func built(t *testing.T, when time.Time, mode os.FileMode, text string) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range programs {
		path := filepath.Join(dir, p)
		must(t, os.WriteFile(path, []byte(p+text), mode))
		must(t, os.Chtimes(path, when, when))
	}
	must(t, os.WriteFile(filepath.Join(dir, "demo"), nil, 0o755))
	return dir
}

func digest(t *testing.T, dir, arch string) string {
	t.Helper()
	image, err := build(dir, arch, labels("0.1.0", "abc"))
	must(t, err)
	d, err := image.Digest()
	must(t, err)
	return d.String()
}

func TestSameProgramsSameDigest(t *testing.T) {
	first := digest(t, built(t, time.Now(), 0o755, ""), "amd64")
	if again := digest(t, built(t, time.Now().Add(-time.Hour), 0o700, ""), "amd64"); again != first {
		t.Errorf("%s, then %s", first, again)
	}
	if other := digest(t, built(t, time.Now(), 0o755, " changed"), "amd64"); other == first {
		t.Error("other programs make the same image")
	}
	if other := digest(t, built(t, time.Now(), 0o755, ""), "arm64"); other == first {
		t.Error("another architecture makes the same image")
	}
}

func TestWhatIsWritten(t *testing.T) {
	out := t.TempDir()
	const called = "localhost/weir:1" // as written, without a registry put before it
	a, b := built(t, time.Now(), 0o755, " for amd64"), built(t, time.Now(), 0o755, " for arm64")
	for range 2 { // over what is there
		must(t, run(called, out, labels("0.1.0", "abc"), false, []string{"amd64=" + a, "arm64=" + b}))
	}
	tag, err := name.NewTag(called)
	must(t, err)
	for arch, dir := range map[string]string{"amd64": a, "arm64": b} {
		image, err := tarball.ImageFromPath(filepath.Join(out, "weir-"+arch+".tar"), &tag)
		must(t, err)
		holds(t, image, arch)
		made, err := build(dir, arch, labels("0.1.0", "abc"))
		must(t, err)
		want, err := made.ConfigName()
		must(t, err)
		if got, err := image.ConfigName(); err != nil || got != want {
			t.Errorf("%s: image %s, %v, want %s", arch, got, err, want)
		}
	}
	oci, err := layout.ImageIndexFromPath(filepath.Join(out, "oci"))
	must(t, err)
	must(t, validate.Index(oci))
	top, err := oci.IndexManifest()
	must(t, err)
	if len(top.Manifests) != 1 || top.Manifests[0].Annotations["io.containerd.image.name"] != called {
		t.Fatalf("%+v", top.Manifests)
	}
	platforms(t, oci, top.Manifests[0].Digest)
}

func platforms(t *testing.T, in v1.ImageIndex, digest v1.Hash) {
	t.Helper()
	x, err := in.ImageIndex(digest)
	must(t, err)
	m, err := x.IndexManifest()
	must(t, err)
	var got []string
	for _, d := range m.Manifests {
		got = append(got, d.Platform.String())
		image, err := x.Image(d.Digest)
		must(t, err)
		holds(t, image, d.Platform.Architecture)
	}
	if !slices.Equal(got, []string{"linux/amd64", "linux/arm64"}) {
		t.Errorf("platforms %v", got)
	}
}

// holds looks at what a container would see.
func holds(t *testing.T, image v1.Image, arch string) {
	t.Helper()
	c, err := image.ConfigFile()
	must(t, err)
	for key, want := range map[string]string{"version": "0.1.0", "revision": "abc", "title": "weir"} {
		if got := c.Config.Labels["org.opencontainers.image."+key]; got != want {
			t.Errorf("%s: label %s is %q, want %q", arch, key, got, want)
		}
	}
	if c.OS != "linux" || c.Architecture != arch || !c.Created.Equal(epoch) || c.Config.Env[0] != "PATH=/usr/local/bin" || c.Config.Entrypoint[0] != "/usr/local/bin/weir-agent" {
		t.Errorf("%s: %+v", arch, c)
	}
	layers, err := image.Layers()
	must(t, err)
	if len(layers) != 1 {
		t.Fatalf("%d layers", len(layers))
	}
	content, err := layers[0].Uncompressed()
	must(t, err)
	defer content.Close()
	var got []string
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		if h.Mode != 0o755 || h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(epoch) {
			t.Errorf("%+v", h)
		}
		if h.Typeflag == tar.TypeReg {
			text, err := io.ReadAll(r)
			must(t, err)
			got = append(got, h.Name)
			if want := filepath.Base(h.Name) + " for " + arch; string(text) != want {
				t.Errorf("%s holds %q, want %q", h.Name, text, want)
			}
		}
	}
	if want := "usr/local/bin/weir usr/local/bin/weir-agent usr/local/bin/weir-cni usr/local/bin/host-local usr/local/bin/portmap"; strings.Join(got, " ") != want {
		t.Errorf("files %v", got)
	}
}

func TestPush(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	called := strings.TrimPrefix(server.URL, "http://") + "/weir:1"
	must(t, run(called, t.TempDir(), labels("0.1.0", "abc"), true, []string{"amd64=" + built(t, time.Now(), 0o755, " for amd64")}))
	tag, err := name.NewTag(called)
	must(t, err)
	image, err := remote.Image(tag, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"}))
	must(t, err)
	holds(t, image, "amd64")
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		tag  string
		args []string
		want string
	}{
		{"not a tag", []string{"amd64=x"}, "-tag"},
		{"weir:1", nil, "no programs"},
		{"weir:1", []string{"amd64"}, `"amd64" is no ARCH=DIR`},
		{"weir:1", []string{"amd64=/none"}, "/none/weir: no such file"},
	} {
		if err := run(c.tag, t.TempDir(), nil, false, c.args); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.args, err, c.want)
		}
	}
}

// The Dockerfile makes the same image for those who have Docker.
func TestDockerfileAgrees(t *testing.T) {
	text, err := os.ReadFile("../../Dockerfile")
	must(t, err)
	file := string(text)
	for _, want := range append([]string{"FROM scratch", "/" + binDir + "/", "ENTRYPOINT [\"/" + binDir + "/weir-agent\"]", "ENV PATH=/" + binDir}, programs...) {
		if !strings.Contains(file, want) {
			t.Errorf("it has no %q", want)
		}
	}
}
