// Image packs Weir's programs into a container image, without a container engine: the same
// programs make the same digest, wherever and whenever.
//
//	image -tag localhost/weir:0.1.0 -out bin/image amd64=DIR arm64=DIR
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func main() {
	tag := flag.String("tag", "localhost/weir:dev", "what the image is called")
	version := flag.String("version", "", "of the programs, for the image's labels")
	revision := flag.String("revision", "", "of the sources, likewise")
	out := flag.String("out", "bin/image", "where it is written")
	push := flag.Bool("push", false, "push it to the registry that -tag names, too (credentials as docker login leaves them)")
	flag.Parse()
	if err := run(*tag, *out, labels(*version, *revision), *push, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(called, out string, labels map[string]string, push bool, args []string) error {
	tag, err := name.NewTag(called)
	if err != nil {
		return fmt.Errorf("-tag: %w", err)
	}
	if len(args) == 0 {
		return fmt.Errorf("no programs: give ARCH=DIR, as amd64=bin/amd64")
	}
	var archs []string
	var images []v1.Image
	for _, a := range args {
		arch, dir, ok := strings.Cut(a, "=")
		if !ok {
			return fmt.Errorf("%q is no ARCH=DIR", a)
		}
		image, err := build(dir, arch, labels)
		if err != nil {
			return err
		}
		digest, err := image.Digest()
		if err != nil {
			return fmt.Errorf("digest: %w", err)
		}
		fmt.Printf("%s linux/%s %s\n", tag, arch, digest)
		archs, images = append(archs, arch), append(images, image)
	}
	if err := write(out, tag, archs, images); err != nil {
		return err
	}
	if !push {
		return nil
	}
	if err := remote.WriteIndex(tag, index(archs, images), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return fmt.Errorf("push %s: %w", tag, err)
	}
	return nil
}
