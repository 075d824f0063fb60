package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// table is the medians, and how gatehouse stands to the better of the others within each repetition.
func table(who []contender, runs map[string][]measured, repeat int, duration time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n| | |")
	for _, c := range who {
		fmt.Fprintf(&b, " %s |", c.name)
	}
	b.WriteString(" gatehouse to the better of the others |\n|---|---|")
	for range who {
		b.WriteString("--:|")
	}
	b.WriteString("--:|\n")
	for _, l := range loads {
		what := l.what
		for _, row := range []struct {
			what string
			of   func(measured) float64
			most bool // more is better
		}{
			{"thousand answers a second", func(m measured) float64 { return m.perSecond / 1000 }, true},
			{"CPU of the server, µs an answer", func(m measured) float64 { return m.cpu }, false},
			{fmt.Sprintf("p50 at %d,000 a second, µs", rate/1000), func(m measured) float64 { return m.p50 }, false},
			{fmt.Sprintf("p99 at %d,000 a second, µs", rate/1000), func(m measured) float64 { return m.p99 }, false},
		} {
			fmt.Fprintf(&b, "| %s | %s |", what, row.what)
			what = ""
			for _, c := range who {
				var values []float64
				for _, m := range runs[l.name+" "+c.name] {
					values = append(values, row.of(m))
				}
				fmt.Fprintf(&b, " %s |", figure(median(values)))
			}
			var ratios []float64
			for i := range repeat {
				best := 0.0
				for _, c := range who[1:] {
					if v := row.of(runs[l.name+" "+c.name][i]); best == 0 || row.most == (v > best) {
						best = v
					}
				}
				ratios = append(ratios, row.of(runs[l.name+" "+who[0].name][i])/best)
			}
			fmt.Fprintf(&b, " %.2f (%.2f–%.2f) |\n", median(ratios), slices.Min(ratios), slices.Max(ratios))
		}
	}
	fmt.Fprintf(&b, "\n%d repetitions of %s; medians, and in brackets the smallest and the largest ratio.\n", repeat, duration)
	return b.String()
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

// figure is a number with three digits, or all in front of the point.
func figure(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}
