package report

import (
	"fmt"
	"slices"
	"strings"
)

// What is aimed at where the kernel moves the packets: of the rate without a balancer, of the rate with one frontend,
// and of the rate of another firewall.
const (
	ofRouted     = 0.95
	ofOne        = 0.95
	ofMasquerade = 0.97 // of that of the shortest firewall
)

// rival is whom those are compared with: the better of them.
type rival struct {
	label string
	names []string
}

// Forwarded is the table of those whose packets the kernel moves, as Markdown; empty if there are none.
func (r *Result) Forwarded() string {
	who := r.those(func(c Contender) bool { return c.Kernel && !c.Router && c.Frontends <= 1 })
	columns := slices.DeleteFunc(r.columns(who), func(c Column) bool { return c.Op == "" })
	if len(columns) == 0 {
		return ""
	}
	subjects := slices.DeleteFunc(slices.Clone(who), func(c Contender) bool { return !c.Subject })
	who = append(r.those(func(c Contender) bool { return c.Name == Routed }), who...)
	rivals := slices.DeleteFunc([]rival{{"routed", []string{Routed}}, {"DNAT by hand", []string{ByHand}}, {"better of HAProxy, nginx", peers}}, func(o rival) bool {
		return !slices.ContainsFunc(r.Contenders, func(c Contender) bool { return slices.Contains(o.names, c.Name) })
	})
	head := heading(who)
	for _, c := range subjects {
		for _, o := range rivals {
			head = append(head, c.Label+" : "+o.label)
			if o.names[0] == Routed {
				head = append(head, "target", "")
			}
		}
	}
	rows := [][]string{head}
	for _, col := range columns {
		label := col.Label
		for _, m := range append(ofTraffic(col), Metric{Key: Busy, Label: "CPU, " + col.unit(), Less: true}) {
			row := []string{label, m.Label}
			label = ""
			for _, c := range who {
				row = append(row, r.cell(col, c.Name, m.Key))
			}
			for _, c := range subjects {
				for _, o := range rivals {
					ratio, ok := r.Ratio(col.Name, c.Name, m, o.names...)
					row = append(row, spread(ratio, ok))
					if o.names[0] == Routed {
						row = append(row, aim(m, ratio, ok, ofRouted)...)
					}
				}
			}
			rows = append(rows, row)
		}
	}
	return table(rows)
}

// Routers is the table of firewalls with NAT on the way out, as Markdown; empty if there are none.
func (r *Result) Routers() string {
	who := r.those(func(c Contender) bool { return c.Router })
	columns := r.columns(who)
	if len(columns) == 0 {
		return ""
	}
	subjects := slices.DeleteFunc(slices.Clone(who), func(c Contender) bool { return !c.Subject })
	who = append(r.those(func(c Contender) bool { return c.Name == Routed }), who...)
	head := heading(who)
	for _, c := range subjects {
		head = append(head, c.Label+" : by hand", "target", "")
	}
	rows := [][]string{head}
	for _, col := range columns {
		label := col.Label
		for _, m := range append(ofTraffic(col), Metric{Key: Busy, Label: "CPU, " + col.unit(), Less: true}) {
			row := []string{label, m.Label}
			label = ""
			for _, c := range who {
				row = append(row, r.cell(col, c.Name, m.Key))
			}
			for _, c := range subjects {
				ratio, ok := r.Ratio(col.Name, c.Name, m, Masquerade)
				row = append(append(row, spread(ratio, ok)), aim(m, ratio, ok, ofMasquerade)...)
			}
			rows = append(rows, row)
		}
	}
	return table(rows)
}

// ofTraffic are a column's metrics but that of a proxy's CPU: what the kernel does has no process.
func ofTraffic(col Column) []Metric {
	return slices.DeleteFunc(slices.Clone(col.Metrics), func(m Metric) bool { return m.Key == CPU })
}

// aim returns the target for a rate, and whether it was met.
func aim(m Metric, ratio Spread, ok bool, target float64) []string {
	switch {
	case m.Key != Rate:
		return []string{"", ""}
	case !ok:
		return []string{"≥ " + number(target), ""}
	case ratio.Median >= target:
		return []string{"≥ " + number(target), "met"}
	}
	return []string{"≥ " + number(target), "**lost**"}
}

// Sizes is the table of what more frontends take, as Markdown; empty if there are none. Each is compared with the same
// program that has one.
func (r *Result) Sizes() string {
	who := r.those(func(c Contender) bool { return c.Frontends > 0 })
	large := slices.DeleteFunc(slices.Clone(who), func(c Contender) bool { return c.Frontends == 1 })
	columns := r.columns(large)
	if len(columns) == 0 {
		columns = slices.DeleteFunc(r.columns(who), func(c Column) bool { return c.Name != Apply })
	}
	if len(columns) == 0 {
		return ""
	}
	head := heading(who)
	for _, c := range large {
		head = append(head, fmt.Sprintf("%s : 1", number(float64(c.Frontends))), "target", "")
	}
	rows := [][]string{head}
	for _, col := range columns {
		metrics := ofTraffic(col)
		if col.Name != Apply {
			metrics = append(metrics, Metric{Key: Busy, Label: "CPU, " + col.unit(), Less: true})
		}
		label := col.Label
		for _, m := range metrics {
			row := []string{label, m.Label}
			for _, c := range who {
				row = append(row, r.cell(col, c.Name, m.Key))
			}
			for _, c := range large {
				ratio, ok := r.Ratio(col.Name, c.Name, m, strings.TrimSuffix(c.Name, fmt.Sprintf("-%d", c.Frontends)))
				if col.Name == Apply {
					row = append(row, "", "", "") // it is about how long it takes, not how it compares
					continue
				}
				row = append(append(row, spread(ratio, ok)), aim(m, ratio, ok, ofOne)...)
			}
			rows, label = append(rows, row), ""
		}
	}
	return table(rows)
}
