// Package l4proxyfile writes the configuration file of l4proxy (v1).
package l4proxyfile

import "e13.dev/gatehouse/internal/edge"

// Render returns the file for the frontends.
func Render(frontends []edge.Frontend) []byte { return nil }

// WriteFile replaces the file at path in one step. It says whether the content was new.
func WriteFile(path string, data []byte) (changed bool, err error) { return false, nil }
