package soak

import (
	"fmt"
	"math"
	"strings"
)

// line is one curve of a panel.
type line struct {
	name  string
	class string // of its colour
	of    func(before, s Sample) float64
}

type panel struct {
	title string
	lines []line
}

func rate(f func(Sample) float64) func(before, s Sample) float64 {
	return func(before, s Sample) float64 {
		if s.Seconds <= before.Seconds {
			return 0
		}
		return (f(s) - f(before)) / (s.Seconds - before.Seconds)
	}
}

func value(f func(Sample) float64) func(before, s Sample) float64 {
	return func(_, s Sample) float64 { return f(s) }
}

var panels = []panel{
	{"Resident memory, MiB", []line{{"", "a", value(func(s Sample) float64 { return s.RSS / 1024 })}}},
	{"Descriptors", []line{{"", "a", value(func(s Sample) float64 { return s.Descriptors })}}},
	{"Goroutines and threads", []line{
		{"goroutines", "a", value(func(s Sample) float64 { return s.Goroutines })},
		{"threads", "b", value(func(s Sample) float64 { return s.Threads })},
	}},
	{"Open", []line{
		{"connections", "a", value(func(s Sample) float64 { return s.Connections })},
		{"UDP sessions", "b", value(func(s Sample) float64 { return s.Sessions })},
	}},
	{"New connections and sessions per second", []line{{"", "a", rate(func(s Sample) float64 { return s.Made })}}},
	{"CPU, % of a core", []line{
		{"with the load", "b", rate(func(s Sample) float64 { return 100 * s.CPUAll })},
		{"gatehouse", "a", rate(func(s Sample) float64 { return 100 * s.CPU })},
	}},
}

// Where things are in the graph.
const (
	graphWidth            = 860
	panelWidth, panelHigh = 350, 120
	columnWidth, rowHigh  = 425, 185
	leftEdge, topEdge     = 55, 40
)

// Graph draws samples as SVG: a small panel for each thing, over the same time.
func Graph(samples []Sample) string {
	var b strings.Builder
	height := topEdge + rowHigh*((len(panels)+1)/2) - 10
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="12" role="img" aria-labelledby="t d">
<title id="t">gatehouse under load</title>
<desc id="d">%s</desc>
<style>
.bg { fill: #ffffff } .load { fill: #f1f4f8 } .grid { stroke: #d5dbe2 } .q { fill: #57606a; font-size: 11px } .t { fill: #1f2328; font-weight: 600; font-size: 13px }
.a, .b { fill: none; stroke-width: 1.6; stroke-linejoin: round } .a { stroke: #2159b5 } .b { stroke: #b35900 } .ta { fill: #2159b5 } .tb { fill: #b35900 }
.fit { stroke: #b42318; stroke-width: 1.6; stroke-dasharray: 5 4; fill: none } .tf { fill: #b42318 }
@media (prefers-color-scheme: dark) {
.bg { fill: #0d1117 } .load { fill: #161d27 } .grid { stroke: #30363d } .q { fill: #9198a1 } .t { fill: #e6edf3 }
.a { stroke: #6cb0ff } .b { stroke: #e8a33d } .ta { fill: #6cb0ff } .tb { fill: #e8a33d } .fit { stroke: #ff8a80 } .tf { fill: #ff8a80 }
}
</style>
<rect class="bg" width="%d" height="%d" rx="10"/>
`, graphWidth, height, describe(samples), graphWidth, height)
	for i, p := range panels {
		fmt.Fprintf(&b, "<g transform=\"translate(%d %d)\">\n", leftEdge+i%2*columnWidth, topEdge+i/2*rowHigh)
		p.draw(&b, samples)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// describe is what the graph shows, in words.
func describe(samples []Sample) string {
	if len(samples) == 0 {
		return "Nothing was measured."
	}
	first, last := samples[0], samples[len(samples)-1]
	for _, s := range samples {
		if s.Phase == before {
			first = s // the last one before the load
		}
	}
	text := fmt.Sprintf("Over %.0f minutes and %.0f connections: %.0f descriptors before the load and %.0f after it, %.1f and %.1f MiB of memory.",
		last.Seconds/60, last.Made, first.Descriptors, last.Descriptors, first.RSS/1024, last.RSS/1024)
	if growth, known := Growth(samples); known {
		text += fmt.Sprintf(" The line through the second half of the load rises by %.2f MiB.", growth/1024)
	}
	return text
}

func (p panel) draw(b *strings.Builder, samples []Sample) {
	fmt.Fprintf(b, "<text class=\"t\" y=\"-12\">%s</text>\n", p.title)
	if len(samples) < 2 || samples[len(samples)-1].Seconds <= 0 {
		return
	}
	top := 0.0
	curves := make([][]float64, len(p.lines))
	for i, l := range p.lines {
		for j, s := range samples {
			v := l.of(samples[max(0, j-1)], s)
			curves[i] = append(curves[i], v)
			top = max(top, v)
		}
	}
	step := tick(top)
	top = max(step, math.Ceil(top/step)*step)
	span := samples[len(samples)-1].Seconds
	x := func(seconds float64) float64 { return seconds / span * panelWidth }
	y := func(v float64) float64 { return panelHigh - v/top*panelHigh }

	var loaded []float64
	for _, s := range samples {
		if s.Phase == during {
			loaded = append(loaded, s.Seconds)
		}
	}
	if len(loaded) > 0 {
		fmt.Fprintf(b, "<rect class=\"load\" x=\"%.1f\" width=\"%.1f\" height=\"%d\"/>\n", x(loaded[0]), x(loaded[len(loaded)-1]-loaded[0]), panelHigh)
	}
	for v := 0.0; v <= top; v += step {
		fmt.Fprintf(b, "<path class=\"grid\" d=\"M0 %.1fH%d\"/><text class=\"q\" x=\"-6\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", y(v), panelWidth, y(v)+4, v)
	}
	unit, name := 60.0, "min"
	if span < 180 {
		unit, name = 1, "s"
	}
	every := tick(span / unit)
	for v := 0.0; v <= span/unit; v += every {
		label := fmt.Sprintf("%g", v)
		if v+every > span/unit {
			label += " " + name
		}
		fmt.Fprintf(b, "<text class=\"q\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", x(v*unit), panelHigh+16, label)
	}
	right := panelWidth
	for i, l := range p.lines {
		var path strings.Builder
		for j, v := range curves[i] {
			fmt.Fprintf(&path, "%s%.1f %.1f", map[bool]string{true: "M", false: "L"}[j == 0], x(samples[j].Seconds), y(v))
		}
		fmt.Fprintf(b, "<path class=\"%s\" d=\"%s\"/>\n", l.class, path.String())
		if l.name != "" {
			fmt.Fprintf(b, "<text class=\"t%s\" x=\"%d\" y=\"-12\" text-anchor=\"end\">%s</text>\n", l.class, right, l.name)
			right -= 7*len(l.name) + 10
		}
	}
	if _, known := Growth(samples); known && strings.HasPrefix(p.title, "Resident") {
		seconds, rss := secondHalf(samples)
		at, slope := fit(seconds, rss)
		from, to := seconds[0], seconds[len(seconds)-1]
		growth := slope * (to - from)
		fmt.Fprintf(b, "<path class=\"fit\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", x(from), y((at+slope*from)/1024), x(to), y((at+slope*to)/1024))
		fmt.Fprintf(b, "<text class=\"tf\" x=\"%d\" y=\"-12\" text-anchor=\"end\">second half: %+.2f MiB</text>\n", panelWidth, growth/1024)
	}
}

// tick is a round distance that fits three to six times into a range.
func tick(span float64) float64 {
	if span <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(span/3)))
	for _, f := range []float64{5, 2, 1} {
		if unit*f <= span/3 {
			return unit * f
		}
	}
	return unit
}
