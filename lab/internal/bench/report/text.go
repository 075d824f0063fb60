package report

import (
	"errors"
	"fmt"
	"strings"
)

// Between replaces what stands between the markers of that name in a document: <!-- NAME: begin --> and
// <!-- NAME: end -->.
func Between(document, name, text string) (string, error) {
	begin, end := "<!-- "+name+": begin -->", "<!-- "+name+": end -->"
	before, rest, ok := strings.Cut(document, begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return "", errors.New("no " + begin + " with " + end + " after it")
	}
	return before + begin + "\n" + strings.TrimRight(text, "\n") + "\n" + end + after, nil
}

// Markdown is all of it, for a document; it can be read in a terminal too.
func (r *Result) Markdown() string {
	var b strings.Builder
	var versions []string
	for _, c := range r.Contenders {
		if c.Version != "" && c.Frontends <= 1 {
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
	if m := r.Main(); m != "" {
		b.WriteString("\n" + m)
	}
	if k := r.Forwarded(); k != "" {
		b.WriteString("\nMoved by the kernel. CPU is that of the whole machine, client and backend included, since the kernel counts the work\non a packet for whoever happens to run:\n\n" + k)
	}
	if s := r.Sizes(); s != "" {
		b.WriteString("\nMoved by the kernel, by the number of frontends, each with six backends, of fewer runs:\n\n" + s)
	}
	if f := r.Routers(); f != "" {
		b.WriteString("\nThrough a firewall, with NAT on the way out. By hand, it has three rules: answers pass, one way is open, and what\ntakes it gets another address. gatehouse's is that of one policy:\n\n" + f)
	}
	if a := r.Additions(); a != "" {
		b.WriteString("\nWhat it adds to look at the ClientHello and to choose the backend by its server name, as the difference to relaying\nthe same to any backend, within a repetition; median (least to greatest):\n\n" + a)
	}
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
