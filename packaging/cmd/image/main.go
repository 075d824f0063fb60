// Command image makes the container image, for all architectures, as an archive
// of an OCI layout. It needs no daemon, and no right but to read from a mirror.
//
//	go run ./cmd/image -root .. -out ../dist
package main

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"e13.dev/gatehouse/packaging/internal/archive"
	"e13.dev/gatehouse/packaging/internal/build"
	"e13.dev/gatehouse/packaging/internal/image"
	"e13.dev/gatehouse/packaging/internal/sbom"
)

func main() {
	root := flag.String("root", "..", "the `DIR`ectory with the source")
	out := flag.String("out", "../dist", "the `DIR`ectory to write into")
	cache := flag.String("cache", "../dist/cache", "the `DIR`ectory to keep packages of Debian in")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *root, *out, *cache); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1) //nolint:gocritic // stop only gives the signal back
	}
}

func say(format string, args ...any) { fmt.Printf("==> "+format+"\n", args...) }

func run(ctx context.Context, root, out, cache string) error {
	release, err := build.Of(ctx, root)
	if err != nil {
		return err
	}
	version, err := release.Debian()
	if err != nil {
		return err
	}
	lock, err := image.ReadLock(filepath.Join(root, "packaging", "image.lock"))
	if err != nil {
		return err
	}
	mirrors, err := image.Mirrors(ctx)
	if err != nil {
		return err
	}
	about := image.About{Version: release.Version, Commit: release.Commit, Time: release.Time}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, architecture := range build.Architectures {
		say("%s: packages of Debian", architecture)
		packages, err := lock.Fetch(ctx, architecture, cache, mirrors)
		if err != nil {
			return err
		}
		say("%s: compiling gatehouse %s", architecture, release.Version)
		ours, err := tree(ctx, release, architecture)
		if err != nil {
			return err
		}
		img, err := image.Build(architecture, lock, packages, ours, about)
		if err != nil {
			return err
		}
		config, err := img.ConfigFile()
		if err != nil {
			return err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: plain{img}, Descriptor: v1.Descriptor{Platform: config.Platform()}})
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	packed, err := pack(index, version, about)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil { //nolint:gosec // for everybody
		return err
	}
	name := "gatehouse-image_" + version + ".tar"
	if err := os.WriteFile(filepath.Join(out, name), packed, 0o644); err != nil {
		return err
	}
	sum := fmt.Sprintf("%x  %s\n", sha256.Sum256(packed), name)
	if err := os.WriteFile(filepath.Join(out, name+".sha256"), []byte(sum), 0o644); err != nil {
		return err
	}
	say("%s (%s, %s)", build.Shown(root, out, name), build.Size(len(packed)), digest)
	return nil
}

// plain is an image whose entry in an index says nothing of artifacts, which it
// is none of. Programs that do not know the field drop it as they copy, and with
// it goes the digest.
type plain struct{ v1.Image }

// ArtifactType is what go-containerregistry asks for.
func (plain) ArtifactType() (string, error) { return "", nil }

// tag is a version as the name of an image can have it.
func tag(version string) string { return strings.NewReplacer("~", "-", "+", "-").Replace(version) }

// tree is what the image has of ours.
func tree(ctx context.Context, release build.Release, architecture string) (*archive.Tree, error) {
	program, err := release.Program(ctx, architecture)
	if err != nil {
		return nil, err
	}
	parts, err := sbom.Read(ctx, program, release.Root)
	if err != nil {
		return nil, err
	}
	bill, err := parts.JSON(sbom.About{Version: release.Version, Commit: release.Commit, Architecture: architecture, Time: release.Time})
	if err != nil {
		return nil, err
	}
	license, err := os.ReadFile(filepath.Join(release.Root, "LICENSE"))
	if err != nil {
		return nil, err
	}
	t := &archive.Tree{}
	t.Add("usr/bin/gatehouse", 0o755, program)
	t.Add("usr/share/doc/gatehouse/LICENSE", 0o644, license)
	t.Add("usr/share/doc/gatehouse/sbom.cdx.json", 0o644, bill)
	t.Add("usr/share/doc/gatehouse/third-party-licenses", 0o644, parts.Licences())
	for _, dir := range []string{"etc/gatehouse", "run/gatehouse", "var/lib/gatehouse"} {
		t.AddDir(dir)
	}
	return t, nil
}

// pack writes the index as an OCI layout into an archive. Its only name is the
// version.
func pack(index v1.ImageIndex, version string, about image.About) ([]byte, error) {
	dir, err := os.MkdirTemp("", "gatehouse-image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	whole, err := layout.Write(dir, empty.Index)
	if err != nil {
		return nil, err
	}
	if err := whole.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag(version)})); err != nil {
		return nil, err
	}
	t := &archive.Tree{}
	root := os.DirFS(dir)
	if err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := fs.ReadFile(root, name)
		t.Add(name, 0o644, data)
		return err
	}); err != nil {
		return nil, err
	}
	return t.TarBytes("", about.Time)
}
