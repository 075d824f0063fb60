package main

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// roff writes the small part of Markdown that the texts use as man(7) macros.
// Tables become lists: the first column is what each row is about.
func roff(text string) string {
	w := &roffWriter{}
	for line := range strings.Lines(text) {
		w.line(strings.TrimRight(line, "\n"))
	}
	w.endParagraph()
	return w.b.String()
}

type roffWriter struct {
	b         strings.Builder
	paragraph []string
	columns   []string // of the table that is being read
	fence     string   // what ends the code that is being read
	item      bool     // the paragraph is an item of a list
}

var (
	heading   = regexp.MustCompile(`^(#+) (.*)$`)
	bullet    = regexp.MustCompile(`^ {0,3}(?:[*-]|\d+\.) +(.*)$`)
	ruler     = regexp.MustCompile(`^\|[-:| ]+\|$`)
	comment   = regexp.MustCompile(`^<!--.*-->$`)
	imageOnly = regexp.MustCompile(`^!\[[^\]]*\]\([^)]*\)$`)
)

func (w *roffWriter) line(line string) {
	trimmed := strings.TrimSpace(line)
	if w.fence != "" {
		if trimmed == w.fence {
			w.fence = ""
			w.b.WriteString(".EE\n.RE\n")
			return
		}
		w.b.WriteString(verbatim(line) + "\n")
		return
	}
	if w.columns != nil && !strings.HasPrefix(trimmed, "|") {
		w.columns = nil
	}
	m, item := heading.FindStringSubmatch(line), bullet.FindStringSubmatch(line)
	switch {
	case strings.HasPrefix(trimmed, "```"):
		w.endParagraph()
		w.fence = "```"
		w.b.WriteString(".PP\n.RS 4\n.EX\n")
	case trimmed == "" || comment.MatchString(trimmed) || imageOnly.MatchString(trimmed):
		w.endParagraph()
	case m != nil && len(m[1]) <= 2:
		w.endParagraph()
		w.b.WriteString(".SH " + quoted(strings.ToUpper(bare(m[2]))) + "\n")
	case m != nil:
		w.endParagraph()
		w.b.WriteString(".SS " + quoted(bare(m[2])) + "\n")
	case ruler.MatchString(trimmed):
	case strings.HasPrefix(trimmed, "|"):
		w.endParagraph()
		w.row(cells(trimmed))
	case strings.HasPrefix(line, "    ") && len(w.paragraph) == 0:
		w.b.WriteString(".PP\n.RS 4\n.EX\n" + verbatim(strings.TrimPrefix(line, "    ")) + "\n.EE\n.RE\n")
	case item != nil:
		w.endParagraph()
		w.item, w.paragraph = true, []string{item[1]}
	default:
		w.paragraph = append(w.paragraph, trimmed)
	}
}

// row begins a table with its titles, or writes one of its rows.
func (w *roffWriter) row(row []string) {
	if w.columns == nil {
		w.columns = row
		return
	}
	w.b.WriteString(".TP\n" + guarded(inline(row[0])) + "\n")
	var said []string
	for i, text := range row[1:] {
		title := ""
		if i+1 < len(w.columns) {
			title = w.columns[i+1]
		}
		switch {
		case text == "":
		case i+1 == len(row)-1: // the last column is what is said of it
			said = append(said, ends(text))
		default:
			said = append(said, title+": "+ends(text))
		}
	}
	w.b.WriteString(guarded(inline(strings.Join(said, " "))) + "\n")
}

// ends makes text a sentence of its own.
func ends(text string) string {
	if strings.HasSuffix(text, ".") {
		return text
	}
	return text + "."
}

func (w *roffWriter) endParagraph() {
	if len(w.paragraph) == 0 {
		return
	}
	start := ".PP\n"
	if w.item {
		start = ".IP \\(bu 2\n"
	}
	w.b.WriteString(start + guarded(inline(strings.Join(w.paragraph, " "))) + "\n")
	w.paragraph, w.item = nil, false
}

// cells are those of a row of a table, in which \| is no border.
func cells(row string) []string {
	const border = "\x00"
	row = strings.ReplaceAll(strings.Trim(row, "|"), `\|`, border)
	var all []string
	for c := range strings.SplitSeq(row, "|") {
		all = append(all, strings.ReplaceAll(strings.TrimSpace(c), border, "|"))
	}
	return all
}

var (
	code     = regexp.MustCompile("`([^`]+)`")
	linked   = regexp.MustCompile(`\[([^\]]+)\]\([^)]+\)`)
	strong   = regexp.MustCompile(`\*\*([^*]+)\*\*`)
	emphasis = regexp.MustCompile(`(^|[^\w*\\])\*([^*\s][^*]*)\*`)
)

// bare is text without marks.
func bare(text string) string {
	text = linked.ReplaceAllString(text, "$1")
	return escape(unmark(strings.NewReplacer("`", "", "**", "").Replace(text)))
}

func unmark(text string) string {
	return strings.NewReplacer("&lt;", "<", `\*`, "*", `\_`, "_").Replace(text)
}

// inline writes code and what is strong in bold, links as their text.
func inline(text string) string {
	var b strings.Builder
	text = linked.ReplaceAllString(text, "$1")
	rest := text
	for {
		m := code.FindStringSubmatchIndex(rest)
		if m == nil {
			b.WriteString(marks(rest))
			return b.String()
		}
		b.WriteString(marks(rest[:m[0]]))
		b.WriteString(`\fB` + escape(rest[m[2]:m[3]]) + `\fR`)
		rest = rest[m[1]:]
	}
}

func marks(text string) string {
	const star = "\x00"
	text = escape(strings.ReplaceAll(text, `\*`, star))
	text = strong.ReplaceAllString(text, `\fB$1\fR`)
	text = emphasis.ReplaceAllString(text, `$1\fI$2\fR`)
	text = strings.ReplaceAll(text, star, "*")
	return strings.NewReplacer("&lt;", "<", `\e_`, "_").Replace(text)
}

// escape keeps what roff would take for its own, hyphens that are typed, and
// letters that are not ASCII, whatever the locale.
func escape(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(text)
	var b strings.Builder
	for _, r := range text {
		if r < utf8.RuneSelf {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\[u%04X]`, r)
		}
	}
	return b.String()
}

func verbatim(line string) string { return guarded(escape(strings.ReplaceAll(line, "\t", "    "))) }

// guarded keeps a line from being taken for a macro.
func guarded(line string) string {
	if strings.HasPrefix(line, ".") {
		return `\&` + line
	}
	return line
}

func quoted(text string) string { return `"` + strings.ReplaceAll(text, `"`, `\(dq`) + `"` }
