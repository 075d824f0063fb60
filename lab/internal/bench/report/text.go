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

// Markdown is all of it, for a document; it can be read in a terminal too.
func (r *Result) Markdown() string {
	var b strings.Builder
	var versions []string
	for _, c := range r.Contenders {
		if c.Version != "" {
			versions = append(versions, c.Label+" "+c.Version)
		}
	}
	machine := fmt.Sprintf("%d cores", r.Cores)
	if r.Processor != "" {
		machine += " (" + r.Processor + ")"
	}
	fmt.Fprintf(&b, "%s, %s, Linux %s, TCP congestion control %s; %s. Client, proxy and backend share these cores.\n", r.Date, machine, r.Kernel, r.Congestion, strings.Join(versions, ", "))
	fmt.Fprintf(&b, "Medians of %d runs of %s; ratios are made within a repetition, and are given as median (least–greatest).\n", r.Repeat, r.Window)
	if noise, ok := r.noise(); ok {
		fmt.Fprintf(&b, "What else ran on the machine, kernel threads included, used %s %% of it (%s–%s).\n", number(noise.Median), number(noise.Min), number(noise.Max))
	}
	b.WriteString("\n")
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

// noise is what share of the machine the runs cannot account for.
func (r *Result) noise() (Spread, bool) {
	var shares []float64
	for _, s := range r.Samples {
		if v, ok := s.Values[RestShare]; ok {
			shares = append(shares, v)
		}
	}
	return SpreadOf(shares)
}
