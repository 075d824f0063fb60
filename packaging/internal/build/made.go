package build

import (
	"fmt"
	"path/filepath"
)

// Shown is a file of what was made, as it is called where make was: in root.
func Shown(root, out, name string) string {
	file := filepath.Join(out, name)
	if inside, err := filepath.Rel(root, file); err == nil && filepath.IsLocal(inside) {
		return inside
	}
	return file
}

// Size is a number of bytes, for people.
func Size(n int) string {
	if n < 100_000 {
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}
