package soak

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Result is what a run has found.
type Result struct {
	Started    time.Time        `json:"started"`
	Duration   string           `json:"duration"`
	Before     Sample           `json:"before"` // at rest: every kind of load was there once, and has ended
	After      Sample           `json:"after"`  // likewise, after the whole load
	Loads      map[string]Count `json:"loads"`
	Complaints []string         `json:"complaints,omitempty"`
	Reloads    int              `json:"reloads"`   // of the configuration, bad ones included
	Kills      int              `json:"kills"`     // of backends, and how often one was stopped for a while
	Accepted   float64          `json:"accepted"`  // by the frontends that are there in the end
	Accounted  float64          `json:"accounted"` // these connections, by what became of them
	Samples    []Sample         `json:"-"`
}

func (s Sample) String() string {
	return fmt.Sprintf("%.1f MiB, %.0f descriptors (%.0f sockets, %.0f ends of pipes), %.0f threads, %.0f goroutines, %.0f connections, %.0f UDP sessions",
		s.RSS/1024, s.Descriptors, s.Sockets, s.Pipes, s.Threads, s.Goroutines, s.Connections, s.Sessions)
}

// What the resident memory may grow by over the second half of the load, by the line that fits it best: a runtime with
// a garbage collector goes up and down by more than nothing. With 240 connections a second for half an hour, it is
// five bytes of each.
const growthBound = 2 << 10 // KiB

// A line says nothing over less.
const shortestTrend = 5 * time.Minute

// secondHalf is where the trend is looked for.
func secondHalf(samples []Sample) (seconds, rss []float64) {
	var all []Sample
	for _, s := range samples {
		if s.Phase == during {
			all = append(all, s)
		}
	}
	for _, s := range all[len(all)/2:] {
		seconds, rss = append(seconds, s.Seconds), append(rss, s.RSS)
	}
	return seconds, rss
}

// Growth is by how much memory grew over the second half of the load, in KiB; known is false if it was too short.
func Growth(samples []Sample) (kib float64, known bool) {
	seconds, rss := secondHalf(samples)
	if len(seconds) < 2 {
		return 0, false
	}
	span := seconds[len(seconds)-1] - seconds[0]
	_, slope := fit(seconds, rss)
	return slope * span, span >= shortestTrend.Seconds()
}

// Verdict prints what was found, and says whether all is well.
func (r *Result) Verdict(w io.Writer) bool {
	well := true
	check := func(ok bool, format string, args ...any) {
		mark := "ok  "
		if !ok {
			mark, well = "FAIL", false
		}
		fmt.Fprintf(w, "%s  %s\n", mark, fmt.Sprintf(format, args...))
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Loads)) {
		n := r.Loads[kind]
		check(n.Failed == 0, "%-36s %8d well, %d failed, %d failed with their backend or frontend", kind, n.Done, n.Failed, n.Excused)
	}
	all := r.all()
	check(all.Done > 0, "%d connections and sessions, %d configurations, %d times a backend was killed or stopped", all.Done+all.Failed+all.Excused, r.Reloads, r.Kills)
	check(r.Before.Descriptors == r.After.Descriptors, "descriptors: %.0f before, %.0f after (sockets %.0f, %.0f; ends of pipes %.0f, %.0f)",
		r.Before.Descriptors, r.After.Descriptors, r.Before.Sockets, r.After.Sockets, r.Before.Pipes, r.After.Pipes)
	check(r.Before.Goroutines == r.After.Goroutines, "goroutines: %.0f before, %.0f after", r.Before.Goroutines, r.After.Goroutines)
	check(r.After.Connections == 0 && r.After.Sessions == 0, "left: %.0f connections, %.0f UDP sessions", r.After.Connections, r.After.Sessions)
	check(r.Accepted == r.Accounted && r.Accepted > 0, "%.0f connections were accepted by the frontends that are there, and %.0f are accounted for", r.Accepted, r.Accounted)
	if growth, known := Growth(r.Samples); known {
		check(growth < growthBound, "memory grew by %.2f MiB over the second half of the load, by the straight line that fits it best; less than %d MiB is well", growth/1024, growthBound>>10)
	} else {
		fmt.Fprintln(w, "      memory: too short for a trend")
	}
	fmt.Fprintf(w, "      memory at rest: %.1f MiB before, %.1f MiB after; threads %.0f, %.0f\n", r.Before.RSS/1024, r.After.RSS/1024, r.Before.Threads, r.After.Threads)
	gatehouse, load := r.cpu()
	fmt.Fprintf(w, "      CPU: gatehouse %.1f %% of a core, with the load %.1f %%\n", gatehouse, load)
	for _, c := range r.Complaints {
		fmt.Fprintln(w, "      "+c)
	}
	return well
}

// Load reads what a run has left in its directory.
func Load(dir string) (*Result, error) {
	text, err := os.ReadFile(filepath.Join(dir, "soak.json"))
	if err != nil {
		return nil, err
	}
	r := &Result{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, err
	}
	file, err := os.Open(filepath.Join(dir, "soak.csv"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	r.Samples, err = ReadCSV(file)
	return r, err
}

// all sums up what became of every kind of load.
func (r *Result) all() (sum Count) {
	for _, n := range r.Loads {
		sum.Done, sum.Failed, sum.Excused = sum.Done+n.Done, sum.Failed+n.Failed, sum.Excused+n.Excused
	}
	return sum
}

// cpu is what the load has cost, in percent of a core.
func (r *Result) cpu() (gatehouse, all float64) {
	if len(r.Samples) < 2 {
		return 0, 0
	}
	first, last := r.Samples[0], r.Samples[len(r.Samples)-1]
	span := last.Seconds - first.Seconds
	return 100 * (last.CPU - first.CPU) / span, 100 * (last.CPUAll - first.CPUAll) / span
}

// Markdown is the result for the documentation.
func (r *Result) Markdown(graph string) string {
	var b strings.Builder
	all := r.all()
	fmt.Fprintf(&b, "![%s](%s)\n\n", describe(r.Samples), graph)
	b.WriteString("| | before the load | after it |\n|---|---|---|\n")
	row := func(what, format string, of func(Sample) float64) {
		fmt.Fprintf(&b, "| %s | "+format+" | "+format+" |\n", what, of(r.Before), of(r.After))
	}
	row("descriptors", "%.0f", func(s Sample) float64 { return s.Descriptors })
	row("goroutines", "%.0f", func(s Sample) float64 { return s.Goroutines })
	row("threads", "%.0f", func(s Sample) float64 { return s.Threads })
	row("connections and UDP sessions", "%.0f", func(s Sample) float64 { return s.Connections + s.Sessions })
	row("resident memory", "%.1f MiB", func(s Sample) float64 { return s.RSS / 1024 })
	b.WriteString("\n| | |\n|---|---|\n")
	fmt.Fprintf(&b, "| load | %s, on %s |\n", r.Duration, r.Started.Format(time.DateOnly))
	fmt.Fprintf(&b, "| connections and UDP sessions | %d |\n", all.Done+all.Failed+all.Excused)
	fmt.Fprintf(&b, "| … that failed, or got a wrong byte | %d |\n", all.Failed)
	fmt.Fprintf(&b, "| … that failed because their backend was killed or stopped, or their frontend not there at the time | %d |\n", all.Excused)
	fmt.Fprintf(&b, "| … that gatehouse cannot account for | %.0f |\n", r.Accepted-r.Accounted)
	fmt.Fprintf(&b, "| configurations, a seventh of them bad ones | %d |\n", r.Reloads)
	fmt.Fprintf(&b, "| backends killed, or stopped for a while | %d |\n", r.Kills)
	if growth, known := Growth(r.Samples); known {
		fmt.Fprintf(&b, "| memory, by the straight line that fits the second half of the load best | %+.2f MiB; less than %d is well |\n", growth/1024, growthBound>>10)
	}
	gatehouse, load := r.cpu()
	fmt.Fprintf(&b, "| CPU of gatehouse | %.1f %% of a core |\n| … with clients and backends | %.1f %% |\n", gatehouse, load)
	return b.String()
}

// Between these lines of the documentation is what the last run has found.
const (
	markBegin = "<!-- soak: begin -->\n"
	markEnd   = "<!-- soak: end -->\n"
)

// Write puts the result into a page of the documentation, with a link to the graph.
func (r *Result) Write(page, graph string) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	head, rest, found := strings.Cut(string(text), markBegin)
	_, tail, ended := strings.Cut(rest, markEnd)
	if !found || !ended {
		return fmt.Errorf("%s: no %q and %q", page, strings.TrimSpace(markBegin), strings.TrimSpace(markEnd))
	}
	link, err := filepath.Rel(filepath.Dir(page), graph)
	if err != nil {
		return err
	}
	return os.WriteFile(page, []byte(head+markBegin+r.Markdown(link)+markEnd+tail), 0o644)
}
