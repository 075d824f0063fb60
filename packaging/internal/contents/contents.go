// Package contents says which file goes where: in a Debian package, in an
// archive for everybody else, and in an image.
package contents

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"e13.dev/gatehouse/packaging/internal/archive"
	"e13.dev/gatehouse/packaging/internal/build"
	"e13.dev/gatehouse/packaging/internal/sbom"
)

// Built is what is made of a release.
type Built struct {
	Release     build.Release
	Debian      string                // the version in names of files
	Programs    map[string][]byte     // by architecture
	Parts       map[string]sbom.Parts // by architecture
	completions map[string][]byte     // by shell
	manuals     map[string][]byte     // by file name
}

// Build compiles what the packages for some architectures are made of. It tells
// say how far it is.
func Build(ctx context.Context, release build.Release, architectures []string, say func(format string, args ...any)) (*Built, error) {
	b := &Built{Release: release, Programs: map[string][]byte{}, Parts: map[string]sbom.Parts{}}
	var err error
	if b.Debian, err = release.Debian(); err != nil {
		return nil, err
	}
	for _, architecture := range architectures {
		say("compiling gatehouse %s for %s", release.Version, architecture)
		if b.Programs[architecture], err = release.Program(ctx, architecture); err != nil {
			return nil, err
		}
		if b.Parts[architecture], err = sbom.Read(ctx, b.Programs[architecture], release.Root); err != nil {
			return nil, err
		}
	}
	program, ok := b.Programs[runtime.GOARCH]
	if !ok {
		if program, err = release.Program(ctx, runtime.GOARCH); err != nil {
			return nil, err
		}
	}
	say("asking it for completions and manual pages")
	if b.completions, err = release.Completions(ctx, program); err != nil {
		return nil, err
	}
	b.manuals, err = release.Manuals(ctx)
	return b, err
}

// Bill is the bill of materials of one architecture's program.
func (b *Built) Bill(architecture string) ([]byte, error) {
	return b.Parts[architecture].JSON(sbom.About{
		Version: b.Release.Version, Commit: b.Release.Commit, Architecture: architecture, Time: b.Release.Time,
	})
}

// deployed returns the files of deploy/ that operators need at hand, by their
// path there, without those that are somewhere else.
func (b *Built) deployed() (map[string][]byte, error) {
	root := os.DirFS(filepath.Join(b.Release.Root, "deploy"))
	files := map[string][]byte{}
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains([]string{"gatehouse.service.d", "testdata"}, entry.Name()):
			return fs.SkipDir
		case entry.IsDir() || name == "gatehouse.service" || slices.Contains([]string{".go", ".sh"}, path.Ext(name)):
			return nil
		}
		files[name], err = fs.ReadFile(root, name)
		return err
	})
	for _, name := range []string{"net-admin.conf", "links.conf"} {
		if err == nil {
			files[name], err = fs.ReadFile(root, "gatehouse.service.d/"+name)
		}
	}
	return files, err
}

func (b *Built) read(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(b.Release.Root, filepath.FromSlash(name)))
}

// into adds files of the source to a tree.
func (b *Built) into(tree *archive.Tree, files map[string]string) error {
	for to, from := range files {
		data, err := b.read(from)
		if err != nil {
			return err
		}
		tree.Add(to, 0o644, data)
	}
	return nil
}

// Deb is the Debian package for an architecture, and the name of its file.
func (b *Built) Deb(architecture string) (name string, deb []byte, err error) {
	const doc = "usr/share/doc/gatehouse/"
	tree := &archive.Tree{}
	tree.Add("usr/bin/gatehouse", 0o755, b.Programs[architecture])
	tree.AddDir("etc/gatehouse")
	if err := b.into(tree, map[string]string{
		"usr/lib/systemd/system/gatehouse.service": "deploy/gatehouse.service",
		"usr/lib/sysusers.d/gatehouse.conf":        "packaging/debian/sysusers.conf",
		"usr/share/lintian/overrides/gatehouse":    "packaging/debian/lintian-overrides",
		doc + "copyright":                          "packaging/debian/copyright",
		doc + "examples/gatehouse.yaml":            "packaging/gatehouse.yaml",
	}); err != nil {
		return "", nil, err
	}
	b.forShells(tree, map[string]string{
		"bash": "usr/share/bash-completion/completions/gatehouse",
		"zsh":  "usr/share/zsh/vendor-completions/_gatehouse",
		"fish": "usr/share/fish/vendor_completions.d/gatehouse.fish",
	})
	for page, text := range b.manuals {
		tree.Add("usr/share/man/man"+page[len(page)-1:]+"/"+page+".gz", 0o644, archive.Gzip(text))
	}
	deployed, err := b.deployed()
	if err != nil {
		return "", nil, err
	}
	for name, data := range deployed {
		tree.Add("usr/share/gatehouse/"+name, 0o644, data)
	}
	changes, err := b.read("CHANGELOG.md")
	if err != nil {
		return "", nil, err
	}
	bill, err := b.Bill(architecture)
	if err != nil {
		return "", nil, err
	}
	tree.Add(doc+"CHANGELOG.md.gz", 0o644, archive.Gzip(changes))
	tree.Add(doc+"changelog.gz", 0o644, archive.Gzip(b.debianChangelog()))
	tree.Add(doc+"third-party-licenses.gz", 0o644, archive.Gzip(b.Parts[architecture].Licences()))
	tree.Add(doc+"sbom.cdx.json.gz", 0o644, archive.Gzip(bill))
	control := archive.Control{Scripts: map[string]string{}}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		text, err := b.read("packaging/debian/" + script)
		if err != nil {
			return "", nil, err
		}
		control.Scripts[script] = string(text)
	}
	fields, err := b.read("packaging/debian/control")
	if err != nil {
		return "", nil, err
	}
	control.Fields = strings.NewReplacer("@VERSION@", b.Debian, "@ARCHITECTURE@", architecture).Replace(string(fields))
	deb, err = archive.Deb(control, tree, b.Release.Time)
	return fmt.Sprintf("gatehouse_%s_%s.deb", b.Debian, architecture), deb, err
}

func (b *Built) forShells(tree *archive.Tree, paths map[string]string) {
	for shell, to := range paths {
		tree.Add(to, 0o644, b.completions[shell])
	}
}

func (b *Built) debianChangelog() []byte {
	var text bytes.Buffer
	fmt.Fprintf(&text, "gatehouse (%s) unstable; urgency=medium\n\n", b.Debian)
	fmt.Fprintf(&text, "  * gatehouse %s. What is new is in CHANGELOG.md.gz.\n\n", b.Release.Version)
	fmt.Fprintf(&text, " -- The gatehouse maintainers <gatehouse@e13.dev>  %s\n", b.Release.Time.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	return text.Bytes()
}

// Tarball is the archive for machines without dpkg, and the name of its file.
func (b *Built) Tarball(architecture string) (name string, tarball []byte, err error) {
	tree := &archive.Tree{}
	tree.Add("gatehouse", 0o755, b.Programs[architecture])
	if err := b.into(tree, map[string]string{
		"gatehouse.service": "deploy/gatehouse.service",
		"sysusers.conf":     "packaging/debian/sysusers.conf",
		"gatehouse.yaml":    "packaging/gatehouse.yaml",
		"CHANGELOG.md":      "CHANGELOG.md",
		"LICENSE":           "LICENSE",
		"doc/install.md":    "docs/install.md",
	}); err != nil {
		return "", nil, err
	}
	b.forShells(tree, map[string]string{
		"bash": "completions/gatehouse.bash", "zsh": "completions/_gatehouse", "fish": "completions/gatehouse.fish",
	})
	for page, text := range b.manuals {
		tree.Add("man/"+page, 0o644, text)
	}
	deployed, err := b.deployed()
	if err != nil {
		return "", nil, err
	}
	for name, data := range deployed {
		tree.Add("deploy/"+name, 0o644, data)
	}
	bill, err := b.Bill(architecture)
	if err != nil {
		return "", nil, err
	}
	tree.Add("sbom.cdx.json", 0o644, bill)
	tree.Add("third-party-licenses", 0o644, b.Parts[architecture].Licences())
	name = fmt.Sprintf("gatehouse_%s_%s", b.Debian, architecture)
	tarball, err = tree.TarGzip(name+"/", b.Release.Time)
	return name + ".tar.gz", tarball, err
}
