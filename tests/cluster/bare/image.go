package bare

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// image is one made of static programs.
type image struct {
	tag        string
	files      map[string]string // path there -> file here; "=NAME": a symbolic link to it
	entrypoint []string
	cmd        []string
}

const busybox = "/bin/busybox" // of busybox-static

// images of a node: what kubelet needs for a pod, and what Kubernetes' tests run in pods.
func images(bin string) []image {
	agnhost := image{
		tag:        "localhost/agnhost:2.63.0", // as the suite of tests names it
		files:      map[string]string{"agnhost": filepath.Join(bin, "agnhost"), "agnhost-2": "=agnhost", "bin/busybox": busybox},
		entrypoint: []string{"/agnhost"}, cmd: []string{"pause"},
	}
	for _, name := range strings.Fields("sh cat ls ip nc wget sleep ps grep hostname nslookup ping") {
		agnhost.files["bin/"+name] = "=busybox"
	}
	return []image{
		{tag: "localhost/pause:1", files: map[string]string{"pause": filepath.Join(bin, "pause")}, entrypoint: []string{"/pause"}},
		agnhost,
	}
}

// write a file as `docker save` would.
func (i image) write(path string) error {
	tag, err := name.NewTag(i.tag)
	if err != nil {
		return err
	}
	content, err := i.layer()
	if err != nil {
		return fmt.Errorf("image %s: %w", i.tag, err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		return err
	}
	made, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	made, err = mutate.ConfigFile(made, i.config(made))
	if err != nil {
		return err
	}
	return tarball.WriteToFile(path, tag, made)
}

func (i image) config(made v1.Image) *v1.ConfigFile {
	c, err := made.ConfigFile()
	if err != nil { // of what was just made in memory
		panic(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", runtime.GOARCH
	c.Config.Env, c.Config.Entrypoint, c.Config.Cmd = []string{"PATH=/bin:/"}, i.entrypoint, i.cmd
	return c
}

func (i image) layer() ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, dir := range []string{"bin/", "tmp/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o777}); err != nil {
			return nil, err
		}
	}
	for path, from := range i.files {
		if target, ok := strings.CutPrefix(from, "="); ok {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: path, Linkname: target, Mode: 0o777}); err != nil {
				return nil, err
			}
			continue
		}
		text, err := os.ReadFile(from)
		if err != nil {
			return nil, err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: 0o755, Size: int64(len(text))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(text); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}
