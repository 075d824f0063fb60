package image

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"e13.dev/gatehouse/packaging/internal/archive"
)

// About is what an image says of itself.
type About struct {
	Version, Commit string
	Time            time.Time
}

// Build makes the image of one architecture: a layer of Debian's files, which
// stays as it is as long as the lock does, and one of ours.
func Build(architecture string, lock Lock, packages map[string][]byte, ours *archive.Tree, about About) (v1.Image, error) {
	system, err := systemTree(architecture, lock, packages)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range []struct {
		tree *archive.Tree
		by   string
		of   time.Time
	}{
		// Of no time: the same lock is the same layer.
		{system, "nftables and what it needs, from Debian", time.Unix(0, 0)},
		{ours, "gatehouse " + about.Version, about.Time},
	} {
		packed, err := l.tree.TarGzip("", l.of)
		if err != nil {
			return nil, err
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed)), nil }, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, err
		}
		created := v1.Time{Time: about.Time}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, MediaType: types.OCILayer, History: v1.History{CreatedBy: l.by, Created: created}}); err != nil {
			return nil, err
		}
	}
	return mutate.ConfigFile(img, configOf(architecture, img, about))
}

func configOf(architecture string, img v1.Image, about About) *v1.ConfigFile {
	c, err := img.ConfigFile()
	if err != nil { // of an image that is in memory
		panic(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Created = "linux", architecture, v1.Time{Time: about.Time}
	if architecture == "arm64" {
		c.Variant = "v8"
	}
	c.Config = v1.Config{
		Entrypoint: []string{"/usr/bin/gatehouse"},
		Cmd:        []string{"run", "-c", "/etc/gatehouse/gatehouse.yaml"},
		Env:        []string{"PATH=/usr/sbin:/usr/bin"},
		// Of all its rights it needs three, and who runs it takes the others
		// away: see docs/install.md. Another user would have none of them.
		User:       "0:0",
		WorkingDir: "/",
		StopSignal: "SIGTERM",
		Labels: map[string]string{
			"org.opencontainers.image.title":       "gatehouse",
			"org.opencontainers.image.description": "The front door of a bare-metal Kubernetes cluster",
			"org.opencontainers.image.version":     about.Version,
			"org.opencontainers.image.revision":    about.Commit,
			"org.opencontainers.image.created":     about.Time.Format(time.RFC3339),
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.url":         "https://e13.dev/gatehouse",
		},
	}
	return c
}

// wanted are the files of Debian's packages that nft runs with, and what says
// whose they are. Everything is below /usr.
var wanted = regexp.MustCompile(`^(usr/sbin/nft|usr/lib/[a-z0-9_]+-linux-gnu/[^/]+\.so[.0-9]*|usr/lib(64)?/ld-linux[^/]*|usr/share/doc/[^/]+/copyright|etc/protocols|etc/services)$`)

// unwanted are libraries of wanted packages that nothing here uses.
var unwanted = regexp.MustCompile(`/(libnss_(compat|hesiod)|libthread_db|libmemusage|libpcprofile|libBrokenLocale|libnsl|libc_malloc_debug|libutil|librt|libanl|libpthread)[.-]`)

func systemTree(architecture string, lock Lock, packages map[string][]byte) (*archive.Tree, error) {
	tree := &archive.Tree{}
	// Debian's directories, as they are since they were merged.
	for _, dir := range []string{"bin", "lib", "sbin"} {
		tree.AddLink(dir, "usr/"+dir)
	}
	if architecture == "amd64" {
		tree.AddLink("lib64", "usr/lib64")
	}
	tree.AddDir("tmp")
	tree.AddDir("proc")
	tree.AddDir("sys")
	tree.AddDir("dev")
	var authorities bytes.Buffer
	for _, p := range lock {
		deb, ok := packages[p.Name]
		if p.Architecture != architecture || !ok {
			continue
		}
		files, err := unpacked(deb, "data")
		if err != nil {
			return nil, fmt.Errorf("image: %s: %w", p.Name, err)
		}
		for _, name := range slices.Sorted(maps.Keys(files)) {
			f := files[name]
			if strings.HasPrefix(name, "usr/share/ca-certificates/mozilla/") {
				authorities.Write(bytes.TrimSpace(f.Data))
				authorities.WriteByte('\n')
			}
			if f.Path = merged(name); !wanted.MatchString(f.Path) || unwanted.MatchString(f.Path) {
				continue
			}
			if f.Link != "" {
				// The loader's is to /lib, and that is a link itself.
				if path.IsAbs(f.Link) {
					f.Link = "/" + merged(strings.TrimPrefix(f.Link, "/"))
				}
				tree.AddLink(f.Path, f.Link)
				continue
			}
			tree.Add(f.Path, f.Mode, f.Data)
		}
		// Scanners look here for what an image without dpkg is made of.
		about, err := unpacked(deb, "control")
		if err != nil {
			return nil, fmt.Errorf("image: %s: %w", p.Name, err)
		}
		tree.Add("var/lib/dpkg/status.d/"+p.Name, 0o644, about["control"].Data)
	}
	tree.Add("etc/ssl/certs/ca-certificates.crt", 0o644, authorities.Bytes())
	tree.Add("etc/passwd", 0o644, []byte("root:x:0:0:root:/:/nonexistent\nnobody:x:65534:65534:nobody:/nonexistent:/nonexistent\n"))
	tree.Add("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	tree.Add("etc/nsswitch.conf", 0o644, []byte("hosts: files dns\n"))
	return tree, nil
}

// merged is where a file is since /bin, /sbin and /lib are links into /usr.
func merged(name string) string {
	for _, dir := range []string{"bin/", "sbin/", "lib/", "lib64/"} {
		if strings.HasPrefix(name, dir) {
			return "usr/" + name
		}
	}
	return name
}
