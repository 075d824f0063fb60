// Package archive writes tar and Debian archives that depend on nothing but
// what is in them: no clock, no user, no umask, no order of a directory.
//
//	var tree archive.Tree
//	tree.Add("usr/bin/gatehouse", 0o755, program)
//	deb, err := archive.Deb(control, tree, released)
package archive

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

// File is one file of a Tree, or a symbolic link if Link is not empty. Its mode
// is that of chmod, its owner root.
type File struct {
	Path string // relative, with slashes
	Mode int64
	Link string
	Data []byte
}

// Tree is a set of files. The zero Tree is empty.
type Tree struct {
	files []File
	dirs  []string
}

// Add adds a file.
func (t *Tree) Add(name string, mode int64, data []byte) {
	t.files = append(t.files, File{Path: name, Mode: mode, Data: data})
}

// AddLink adds a symbolic link.
func (t *Tree) AddLink(name, target string) {
	t.files = append(t.files, File{Path: name, Mode: 0o777, Link: target})
}

// AddDir adds a directory that may be empty. Those of files come by themselves.
func (t *Tree) AddDir(name string) { t.dirs = append(t.dirs, name) }

// Files returns the files by path.
func (t *Tree) Files() []File {
	sorted := slices.Clone(t.files)
	slices.SortFunc(sorted, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return sorted
}

// Size is how many bytes the files have.
func (t *Tree) Size() (bytes int64) {
	for _, f := range t.files {
		bytes += int64(len(f.Data))
	}
	return bytes
}

// directories returns every directory that a file is in, those above first.
func (t *Tree) directories() []string {
	seen := map[string]bool{}
	add := func(dir string) {
		for ; dir != "." && dir != "/" && !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
		}
	}
	for _, f := range t.files {
		add(path.Dir(f.Path))
	}
	for _, dir := range t.dirs {
		add(dir)
	}
	var dirs []string
	for dir := range seen {
		dirs = append(dirs, dir)
	}
	slices.Sort(dirs)
	return dirs
}

// Tar writes the tree with prefix ("./" for Debian, "gatehouse-1.0/", or
// nothing) before every path. All times are of.
func (t *Tree) Tar(w io.Writer, prefix string, of time.Time) error {
	out := tar.NewWriter(w)
	header := func(h tar.Header) error {
		h.Name, h.ModTime, h.Format = prefix+h.Name, of.Truncate(time.Second), tar.FormatGNU
		h.Uname, h.Gname = "root", "root"
		return out.WriteHeader(&h)
	}
	if strings.HasSuffix(prefix, "/") {
		if err := header(tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return err
		}
	}
	taken := map[string]bool{}
	for _, dir := range t.directories() {
		taken[dir] = true
		if err := header(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	for _, f := range t.Files() {
		if taken[f.Path] {
			return fmt.Errorf("archive: %s is there twice", f.Path)
		}
		taken[f.Path] = true
		h := tar.Header{Typeflag: tar.TypeReg, Name: f.Path, Mode: f.Mode, Size: int64(len(f.Data))}
		if f.Link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		}
		if err := header(h); err != nil {
			return err
		}
		if _, err := out.Write(f.Data); err != nil {
			return err
		}
	}
	return out.Close()
}

// Gzip compresses as well as it can, without a name or a time: for pages that
// people read, of which Debian wants that.
func Gzip(data []byte) []byte { return compress(data, gzip.BestCompression) }

func compress(data []byte, level int) []byte {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil { // of a buffer and a level that is one
		panic(err)
	}
	return b.Bytes()
}

// TarBytes is Tar into memory.
func (t *Tree) TarBytes(prefix string, of time.Time) ([]byte, error) {
	var b bytes.Buffer
	err := t.Tar(&b, prefix, of)
	return b.Bytes(), err
}

// TarGzip is TarBytes, compressed in a fraction of the time that the best takes.
func (t *Tree) TarGzip(prefix string, of time.Time) ([]byte, error) {
	plain, err := t.TarBytes(prefix, of)
	return compress(plain, gzip.DefaultCompression), err
}
