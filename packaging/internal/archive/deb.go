package archive

import (
	"bytes"
	"crypto/md5" //nolint:gosec // what dpkg compares with; it protects against accidents only
	"fmt"
	"strings"
	"time"
)

// Control is what a Debian package says of itself.
type Control struct {
	Fields  string            // the file control, without Installed-Size and the last line's end
	Scripts map[string]string // postinst, prerm, ...
}

// Deb returns a package of Debian's format 2.0 (deb(5)). All times in it are of.
func Deb(control Control, tree *Tree, of time.Time) ([]byte, error) {
	data, err := tree.TarGzip("./", of)
	if err != nil {
		return nil, err
	}
	var about Tree
	// In KiB, each file in whole ones, and one for each directory: what dpkg-gencontrol counts.
	size := len(tree.directories())
	var sums strings.Builder
	for _, f := range tree.Files() {
		if f.Link != "" {
			size++
			continue
		}
		size += (len(f.Data) + 1023) / 1024
		fmt.Fprintf(&sums, "%x  %s\n", md5.Sum(f.Data), f.Path) //nolint:gosec // see above
	}
	before, description, ok := strings.Cut(control.Fields, "Description:")
	if !ok {
		return nil, fmt.Errorf("archive: a package needs a Description")
	}
	about.Add("control", 0o644, fmt.Appendf(nil, "%sInstalled-Size: %d\nDescription:%s\n", before, size, strings.TrimRight(description, "\n")))
	about.Add("md5sums", 0o644, []byte(sums.String()))
	for name, script := range control.Scripts {
		about.Add(name, 0o755, []byte(script))
	}
	meta, err := about.TarGzip("./", of)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, member := range []struct {
		name string
		data []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar.gz", meta}, {"data.tar.gz", data}} {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8o%-10d`\n", member.name, of.Unix(), 0, 0, 0o100644, len(member.data))
		b.Write(member.data)
		if len(member.data)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes(), nil
}
