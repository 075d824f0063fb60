package config

import _ "embed"

// Reference is a file that has every field, each with a comment. It parses.
//
//go:embed reference.yaml
var Reference []byte
