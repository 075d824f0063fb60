package fairness

import (
	"fmt"
	"html"
	"slices"
	"strings"
)

// Where things are in the picture.
const (
	pictureWidth = 860
	panelWidth   = 370
	panelHigh    = 110
	columnWidth  = 425
	rowHigh      = 210
	leftEdge     = 40
	topEdge      = 58
	barWidth     = 23
	nodeGap      = 26
	podGap       = 8
)

// Picture draws the shares as SVG: a panel for each way with a bar for each pod and protocol, next to the line of an
// equal share.
func Picture(spreads []Spread) string {
	var ways []string
	for _, s := range spreads {
		if !slices.Contains(ways, s.Way) {
			ways = append(ways, s.Way)
		}
	}
	height := topEdge + rowHigh*((len(ways)+2)/2) - 30 // the last panel is the legend
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="12" role="img" aria-labelledby="t d">
<title id="t">Shares of six pods on three nodes</title>
<desc id="d">%s</desc>
<style>
.bg { fill: #ffffff } .axis { stroke: #8c959f } .q { fill: #57606a; font-size: 11px } .v { fill: #57606a; font-size: 10px } .t { fill: #1f2328; font-weight: 600; font-size: 13px }
.a { fill: #2159b5 } .b { fill: #7ea6e0 } .wrong.a { fill: #b42318 } .wrong.b { fill: #e48f86 } .equal { stroke: #1a7f37; stroke-width: 1.6; stroke-dasharray: 5 4 } .te { fill: #1a7f37; font-size: 11px }
@media (prefers-color-scheme: dark) {
.bg { fill: #0d1117 } .axis { stroke: #6e7681 } .q, .v { fill: #9198a1 } .t { fill: #e6edf3 }
.a { fill: #6cb0ff } .b { fill: #3b6ea8 } .wrong.a { fill: #ff8a80 } .wrong.b { fill: #b0564e } .equal { stroke: #56d364 } .te { fill: #56d364 }
}
</style>
<rect class="bg" width="%d" height="%d" rx="10"/>
`, pictureWidth, height, html.EscapeString(describe(spreads)), pictureWidth, height)
	top := 0.0
	for _, s := range spreads {
		counts, _ := s.counts()
		for _, c := range counts {
			top = max(top, s.share(c))
		}
	}
	for i, way := range ways {
		fmt.Fprintf(&b, "<g transform=\"translate(%d %d)\">\n", leftEdge+i%2*columnWidth, topEdge+i/2*rowHigh)
		var of []Spread
		for _, s := range spreads {
			if s.Way == way {
				of = append(of, s)
			}
		}
		panel(&b, of, top)
		b.WriteString("</g>\n")
	}
	fmt.Fprintf(&b, "<g transform=\"translate(%d %d)\">\n", leftEdge+len(ways)%2*columnWidth, topEdge+len(ways)/2*rowHigh)
	legend(&b, spreads)
	b.WriteString("</g>\n</svg>\n")
	return b.String()
}

// describe is what the picture shows, in words.
func describe(spreads []Spread) string {
	var parts []string
	for _, s := range spreads {
		var shares []string
		for _, n := range s.Nodes {
			for _, c := range n.Pods {
				shares = append(shares, fmt.Sprintf("%.0f", 100*s.share(c)))
			}
		}
		parts = append(parts, fmt.Sprintf("%s, %s: %s %%.", s.Way, s.Protocol, strings.Join(shares, ", ")))
	}
	return strings.Join(parts, " ")
}

// panel draws one way, with the protocols beside each other.
func panel(b *strings.Builder, of []Spread, top float64) {
	first := of[0]
	fmt.Fprintf(b, "<text class=\"t\" y=\"-34\">%s</text>\n<text class=\"q\" y=\"-18\">pods see: %s</text>\n", html.EscapeString(first.Way), html.EscapeString(first.saw()))
	y := func(share float64) float64 { return panelHigh - share/top*panelHigh }
	counts, _ := first.counts()
	equal := y(1 / float64(len(counts)))
	x := 4
	for n, node := range first.Nodes {
		left := x
		for p := range node.Pods {
			for i, s := range of {
				share, class := s.share(s.Nodes[n].Pods[p]), string(rune('a'+i))
				if !s.Fair() {
					class += " wrong"
				}
				fmt.Fprintf(b, "<rect class=\"%s\" x=\"%d\" y=\"%.1f\" width=\"%d\" height=\"%.1f\"/>\n", class, x, y(share), barWidth, panelHigh-y(share))
				above := y(share)
				if above > equal && above < equal+12 {
					above = equal // not across the line
				}
				fmt.Fprintf(b, "<text class=\"v\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%.0f</text>\n", float64(x)+barWidth/2., above-3, 100*share)
				x += barWidth
			}
			x += podGap
		}
		x += nodeGap - podGap
		fmt.Fprintf(b, "<text class=\"q\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", float64(left+x-nodeGap)/2, panelHigh+16, html.EscapeString(node.Name))
	}
	fmt.Fprintf(b, "<path class=\"axis\" d=\"M0 %dH%d\"/>\n", panelHigh, panelWidth)
	fmt.Fprintf(b, "<path class=\"equal\" d=\"M0 %.1fH%d\"/>\n", equal, panelWidth)
}

// legend says what the bars and the line are.
func legend(b *strings.Builder, spreads []Spread) {
	var protocols []string
	for _, s := range spreads {
		if !slices.Contains(protocols, s.Protocol) {
			protocols = append(protocols, s.Protocol)
		}
	}
	b.WriteString("<text class=\"t\" y=\"-34\">Share of each pod, in percent</text>\n")
	y := -16
	for i, p := range protocols {
		class := string(rune('a' + i))
		fmt.Fprintf(b, "<rect class=\"%s\" y=\"%d\" width=\"12\" height=\"12\"/><rect class=\"%s wrong\" x=\"16\" y=\"%d\" width=\"12\" height=\"12\"/><text class=\"q\" x=\"36\" y=\"%d\">%s; red if the shares are not equal</text>\n", class, y, class, y, y+10, html.EscapeString(p))
		y += 20
	}
	var pods int
	var nodes []string
	if len(spreads) > 0 {
		for _, n := range spreads[0].Nodes {
			pods += len(n.Pods)
			nodes = append(nodes, n.Name)
		}
	}
	fmt.Fprintf(b, "<path class=\"equal\" d=\"M0 %dH28\"/><text class=\"te\" x=\"36\" y=\"%d\">an equal share: one of %d pods</text>\n", y+6, y+10, pods)
	fmt.Fprintf(b, "<text class=\"q\" y=\"%d\">%s: the nodes that the pods are on</text>\n", y+30, html.EscapeString(strings.Join(nodes, ", ")))
}
