// Package sbom says what a program is made of: every module that is linked into
// it, with its version and licence, as CycloneDX. It is read from the program
// itself, so that nothing can be in one and not in the other.
//
//	made, err := sbom.Read(ctx, program, "/src/gatehouse")
//	json, err := made.JSON(about)
package sbom

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// Module is one module that is linked in.
type Module struct {
	Path, Version string
	Sum           string // as in go.sum
	Licence       string // SPDX
	Texts         []Text // the licence, and what has to go with it
}

// Text is a file of a module that has to be passed on.
type Text struct{ Name, Text string }

// Parts is what a program is made of.
type Parts struct {
	Go      string // go1.26.8
	SHA256  string // of the program
	Modules []Module
}

// About is what a bill says of the program itself.
type About struct {
	Version, Commit, Architecture string
	Time                          time.Time
}

// Read reads what the program, built from the source in root, is made of. The
// licences are in Go's module cache, which the build has filled.
func Read(ctx context.Context, program []byte, root string) (Parts, error) {
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		return Parts{}, fmt.Errorf("sbom: read the program: %w", err)
	}
	sum := sha256.Sum256(program)
	parts := Parts{Go: info.GoVersion, SHA256: hex.EncodeToString(sum[:])}
	args := []string{"list", "-mod=readonly", "-m", "-json=Path,Dir"}
	for _, m := range info.Deps {
		if m.Replace != nil {
			return Parts{}, fmt.Errorf("sbom: %s is replaced by %s, which nobody could look up", m.Path, m.Replace.Path)
		}
		parts.Modules = append(parts.Modules, Module{Path: m.Path, Version: m.Version, Sum: m.Sum})
		args = append(args, m.Path)
	}
	list := exec.CommandContext(ctx, "go", args...)
	list.Dir, list.Stderr = root, os.Stderr
	out, err := list.Output()
	if err != nil {
		return Parts{}, fmt.Errorf("sbom: where are the modules: %w", err)
	}
	dirs := map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var m struct{ Path, Dir string }
		if err := d.Decode(&m); err != nil {
			return Parts{}, err
		}
		dirs[m.Path] = m.Dir
	}
	for i := range parts.Modules {
		m := &parts.Modules[i]
		if m.Texts, err = texts(dirs[m.Path]); err != nil {
			return Parts{}, fmt.Errorf("sbom: %s: %w", m.Path, err)
		}
		if m.Licence, err = licence(m.Texts); err != nil {
			return Parts{}, fmt.Errorf("sbom: %s@%s: %w", m.Path, m.Version, err)
		}
	}
	goRoot := exec.CommandContext(ctx, "go", "env", "GOROOT")
	goRoot.Dir = root // whose go.mod may ask for another Go
	dir, err := goRoot.Output()
	if err != nil {
		return Parts{}, fmt.Errorf("sbom: where is Go: %w", err)
	}
	std := Module{Path: "std", Version: strings.TrimPrefix(info.GoVersion, "go")}
	if std.Texts, err = texts(strings.TrimSpace(string(dir))); err != nil {
		return Parts{}, fmt.Errorf("sbom: Go's own: %w", err)
	}
	if std.Licence, err = licence(std.Texts); err != nil {
		return Parts{}, fmt.Errorf("sbom: Go's own: %w", err)
	}
	parts.Modules = append(parts.Modules, std)
	return parts, nil
}

var passedOn = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|copyright|patents)([.-].*)?$`)

func texts(dir string) ([]Text, error) {
	if dir == "" {
		return nil, fmt.Errorf("it is not in the module cache: go mod download")
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []Text
	for _, name := range names {
		if name.Type().IsRegular() && passedOn.MatchString(name.Name()) && !strings.HasSuffix(name.Name(), ".go") {
			text, err := os.ReadFile(filepath.Join(dir, name.Name()))
			if err != nil {
				return nil, err
			}
			found = append(found, Text{name.Name(), string(text)})
		}
	}
	return found, nil
}

// known are phrases that only the named licence has, in order: those of more
// words come before those that they contain. All have to be there.
var known = []struct {
	licence string
	phrases []string
}{
	{"Apache-2.0", []string{"apache license", "version 2.0, january 2004"}},
	{"MPL-2.0", []string{"mozilla public license", "version 2.0"}},
	{"ISC", []string{"permission to use, copy, modify, and", "distribute this software for any purpose with or without fee is hereby granted"}},
	{"BSD-3-Clause", []string{"redistribution and use in source and binary forms", "used to endorse or promote products"}},
	{"BSD-2-Clause", []string{"redistribution and use in source and binary forms", "redistributions in binary form must reproduce"}},
	{"MIT", []string{"permission is hereby granted, free of charge", "the software is provided \"as is\""}},
}

// licence names the licences of the texts, joined by AND if they are several. A
// text that is not understood is an error, for somebody to read it.
func licence(texts []Text) (string, error) {
	var found []string
	for _, t := range texts {
		name := strings.ToLower(t.Name)
		if strings.HasPrefix(name, "notice") || strings.HasPrefix(name, "patents") || strings.HasPrefix(name, "copyright") {
			continue
		}
		text := strings.Join(strings.Fields(strings.ToLower(t.Text)), " ")
		before := len(found)
		for _, l := range known {
			if !slices.ContainsFunc(l.phrases, func(p string) bool { return !strings.Contains(text, p) }) &&
				(l.licence != "BSD-2-Clause" || !slices.Contains(found, "BSD-3-Clause")) && !slices.Contains(found, l.licence) {
				found = append(found, l.licence)
			}
		}
		if len(found) == before && before == 0 {
			return "", fmt.Errorf("the licence in %s is none that is known here; read it, and if it will do, teach packaging/internal/sbom its words", t.Name)
		}
	}
	if len(found) == 0 {
		return "", fmt.Errorf("it has no licence that could be read")
	}
	slices.Sort(found)
	return strings.Join(found, " AND "), nil
}

// Licences is the text of all of them, for people, as it has to be passed on.
func (p Parts) Licences() []byte {
	var b bytes.Buffer
	b.WriteString("gatehouse contains these modules, each under its own licence.\n")
	for _, m := range p.Modules {
		fmt.Fprintf(&b, "\n%s\n%s %s (%s)\n", strings.Repeat("=", 80), m.Path, m.Version, m.Licence)
		for _, t := range m.Texts {
			fmt.Fprintf(&b, "%s\n%s:\n\n%s\n", strings.Repeat("-", 80), t.Name, strings.TrimRight(t.Text, "\n"))
		}
	}
	return b.Bytes()
}

// JSON is the bill of materials. Equal programs have equal bills.
func (p Parts) JSON(about About) ([]byte, error) {
	bom := cdx.NewBOM()
	// A name for these bytes: RFC 9562, version 8.
	id := []byte(p.SHA256[:32])
	id[12], id[16] = '8', 'a'
	bom.SerialNumber = fmt.Sprintf("urn:uuid:%s-%s-%s-%s-%s", id[:8], id[8:12], id[12:16], id[16:20], id[20:])
	self := cdx.Component{
		BOMRef: "gatehouse", Type: cdx.ComponentTypeApplication, Name: "gatehouse", Version: about.Version,
		PackageURL: "pkg:golang/e13.dev/gatehouse@" + about.Version,
		Licenses:   &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}},
		Hashes:     &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: p.SHA256}},
		Properties: &[]cdx.Property{
			{Name: "gatehouse:architecture", Value: about.Architecture},
			{Name: "gatehouse:commit", Value: about.Commit},
			{Name: "gatehouse:go", Value: p.Go},
		},
	}
	bom.Metadata = &cdx.Metadata{Timestamp: about.Time.UTC().Format(time.RFC3339), Component: &self}
	var components []cdx.Component
	var refs []string
	for _, m := range p.Modules {
		c := cdx.Component{
			BOMRef: m.Path, Type: cdx.ComponentTypeLibrary, Name: m.Path, Version: m.Version, Scope: cdx.ScopeRequired,
			PackageURL: "pkg:golang/" + m.Path + "@" + m.Version,
			Licenses:   licences(m.Licence),
		}
		if m.Sum != "" {
			c.Properties = &[]cdx.Property{{Name: "gatehouse:go.sum", Value: m.Sum}}
		}
		components = append(components, c)
		refs = append(refs, m.Path)
	}
	bom.Components, bom.Dependencies = &components, &[]cdx.Dependency{{Ref: "gatehouse", Dependencies: &refs}}
	var b bytes.Buffer
	err := cdx.NewBOMEncoder(&b, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom)
	return b.Bytes(), err
}

func licences(spdx string) *cdx.Licenses {
	if strings.Contains(spdx, " ") {
		return &cdx.Licenses{{Expression: spdx}}
	}
	return &cdx.Licenses{{License: &cdx.License{ID: spdx}}}
}
