package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/ulikunitz/xz"

	"e13.dev/gatehouse/packaging/internal/archive"
)

// members reads the parts of a Debian package: an ar archive, deb(5).
func members(deb []byte) (map[string][]byte, error) {
	rest, ok := bytes.CutPrefix(deb, []byte("!<arch>\n"))
	if !ok {
		return nil, errors.New("it is no Debian package")
	}
	const header = 60
	found := map[string][]byte{}
	for len(rest) >= header {
		name := strings.TrimRight(string(rest[:16]), " /")
		size, err := strconv.Atoi(strings.TrimSpace(string(rest[48:58])))
		if err != nil || size < 0 || header+size > len(rest) {
			return nil, fmt.Errorf("its member %q has no good size", name)
		}
		found[name] = rest[header : header+size]
		rest = rest[min(len(rest), header+size+size%2):]
	}
	return found, nil
}

// unpacked returns a part (data or control) of a package, as files by path.
func unpacked(deb []byte, part string) (map[string]archive.File, error) {
	parts, err := members(deb)
	if err != nil {
		return nil, err
	}
	var plain io.Reader
	if data, ok := parts[part+".tar.xz"]; ok {
		plain, err = xz.NewReader(bytes.NewReader(data))
	} else if data, ok := parts[part+".tar.gz"]; ok {
		plain, err = gzip.NewReader(bytes.NewReader(data))
	} else {
		err = fmt.Errorf("it has no %s.tar.xz or .gz", part)
	}
	if err != nil {
		return nil, err
	}
	files := map[string]archive.File{}
	for r := tar.NewReader(plain); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "./"))
		switch h.Typeflag {
		case tar.TypeReg:
			data, err := io.ReadAll(r)
			if err != nil {
				return nil, err
			}
			files[name] = archive.File{Path: name, Mode: h.Mode & 0o777, Data: data}
		case tar.TypeSymlink:
			files[name] = archive.File{Path: name, Link: h.Linkname}
		case tar.TypeLink:
			f, ok := files[path.Clean(strings.TrimPrefix(h.Linkname, "./"))]
			if !ok {
				return nil, fmt.Errorf("%s is a link to what is not there", name)
			}
			f.Path = name
			files[name] = f
		}
	}
}
