package report

import (
	"errors"
	"fmt"
	"strings"
)

// The generated part of a document stands between these lines.
const (
	Begin = "<!-- bench: begin -->"
	End   = "<!-- bench: end -->"
)

// Between replaces what stands between the markers of a document.
func Between(document, text string) (string, error) {
	before, rest, ok := strings.Cut(document, Begin)
	_, after, ok2 := strings.Cut(rest, End)
	if !ok || !ok2 {
		return "", errors.New("no " + Begin + " with " + End + " after it")
	}
	return before + Begin + "\n" + strings.TrimRight(text, "\n") + "\n" + End + after, nil
}

// Text is all of it for a terminal.
func (r *Result) Text() string { return r.Markdown() }

// Markdown is all of it for a document.
func (r *Result) Markdown() string {
	var b strings.Builder
	var versions []string
	for _, c := range r.Contenders {
		if c.Version != "" {
			versions = append(versions, c.Label+" "+c.Version)
		}
	}
	fmt.Fprintf(&b, "%s: %d cores (%s), Linux %s; %s. Medians of %d runs of %s each.\n\n", r.Date, r.Cores, r.Processor, r.Kernel, strings.Join(versions, ", "), r.Repeat, r.Window)
	b.WriteString(r.Main())
	if p := r.Processors(); p != "" {
		b.WriteString("\nWho used the processors:\n\n" + p)
	}
	if faults := r.Faults(); len(faults) > 0 {
		b.WriteString("\nRuns with errors (!):\n\n")
		for _, f := range faults {
			b.WriteString("* " + f + "\n")
		}
	}
	return b.String()
}
