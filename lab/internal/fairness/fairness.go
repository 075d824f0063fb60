// Package fairness is about how evenly connections are spread over pods: whether each got its share, the table and the
// picture of it. It makes no connection; cmd/fairness does.
package fairness

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// Spread is how connections over one way fell on the pods.
type Spread struct {
	Way      string         `json:"way"`
	Protocol string         `json:"protocol"`
	Nodes    []Node         `json:"nodes"`
	Clients  map[string]int `json:"clients"` // whom the pods took for the client, in words
	Said     string         `json:"said"`    // and what gatehouse had said of it
}

// Node is a node with the connections that each of its pods got.
type Node struct {
	Name string `json:"name"`
	Pods []int  `json:"pods"`
}

// counts are the connections of all pods, and their sum.
func (s Spread) counts() (counts []int, total int) {
	for _, n := range s.Nodes {
		for _, c := range n.Pods {
			counts, total = append(counts, c), total+c
		}
	}
	return counts, total
}

// share is which part of all connections a pod got.
func (s Spread) share(count int) float64 {
	_, total := s.counts()
	return float64(count) / float64(max(total, 1))
}

// ChiSquare returns how far counts are from equal shares, and the bound that equal shares exceed once in 10,000 times
// (Wilson and Hilferty's approximation of the quantile).
func ChiSquare(counts []int) (statistic, bound float64) {
	total := 0
	for _, n := range counts {
		total += n
	}
	expected := float64(total) / float64(len(counts))
	for _, n := range counts {
		statistic += (float64(n) - expected) * (float64(n) - expected) / expected
	}
	const z = 3.719
	k := float64(len(counts) - 1)
	return statistic, k * math.Pow(1-2/(9*k)+z*math.Sqrt(2/(9*k)), 3)
}

// Fair says whether the shares may be equal ones.
func (s Spread) Fair() bool {
	counts, total := s.counts()
	x, bound := ChiSquare(counts)
	return total > 0 && x <= bound
}

// saw is whom the pods took for the client: one, or the commonest first.
func (s Spread) saw() string {
	names := slices.SortedFunc(maps.Keys(s.Clients), func(a, b string) int {
		if d := s.Clients[b] - s.Clients[a]; d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	return strings.Join(names, ", ")
}

// Table is all of them as Markdown.
func Table(spreads []Spread) string {
	if len(spreads) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("| through | |")
	line := "|---|---|"
	for _, n := range spreads[0].Nodes {
		name := "the pod on "
		if len(n.Pods) > 1 {
			name = "each on "
		}
		fmt.Fprintf(&b, " %s%s |", name, n.Name)
		line += "---|"
	}
	b.WriteString(" chi-square | the pods saw | gatehouse had said |\n" + line + "---|---|---|\n")
	var before Spread
	for _, s := range spreads {
		way, said := s.Way, s.Said
		if way == before.Way { // it is in the row above
			way = ""
			if said == before.Said {
				said = ""
			}
		}
		before = s
		fmt.Fprintf(&b, "| %s | %s |", way, s.Protocol)
		for _, n := range s.Nodes {
			var shares []string
			for _, c := range n.Pods {
				shares = append(shares, fmt.Sprintf("%.1f", 100*s.share(c)))
			}
			fmt.Fprintf(&b, " %s %% |", strings.Join(shares, ", "))
		}
		counts, _ := s.counts()
		x, _ := ChiSquare(counts)
		text := fmt.Sprintf("%.1f", x)
		if !s.Fair() {
			text = "**" + text + "**"
		}
		fmt.Fprintf(&b, " %s | %s | %s |\n", text, s.saw(), said)
	}
	return b.String()
}
