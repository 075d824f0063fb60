package cli

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// ink is a colour of the terminal.
type ink string

const (
	plain  ink = ""
	strong ink = "\x1b[1m"
	good   ink = "\x1b[32m"
	bad    ink = "\x1b[31m"
	quiet  ink = "\x1b[90m"

	inkEnd = "\x1b[0m"
)

// palette colours text, or leaves it as it is.
type palette bool

func (p palette) in(c ink, text string) string {
	if !p || c == plain || text == "" {
		return text
	}
	return string(c) + text + inkEnd
}

// columns are rows of cells that stand under each other, as people see them:
// colours take no room, and wide letters take two cells of a terminal.
type columns struct {
	rows []row
}

// row is one line: cells, or a text that goes over all columns.
type row struct {
	cells []string
	text  string
}

func (c *columns) add(cells ...string) { c.rows = append(c.rows, row{cells: cells}) }
func (c *columns) across(texts ...string) {
	for _, text := range texts {
		c.rows = append(c.rows, row{text: text})
	}
}

// lines are the rows as they are printed. The first two columns are words, the
// others numbers, which stand on the right.
func (c *columns) lines() []string {
	const words = 2
	var widths []int
	for _, r := range c.rows {
		for i, cell := range r.cells {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], cellsOf(cell))
		}
	}
	lines := make([]string, 0, len(c.rows))
	for _, r := range c.rows {
		line := strings.Builder{}
		line.WriteString(r.text)
		for i, cell := range r.cells {
			if i > 0 {
				line.WriteString("  ")
			}
			room := strings.Repeat(" ", widths[i]-cellsOf(cell))
			if i >= words {
				line.WriteString(room + cell)
			} else {
				line.WriteString(cell + room)
			}
		}
		lines = append(lines, strings.TrimRight(line.String(), " "))
	}
	return lines
}

// inked is a colour, which takes no room.
var inked = regexp.MustCompile(`\x1b\[\d+m`)

// cellsOf is how many cells of a terminal a text takes.
func cellsOf(text string) int {
	n := 0
	for _, r := range inked.ReplaceAllString(text, "") {
		n += cellsOfRune(r)
	}
	return n
}

func cellsOfRune(r rune) int {
	switch {
	case r < ' ' || unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	case r < 0x300:
		return 1
	}
	if kind := width.LookupRune(r).Kind(); kind == width.EastAsianWide || kind == width.EastAsianFullwidth {
		return 2
	}
	return 1
}

// cut is as much of a line as fits, with the colours that it has and the end of
// the last one.
func cut(line string, room int) string {
	if cellsOf(line) <= room {
		return line
	}
	var out strings.Builder
	coloured := false
	for line != "" {
		if at := inked.FindStringIndex(line); at != nil && at[0] == 0 {
			out.WriteString(line[:at[1]])
			coloured = line[:at[1]] != inkEnd
			line = line[at[1]:]
			continue
		}
		r, size := utf8.DecodeRuneInString(line)
		n := cellsOfRune(r)
		if n > room {
			break
		}
		room -= n
		out.WriteRune(r)
		line = line[size:]
	}
	if coloured {
		out.WriteString(inkEnd)
	}
	return out.String()
}

// narrow is a terminal of so few cells that words broken into it are no easier to
// read than their beginning.
const narrow = 20

// fold breaks a line at spaces so that it fits, each part with the colour that it
// has and further in than the first.
func fold(line string, room int) []string {
	if room < narrow {
		return []string{line}
	}
	blanks := len(line) - len(strings.TrimLeft(line, " "))
	indent := strings.Repeat(" ", min(blanks+2, room/2))
	var lines []string
	for begin, ink := blanks, ""; cellsOf(line) > room; begin = len(indent) {
		end := breakAt(line, begin, room)
		part, rest := line[:end], strings.TrimLeft(line[end:], " ")
		if inks := inked.FindAllString(part, -1); len(inks) > 0 {
			ink = strings.TrimPrefix(inks[len(inks)-1], inkEnd)
		}
		if ink != "" {
			part += inkEnd
		}
		lines, line = append(lines, part), indent+ink+rest
	}
	return append(lines, line)
}

// breakAt is behind how many bytes a line is broken that begins after some blanks:
// at the last space that fits, or where the room ends.
func breakAt(line string, blanks, room int) int {
	space, i := 0, 0
	for i < len(line) {
		if at := inked.FindStringIndex(line[i:]); line[i] == '\x1b' && at != nil && at[0] == 0 {
			i += at[1]
			continue
		}
		r, size := utf8.DecodeRuneInString(line[i:])
		if r == ' ' && i > blanks {
			space = i
		}
		if room -= cellsOfRune(r); room < 0 {
			break
		}
		i += size
	}
	if space > 0 {
		return space
	}
	return i
}

// others are characters that would move a terminal's cursor, or worse; colours
// are found first.
var others = regexp.MustCompile(`\x1b\[\d+m|[\x00-\x09\x0b-\x1f\x7f-\x{9f}\x{200e}\x{200f}\x{202a}-\x{202e}\x{2066}-\x{2069}]`)

// harmless is a text that says the same and does nothing to a terminal: names and
// errors come from others.
func harmless(text string) string {
	return others.ReplaceAllStringFunc(text, func(found string) string {
		if len(found) > 2 && found[0] == '\x1b' {
			return found
		}
		return "\uFFFD"
	})
}
