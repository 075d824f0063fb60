// Package report makes tables of what the benchmark measured: medians over the repetitions, ratios to the better of
// the peers within each repetition, and whether a target was met. It measures nothing and reads no clock.
package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// Names of the contenders that others are compared with.
const (
	Routed  = "routed" // no balancer: the limit
	HAProxy = "haproxy"
	Nginx   = "nginx"
	IOCopy  = "iocopy"
	ByHand  = "dnat" // one rule of nftables, which somebody wrote

	Masquerade = "masquerade" // three of them: a firewall, with NAT on the way out
)

// peers are those whose better one is what gatehouse is compared with.
var peers = []string{HAProxy, Nginx}

// Metric is one thing that is measured in a column.
type Metric struct {
	Key, Label string
	Less       bool    // less is better
	Ratio      float64 // target for the ratio to the better peer; 0: none
	Most       float64 // target for the value itself; 0: none
}

// Column is one kind of traffic.
type Column struct {
	Name  string // for flags and JSON
	Label string // for people
	Op    string // what CPU is counted per
	// OneProcessor keeps everybody on one processor: a lone message is never worked on by two at a time, and with more
	// than one, where the scheduler has put whom is what is measured, since waking another processor takes longer than
	// what any contender does.
	OneProcessor bool
	Metrics      []Metric
}

// Keys of what is measured.
const (
	Rate       = "rate"
	P50        = "p50_us"
	P99        = "p99_us"
	CPU        = "cpu"
	Client     = "client_cpu"
	Backend    = "backend_cpu"
	IdleShare  = "machine_idle_percent"
	Softirq    = "machine_softirq_percent"
	Memory     = "rss_kb_per_connection"
	FDs        = "fds_per_connection"
	LostPerMil = "lost_per_thousand"
	Rest       = "rest_cpu"    // kernel threads, and whatever else ran on the machine
	Busy       = "machine_cpu" // all of it, whoever it was counted for
	RestShare  = "machine_rest_percent"
	Open       = "open_s"        // from the start of the program until all its doors are open
	OpenCPU    = "open_cpu_s"    // what it and the programs that it runs have used for it
	Change     = "change_ms"     // from a change in the file until packets take the new way
	ChangeCPU  = "change_cpu_ms" // for this change
	RereadCPU  = "reread_cpu_ms" // and for a file with the same in it
	FirstRules = "rules_first"   // that a connection's first packet is compared with
	LaterRules = "rules_later"   // and each packet after it
)

func traffic(rate string, target float64, cpu string, latencies bool) []Metric {
	m := []Metric{{Key: Rate, Label: rate, Ratio: target}}
	if latencies {
		m = append(m, Metric{Key: P50, Label: "p50, µs", Less: true}, Metric{Key: P99, Label: "p99, µs", Less: true})
	}
	return append(m, Metric{Key: CPU, Label: cpu, Less: true, Ratio: 0.9})
}

// paced are the metrics where the rate is given, and nothing is aimed at.
var paced = []Metric{
	{Key: P50, Label: "p50, µs", Less: true},
	{Key: P99, Label: "p99, µs", Less: true},
	{Key: CPU, Label: "proxy CPU, µs per connection", Less: true},
}

// Apply is the column that has no traffic: it is about the rules themselves.
const Apply = "nat-apply"

// Columns are all columns, in the order in which they are run and shown.
var Columns = []Column{
	{"tcp-pingpong-1", "64-byte ping-pong, 1 connection, all on one core", "message", true, traffic("k/s", 1.1, "proxy CPU, µs per message", true)},
	{"tcp-pingpong-64", "64-byte ping-pong, 64 connections", "message", false, traffic("k/s", 1.1, "proxy CPU, µs per message", true)},
	{"tcp-download", "bulk download, 4 connections", "Gbit", false, traffic("Gbit/s", 1.2, "proxy CPU, ms per Gbit", false)},
	{"tcp-upload", "bulk upload, 4 connections", "Gbit", false, traffic("Gbit/s", 1.2, "proxy CPU, ms per Gbit", false)},
	{"tcp-conn", "new connections, 32 at a time", "connection", false, traffic("k/s", 1.1, "proxy CPU, µs per connection", true)},
	{"tcp-idle", "idle connections, 5,000", "", false, []Metric{
		{Key: Memory, Label: "RSS, kB per connection", Less: true, Most: 1},
		{Key: FDs, Label: "descriptors per connection", Less: true, Most: 2},
	}},
	{"hello-conn", "ClientHellos, 32 at a time, to any backend", "connection", false, append([]Metric{{Key: Rate, Label: "k/s"}}, paced...)},
	{"tls-conn", "ClientHellos, 32 at a time, by server name", "connection", false, append([]Metric{{Key: Rate, Label: "k/s"}}, paced...)},
	{"hello-paced", "ClientHellos, 2,000 a second, to any backend", "connection", false, paced},
	{"tls-paced", "ClientHellos, 2,000 a second, by server name", "connection", false, paced},
	{"tls-split", "the same, in two segments 1 ms apart", "connection", false, paced},
	{"udp-64", "UDP, 64 bytes, 64 flows", "datagram", false, append(traffic("k echoes/s", 1.5, "proxy CPU, µs per echo", true), Metric{Key: LostPerMil, Label: "lost, ‰", Less: true})},
	{"udp-1200", "UDP, 1,200 bytes, 64 flows", "datagram", false, append(traffic("k echoes/s", 1.5, "proxy CPU, µs per echo", true), Metric{Key: LostPerMil, Label: "lost, ‰", Less: true})},
	{Apply, "its rules", "", false, []Metric{
		{Key: Open, Label: "start of the program → all open, s", Less: true},
		{Key: OpenCPU, Label: "… CPU, s", Less: true},
		{Key: Change, Label: "a backend changed in the file → packets go to the new one, ms", Less: true},
		{Key: ChangeCPU, Label: "… CPU, ms", Less: true},
		{Key: RereadCPU, Label: "the file read again with nothing changed, CPU, ms", Less: true},
		{Key: FirstRules, Label: "rules that a connection's first packet is compared with", Less: true},
		{Key: LaterRules, Label: "… and each packet after it", Less: true},
	}},
}

// Addition is what one column takes more than another one, in which something is left out. The two are run in turn, so
// that it is a difference within a repetition.
type Addition struct{ Label, With, Without string }

// Additions are those that are shown.
var Additions = []Addition{
	{"32 at a time", "tls-conn", "hello-conn"},
	{"2,000 a second", "tls-paced", "hello-paced"},
}

// Contender is who was measured.
type Contender struct {
	Name    string `json:"name"`
	Label   string `json:"label"`
	Version string `json:"version,omitempty"`
	Subject bool   `json:"subject,omitempty"` // a gatehouse: compared with the peers
	Kernel  bool   `json:"kernel,omitempty"`  // it is the kernel that moves its packets
	// Router says that it balances nothing: it is a firewall, with NAT on the way out.
	Router bool `json:"router,omitempty"`
	// Frontends is how many a gatehouse whose packets the kernel moves has been given.
	Frontends int `json:"frontends,omitempty"`
}

// Sample is what one run of one contender gave.
type Sample struct {
	Column     string             `json:"column"`
	Contender  string             `json:"contender"`
	Repetition int                `json:"repetition"`
	Values     map[string]float64 `json:"values"`
	Errors     uint64             `json:"errors"`
	Complaint  string             `json:"complaint,omitempty"`
}

// Result is a whole run.
type Result struct {
	Date       string      `json:"date"`
	Kernel     string      `json:"kernel"`
	Cores      int         `json:"cores"`
	Processor  string      `json:"processor,omitempty"`
	Congestion string      `json:"congestion_control"`
	Window     string      `json:"window"`
	Repeat     int         `json:"repeat"`
	Contenders []Contender `json:"contenders"`
	Samples    []Sample    `json:"samples"`
}

// Spread is a median with the least and the greatest.
type Spread struct{ Median, Min, Max float64 }

// SpreadOf returns the median, least and greatest of values, and false if there are none.
func SpreadOf(values []float64) (Spread, bool) {
	if len(values) == 0 {
		return Spread{}, false
	}
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return Spread{Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1]}, true
}

// values returns what a contender's repetitions gave, by repetition.
func (r *Result) values(column, contender, key string) map[int]float64 {
	m := map[int]float64{}
	for _, s := range r.Samples {
		if v, ok := s.Values[key]; ok && s.Column == column && s.Contender == contender {
			m[s.Repetition] = v
		}
	}
	return m
}

// Value returns what a contender's repetitions gave in the middle.
func (r *Result) Value(column, contender, key string) (Spread, bool) {
	var v []float64
	for _, x := range r.values(column, contender, key) {
		v = append(v, x)
	}
	return SpreadOf(v)
}

// Ratio compares a contender with the better of others, within each repetition in which there was one of them.
func (r *Result) Ratio(column, contender string, m Metric, others ...string) (Spread, bool) {
	var ratios []float64
	best := map[int]float64{}
	for _, p := range others {
		for rep, v := range r.values(column, p, m.Key) {
			if old, ok := best[rep]; !ok || m.Less && v < old || !m.Less && v > old {
				best[rep] = v
			}
		}
	}
	for rep, v := range r.values(column, contender, m.Key) {
		if b, ok := best[rep]; ok && b > 0 {
			ratios = append(ratios, v/b)
		}
	}
	return SpreadOf(ratios)
}

func (r *Result) errors(column, contender string) uint64 {
	var n uint64
	for _, s := range r.Samples {
		if s.Column == column && s.Contender == contender {
			n += s.Errors
		}
	}
	return n
}

// columns returns the columns that some of these contenders were run in.
func (r *Result) columns(who []Contender) []Column {
	var out []Column
	for _, c := range Columns {
		if slices.ContainsFunc(r.Samples, func(s Sample) bool {
			return s.Column == c.Name && slices.ContainsFunc(who, func(w Contender) bool { return w.Name == s.Contender })
		}) {
			out = append(out, c)
		}
	}
	return out
}

// those returns the contenders of which something holds.
func (r *Result) those(holds func(Contender) bool) []Contender {
	return slices.DeleteFunc(slices.Clone(r.Contenders), func(c Contender) bool { return !holds(c) })
}

// cell shows a contender's median; "!" marks runs with errors, if only in the first line of the column.
func (r *Result) cell(col Column, contender, key string) string {
	text := "–"
	v, ok := r.Value(col.Name, contender, key)
	if ok {
		text = number(v.Median)
	}
	if r.errors(col.Name, contender) > 0 && (ok || key == col.Metrics[0].Key) {
		text += " !"
	}
	return text
}

// Main is the table of what was measured, as Markdown.
func (r *Result) Main() string {
	who := r.those(func(c Contender) bool { return !c.Kernel })
	if len(who) == 1 && who[0].Name == Routed && len(r.Contenders) > 1 {
		return "" // it is in the table of what the kernel moves
	}
	columns := r.columns(who)
	if len(columns) == 0 {
		return ""
	}
	head := heading(who)
	builds, compared := r.builds(), []Contender(nil)
	if slices.ContainsFunc(r.Contenders, func(c Contender) bool { return slices.Contains(peers, c.Name) }) {
		compared = builds
	}
	for _, c := range compared {
		head = append(head, c.Label+" : better of HAProxy, nginx", "target", "")
	}
	if len(builds) > 1 {
		head = append(head, builds[0].Label+" : "+builds[1].Label)
	}
	rows := [][]string{head}
	for _, col := range columns {
		label := col.Label
		for _, m := range col.Metrics {
			row := []string{label, m.Label}
			label = ""
			for _, c := range who {
				row = append(row, r.cell(col, c.Name, m.Key))
			}
			for _, c := range compared {
				row = append(row, r.verdict(col.Name, c.Name, m)...)
			}
			if len(builds) > 1 {
				ratio, ok := r.Ratio(col.Name, builds[0].Name, m, builds[1].Name)
				row = append(row, spread(ratio, ok))
			}
			rows = append(rows, row)
		}
	}
	return table(rows)
}

func heading(who []Contender) []string {
	head := []string{"", ""}
	for _, c := range who {
		head = append(head, c.Label)
	}
	return head
}

// builds are the contenders that are gatehouse's relay.
func (r *Result) builds() []Contender {
	return r.those(func(c Contender) bool { return c.Subject && !c.Kernel })
}

func spread(s Spread, ok bool) string {
	if !ok {
		return "–"
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", s.Median, s.Min, s.Max)
}

// verdict returns the ratio, the target and whether it was met.
func (r *Result) verdict(column, contender string, m Metric) []string {
	ratio, compared := r.Ratio(column, contender, m, peers...)
	value, measured := r.Value(column, contender, m.Key)
	out := []string{spread(ratio, compared), "", ""}
	sign := map[bool]string{false: "≥ ", true: "≤ "}[m.Less]
	var met bool
	switch {
	case m.Most != 0:
		out[1] = sign + number(m.Most)
		met, compared = math.Round(value.Median*100)/100 <= m.Most, measured // as it is shown
	case m.Ratio != 0:
		out[1] = sign + number(m.Ratio)
		met = m.Less && ratio.Median <= m.Ratio || !m.Less && ratio.Median >= m.Ratio
	default:
		return out
	}
	switch {
	case !compared:
	case met:
		out[2] = "met"
	default:
		out[2] = "**lost**"
	}
	return out
}

// unit is what CPU for an operation is given in.
func (c Column) unit() string {
	if c.Op == "Gbit" {
		return "ms per Gbit"
	}
	return "µs per " + c.Op
}

// Processors is the table of who used the processors, as Markdown.
func (r *Result) Processors() string {
	who := r.those(func(c Contender) bool { return c.Frontends <= 1 && !c.Router })
	rows := [][]string{heading(who)}
	for _, col := range r.columns(who) {
		if col.Op == "" {
			continue
		}
		unit := col.unit()
		label := col.Label
		for _, m := range []Metric{{Key: Client, Label: "client, " + unit}, {Key: Backend, Label: "backend, " + unit}, {Key: CPU, Label: "proxy, " + unit}, {Key: Rest, Label: "rest, " + unit}, {Key: Busy, Label: "all of it, " + unit}, {Key: IdleShare, Label: "machine idle, %"}} {
			row := []string{label, m.Label}
			label = ""
			for _, c := range who {
				row = append(row, r.cell(col, c.Name, m.Key))
			}
			rows = append(rows, row)
		}
	}
	if len(rows) == 1 {
		return ""
	}
	return table(rows)
}

// Added returns what a contender took more in one column than in the other, in each repetition that has both.
func (r *Result) Added(a Addition, contender, key string) (Spread, bool) {
	var more []float64
	without := r.values(a.Without, contender, key)
	for rep, with := range r.values(a.With, contender, key) {
		if v, ok := without[rep]; ok {
			more = append(more, with-v)
		}
	}
	return SpreadOf(more)
}

// Additions is the table of the differences, as Markdown; empty if there are none.
func (r *Result) Additions() string {
	var who []Contender
	for _, c := range r.Contenders {
		if slices.ContainsFunc(Additions, func(a Addition) bool { _, ok := r.Added(a, c.Name, P50); return ok }) {
			who = append(who, c)
		}
	}
	if len(who) == 0 {
		return ""
	}
	rows := [][]string{heading(who)}
	for _, a := range Additions {
		label := a.Label
		for _, m := range paced {
			row, measured := []string{label, m.Label}, false
			for _, c := range who {
				more, ok := r.Added(a, c.Name, m.Key)
				row, measured = append(row, signed(more, ok)), measured || ok
			}
			if measured {
				rows, label = append(rows, row), ""
			}
		}
	}
	return table(rows)
}

func signed(s Spread, ok bool) string {
	if !ok {
		return "–"
	}
	sign := func(v float64) string {
		text := number(v)
		switch {
		case text == "0" || text == "-0":
			return "0"
		case v > 0:
			return "+" + text
		}
		return text
	}
	return fmt.Sprintf("%s (%s to %s)", sign(s.Median), sign(s.Min), sign(s.Max))
}

// Faults lists runs with errors.
func (r *Result) Faults() []string {
	var out []string
	for _, s := range r.Samples {
		if s.Errors > 0 {
			out = append(out, fmt.Sprintf("%s, %s, repetition %d: %d errors: %s", s.Column, s.Contender, s.Repetition+1, s.Errors, s.Complaint))
		}
	}
	return out
}

// number shows three digits, as people write them.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 99.95:
		text := fmt.Sprintf("%.0f", v)
		for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
			text = text[:i] + "," + text[i:]
		}
		return text
	case a >= 9.995:
		return fmt.Sprintf("%.1f", v)
	case v == 0:
		return "0"
	default:
		return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", v), "0"), ".")
	}
}

// table lays rows out as Markdown that can also be read as it is.
func table(rows [][]string) string {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for n, row := range rows {
		for i, cell := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if i < 2 {
				b.WriteString("| " + cell + pad + " ")
			} else {
				b.WriteString("| " + pad + cell + " ")
			}
		}
		b.WriteString("|\n")
		if n == 0 {
			for i, w := range width {
				if i < 2 {
					b.WriteString("|" + strings.Repeat("-", w+2))
				} else {
					b.WriteString("|" + strings.Repeat("-", w+1) + ":")
				}
			}
			b.WriteString("|\n")
		}
	}
	return b.String()
}
