package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"e13.dev/gatehouse/internal/edge"
)

const bom = "\ufeff"

// root turns a file into the node of its only document. It returns nil after
// reporting why there is none.
func (f *file) root(data []byte) *yaml.Node {
	start := edge.Pos{File: f.name, Line: 1, Col: 1}
	if len(data) > MaxFileSize {
		f.problem(start, "", fmt.Sprintf("the file has %d bytes", len(data)), fmt.Sprintf("the limit is %d (1 MiB)", MaxFileSize))
		return nil
	}
	if line, col, flt := notText(data); flt != nil {
		f.problem(edge.Pos{File: f.name, Line: line, Col: col}, "", flt.What, flt.Remedy)
		return nil
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	doc, err := decode(d)
	switch {
	case errors.Is(err, io.EOF), err == nil && empty(doc):
		f.problem(start, "", "the file is empty", "start it with apiVersion: "+APIVersion)
		return nil
	case err != nil:
		f.syntaxError(data, err)
		return nil
	}
	switch second, err := decode(d); {
	case errors.Is(err, io.EOF):
	case err != nil:
		f.syntaxError(data, err)
		return nil
	default:
		pos := edge.Pos{File: f.name, Line: max(second.Line, 1), Col: max(second.Column, 1)}
		f.problem(pos, "", "a second document starts here", "write one document per file: remove the line ---, or put what follows in a file of its own")
	}
	return doc.Content[0]
}

// empty says whether a document has nothing in it, which a file of "---" is.
func empty(doc *yaml.Node) bool {
	if len(doc.Content) == 0 {
		return true
	}
	n := doc.Content[0]
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null" && n.Value == ""
}

// decode reads the next document. The library panics where it finds a bug of
// its own ("internal error ... please report"); a file is no reason to go down.
func decode(d *yaml.Decoder) (doc *yaml.Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	doc = new(yaml.Node)
	return doc, d.Decode(doc)
}

// notText finds the first byte that does not belong in a text file.
func notText(data []byte) (line, col int, f *Fault) {
	if bytes.HasPrefix(data, []byte{0xff, 0xfe}) || bytes.HasPrefix(data, []byte{0xfe, 0xff}) || utf16WithoutMark(data) {
		return 1, 1, &Fault{"the file is UTF-16", "save it as UTF-8"}
	}
	data = bytes.TrimPrefix(data, []byte(bom))
	line, col = 1, 1
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		switch {
		case r == utf8.RuneError && size == 1:
			return line, col, &Fault{fmt.Sprintf("byte 0x%02x is not UTF-8", data[0]), "the file must be text, saved as UTF-8"}
		case r == '\n':
			line, col = line+1, 0
		case r < ' ' && r != '\t' && r != '\r', r == 0x7f:
			return line, col, &Fault{fmt.Sprintf("control character 0x%02x", r), "the file must be text"}
		}
		col++
		data = data[size:]
	}
	return 0, 0, nil
}

// utf16WithoutMark recognises ASCII written as UTF-16 by its zero bytes.
func utf16WithoutMark(data []byte) bool {
	return len(data) >= 4 && (data[0] == 0) != (data[1] == 0) && (data[0] == 0) == (data[2] == 0) && (data[1] == 0) == (data[3] == 0)
}

var (
	yamlLine = regexp.MustCompile(`^line (\d+): `)
	// unquoted finds a value that starts with a sign that YAML has other plans for.
	unquoted = regexp.MustCompile("^(?:[^#\"']|\"[^\"]*\"|'[^']*')*?(?:^|[-:,\\[{] *)([@`%*][^ ,\\]}]*)")
	// brackets finds an IPv6 listen address that YAML takes for a list.
	brackets = regexp.MustCompile(`^[^#"']*?[-:] +(\[[0-9A-Fa-f:.]*::?[0-9A-Fa-f:.]*\]:\d+)`)
)

// syntaxError reports what the YAML parser found. Its messages are for those
// who know the grammar, and its positions are a line; the mistakes that people
// make are looked for in the text.
func (f *file) syntaxError(data []byte, err error) {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if m := yamlLine.FindStringSubmatch(message); m != nil {
		line, _ = strconv.Atoi(m[1])
		message = strings.TrimPrefix(message, m[0])
		if countsFromZero(message) {
			line++
		}
	}
	lines := strings.Split(strings.TrimRight(strings.TrimPrefix(string(data), bom), "\r\n"), "\n")
	line = min(max(line, 1), len(lines))
	at := func(line, col int, what, remedy string) {
		f.problem(edge.Pos{File: f.name, Line: line, Col: col}, "", what, remedy)
	}
	if l, col, ok := tabIndent(lines, line); ok {
		at(l, col, "a tab in the indentation", "YAML is indented with spaces")
		return
	}
	if name, ok := strings.CutPrefix(message, "unknown anchor '"); ok {
		name = strings.TrimSuffix(name, "' referenced")
		for i, l := range lines {
			if col := strings.Index(l, "*"+name); col >= 0 {
				at(i+1, utf8.RuneCountInString(l[:col])+1, "aliases (*"+name+") are not supported", "write the value out, or put it in quotes")
				return
			}
		}
	}
	// The parser may notice a line later.
	for _, l := range []int{line, line - 1, line + 1} {
		if l < 1 || l > len(lines) {
			continue
		}
		for _, pattern := range []*regexp.Regexp{unquoted, brackets} {
			if m := pattern.FindStringSubmatchIndex(lines[l-1]); m != nil {
				text := strings.TrimRight(lines[l-1][m[2]:m[3]], "\r")
				at(l, utf8.RuneCountInString(lines[l-1][:m[2]])+1, quote(text)+" is not YAML without quotes", "put it in double quotes")
				return
			}
		}
	}
	text := lines[line-1]
	at(line, utf8.RuneCountInString(text)-utf8.RuneCountInString(strings.TrimLeft(text, " \t"))+1, "not YAML: "+message, hint(message))
}

// countsFromZero says whether the library's line for this message is one too
// few: its parser counts from 0 and its scanner from 1.
func countsFromZero(message string) bool {
	for _, prefix := range []string{
		"did not find expected key", "did not find expected node", "did not find expected '-'", "did not find expected ','",
		"did not find expected <", "found undefined tag",
	} {
		if strings.HasPrefix(message, prefix) {
			return true
		}
	}
	return false
}

// tabIndent finds a tab before the first word of a line, in the line where the
// parser stopped or the ones beside it.
func tabIndent(lines []string, near int) (line, col int, ok bool) {
	for _, l := range []int{near, near + 1, near - 1} {
		if l < 1 || l > len(lines) {
			continue
		}
		text := lines[l-1]
		indent := len(text) - len(strings.TrimLeft(text, " \t"))
		if tab := strings.IndexByte(text[:indent], '\t'); tab >= 0 && strings.TrimSpace(text) != "" {
			return l, tab + 1, true
		}
	}
	return 0, 0, false
}

func hint(message string) string {
	switch {
	case strings.Contains(message, "could not find expected ':'"):
		return "a line is KEY: VALUE, with a colon and a space"
	case strings.Contains(message, "mapping values are not allowed"):
		return "look at the indentation, and put values with a colon and a space in quotes"
	case strings.Contains(message, "did not find expected key"), strings.Contains(message, "did not find expected '-'"):
		return "look at the indentation: fields of one map start in one column"
	case strings.Contains(message, "max depth"):
		return "no field is this deep"
	case strings.Contains(message, "expected ','"), strings.Contains(message, "node content"):
		return "look for a bracket that is not closed"
	case strings.Contains(message, "unexpected end of stream"):
		return "look for a quote that is not closed"
	}
	return ""
}
