package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// programs of the image, and where they are in it. The Dockerfile says the same.
var programs = []string{"weir", "weir-agent", "weir-cni", "host-local", "portmap"}

const binDir = "usr/local/bin"

// epoch is when everything in the image was made: what it holds is all that tells two apart.
var epoch = time.Unix(0, 0).UTC()

// labels of an image; what is not known is left out.
func labels(version, revision string) map[string]string {
	l := map[string]string{"title": "weir", "licenses": "Apache-2.0", "version": version, "revision": revision}
	out := map[string]string{}
	for key, value := range l {
		if value != "" {
			out["org.opencontainers.image."+key] = value
		}
	}
	return out
}

// build makes an image for linux/arch of the programs in dir.
func build(dir, arch string, labels map[string]string) (v1.Image, error) {
	content, err := files(dir)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.Append(base, mutate.Addendum{
		Layer: layer, MediaType: types.OCILayer,
		History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "make image"},
	})
	if err != nil {
		return nil, fmt.Errorf("add layer: %w", err)
	}
	return mutate.ConfigFile(image, config(image, arch, labels))
}

func config(image v1.Image, arch string, labels map[string]string) *v1.ConfigFile {
	c, err := image.ConfigFile()
	if err != nil { // of what was just made in memory
		panic(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Created = "linux", arch, v1.Time{Time: epoch}
	c.Config.Env = []string{"PATH=/" + binDir}
	c.Config.Entrypoint = []string{"/" + binDir + "/weir-agent"}
	c.Config.WorkingDir = "/"
	c.Config.Labels = labels
	return c
}

// files is the image's one layer, uncompressed.
func files(dir string) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	var errs []error
	for at, parts := "", []string{"usr", "local", "bin"}; len(parts) > 0; parts = parts[1:] {
		at = path.Join(at, parts[0])
		errs = append(errs, w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: at + "/", Mode: 0o755, ModTime: epoch}))
	}
	for _, p := range programs {
		text, err := os.ReadFile(filepath.Join(dir, p))
		if err != nil {
			return nil, fmt.Errorf("a program of the image: %w", err)
		}
		errs = append(errs, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(binDir, p), Mode: 0o755, Size: int64(len(text)), ModTime: epoch}))
		_, err = w.Write(text)
		errs = append(errs, err)
	}
	if err := errors.Join(append(errs, w.Close())...); err != nil {
		return nil, fmt.Errorf("pack layer: %w", err)
	}
	return out.Bytes(), nil
}

// index joins the images of architectures, in this order.
func index(archs []string, images []v1.Image) v1.ImageIndex {
	x := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for i, image := range images {
		x = mutate.AppendManifests(x, mutate.IndexAddendum{
			Add:        image,
			Descriptor: v1.Descriptor{MediaType: types.OCIManifestSchema1, Platform: &v1.Platform{OS: "linux", Architecture: archs[i]}},
		})
	}
	return x
}

// write puts an OCI layout into out/oci and, for each architecture, a docker-archive
// out/weir-ARCH.tar, which `ctr images import` and `docker load` take.
func write(out string, tag name.Tag, archs []string, images []v1.Image) error {
	oci := filepath.Join(out, "oci")
	if err := os.RemoveAll(oci); err != nil {
		return fmt.Errorf("remove the layout of before: %w", err)
	}
	l, err := layout.Write(oci, empty.Index)
	if err == nil {
		err = l.AppendIndex(index(archs, images), layout.WithAnnotations(map[string]string{
			"org.opencontainers.image.ref.name": tag.TagStr(), "io.containerd.image.name": tag.String(),
		}))
	}
	if err != nil {
		return fmt.Errorf("write OCI layout: %w", err)
	}
	for i, arch := range archs {
		if err := tarball.WriteToFile(filepath.Join(out, "weir-"+arch+".tar"), tag, images[i]); err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
	}
	return nil
}
