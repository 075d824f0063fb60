package web

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// landscape is what the picture shows: who comes from where, and goes where.
type landscape struct {
	zones  []*place
	nodes  []*place
	active uint64
	rates  bool // somebody knows how much comes a second
}

// place is a zone, or a node with what runs on it.
type place struct {
	name   string
	bytes  float64 // a second, both ways
	open   int     // of a zone: frontends
	closed int     // of a zone: what was asked for and is not open
	count  int     // nodes, where it stands for several
	pods   map[string]*leaf
}

// leaf is a pod, or an address.
type leaf struct {
	name  string
	state edge.BackendState
	bytes float64
}

func (p *place) leaves() []*leaf {
	return slices.SortedFunc(maps.Values(p.pods), func(a, b *leaf) int { return cmp.Compare(a.name, b.name) })
}

// down is how many of its pods are not up.
func (p *place) down() int {
	n := 0
	for _, l := range p.pods {
		if l.state == edge.Down {
			n++
		}
	}
	return n
}

const noZone = "clients" // of frontends that listen in no zone

func siteOf(s status.Status) *landscape {
	t := &landscape{}
	zones, nodes := map[string]*place{}, map[string]*place{}
	in := func(places map[string]*place, name string) *place {
		if places[name] == nil {
			places[name] = &place{name: name, count: 1, pods: map[string]*leaf{}}
		}
		return places[name]
	}
	for _, p := range s.Pools {
		in(zones, p.Zone)
	}
	for _, e := range s.Exposures {
		if z := in(zones, cmp.Or(e.Zone, noZone)); e.Open {
			z.open++
		} else {
			z.closed++
		}
	}
	for i := range s.Frontends {
		f := &s.Frontends[i]
		bytes := 0.0
		if f.Rates != nil {
			t.rates = true
			bytes = f.Rates.Received + f.Rates.Sent
		}
		t.active += f.Active
		in(zones, cmp.Or(f.Zone, noZone)).bytes += bytes
		parts := partsOf(f)
		for j, b := range f.Backends {
			host, _, err := net.SplitHostPort(b.Addr)
			if err != nil {
				host = b.Addr
			}
			node := in(nodes, cmp.Or(b.Node, host))
			node.bytes += parts[j] * bytes
			names := b.Pods
			if len(names) == 0 {
				names = []string{b.Addr}
			}
			for _, name := range names {
				l := node.pods[name]
				if l == nil {
					l = &leaf{name: name, state: b.State}
					node.pods[name] = l
				} else if rank(b.State) < rank(l.state) {
					l.state = b.State
				}
				l.bytes += parts[j] * bytes / float64(len(names))
			}
		}
	}
	byName := func(a, b *place) int { return cmp.Compare(a.name, b.name) }
	t.zones, t.nodes = slices.SortedFunc(maps.Values(zones), byName), slices.SortedFunc(maps.Values(nodes), byName)
	return t
}

// partsOf is which part of a frontend's bytes each backend has. The kernel counts
// them. The relay counts connections, by which the bytes are shared out.
func partsOf(f *status.Frontend) []float64 {
	parts := make([]float64, len(f.Backends))
	ways := []func(b *status.Backend) float64{
		func(b *status.Backend) float64 {
			if b.Rates == nil {
				return 0
			}
			return b.Rates.Received + b.Rates.Sent
		},
		func(b *status.Backend) float64 {
			if b.Rates == nil {
				return float64(b.Active)
			}
			return float64(b.Active) + b.Rates.Connections
		},
		func(b *status.Backend) float64 { return b.Share },
	}
	for _, weight := range ways {
		sum := 0.0
		for i := range f.Backends {
			parts[i] = weight(&f.Backends[i])
			sum += parts[i]
		}
		if sum > 0 {
			for i := range parts {
				parts[i] /= sum
			}
			return parts
		}
	}
	return parts
}

// shape is how much room a picture has, in pixels.
type shape struct {
	width                             float64
	zoneWidth, zoneHeight             float64
	edgeX, edgeWidth, nodeX           float64
	letters, nodeLetters              int // of a zone, of a node or pod
	mostZones, mostNodes              int
	dots, rows                        int // in a row; pods with their names
	head, row, pitch, size, gap, past float64
}

var (
	wideScene = shape{
		width: 1000, zoneWidth: 216, zoneHeight: 74, edgeX: 420, edgeWidth: 150, nodeX: 730, letters: 24, nodeLetters: 33,
		mostZones: 8, mostNodes: 8, dots: 15, rows: 4, head: 36, row: 20, pitch: 16, size: 11, gap: 16, past: 14,
	}
	narrowScene = shape{
		width: 380, zoneWidth: 108, zoneHeight: 66, edgeX: 158, edgeWidth: 62, nodeX: 264, letters: 14, nodeLetters: 14,
		mostZones: 8, mostNodes: 6, dots: 8, rows: 0, head: 32, row: 14, pitch: 12, size: 10, gap: 12, past: 12,
	}
)

// scene is a picture, ready to be drawn. Lengths are pixels.
type scene struct {
	Narrow        bool
	Width, Height float64
	Edge          box
	Zones, Nodes  []box
	Lines         []line
	Desc          string
}

// box is a zone, a node or the edge.
type box struct {
	X, Y, W, H, Middle float64
	Name, Text         string
	Bad                string // what is wrong with it
	Wrong              bool
	Pods               []pod
	More               string
	MoreY              float64
}

// pod is a mark in the box of a node.
type pod struct {
	X, Y, Size float64
	Class      string
	Name, Full string
	TextX      float64
}

// line is a way that bytes take.
type line struct {
	Path, Width string
	Class       string // "idle", "busy", "bad"
	X, Y        float64
	Stopped     bool // it ends at X, Y
	Moves       bool // dots run along it
	Says        string
}

func (t *landscape) draw(s shape) scene {
	zones, nodes := together(t.zones, s.mostZones), together(t.nodes, s.mostNodes)
	d := scene{Width: s.width, Narrow: s.rows == 0, Desc: t.says()}
	var heights []float64
	for _, n := range nodes {
		heights = append(heights, s.nodeHeight(n))
	}
	left, right := stack(len(zones), func(int) float64 { return s.zoneHeight }, s.gap), stack(len(nodes), func(i int) float64 { return heights[i] }, s.gap)
	inner := max(left, right, 140)
	d.Height = inner + 2*s.past
	d.Edge = box{X: s.edgeX, Y: s.past, W: s.edgeWidth, H: inner, Middle: s.past + inner/2, Name: "gatehouse", Text: count(t.active, "connection")}
	y := s.past + (inner-left)/2
	for _, z := range zones {
		b := box{X: 2, Y: y, W: s.zoneWidth, H: s.zoneHeight, Middle: y + s.zoneHeight/2, Name: short(z.name, s.letters), Text: strconv.Itoa(z.open) + " open"}
		if t.rates {
			b.Text += ", " + bytesPerSecond(z.bytes)
		}
		if d.Narrow && t.rates {
			b.Text = bytesPerSecond(z.bytes)
		}
		y += s.zoneHeight + s.gap
		from, to := b.X+b.W, s.edgeX
		at := b.Middle
		if z.closed > 0 {
			b.Bad, b.Wrong = strconv.Itoa(z.closed)+" not open", true
			if z.open > 0 {
				at -= 10
			}
			stop := b.Middle
			if z.open > 0 {
				stop += 16
			}
			d.Lines = append(d.Lines, line{
				Path: fmt.Sprintf("M%g %gH%g", from, stop, to-8), Width: "1.5", Class: "bad", Stopped: true, X: to - 8, Y: stop,
				Says: fmt.Sprintf("zone %s: %s", z.name, b.Bad),
			})
		}
		if z.open > 0 {
			d.Lines = append(d.Lines, t.line(from, at, to, at, z.bytes, "", fmt.Sprintf("zone %s: %s", z.name, b.Text)))
		}
		d.Zones = append(d.Zones, b)
	}
	y = s.past + (inner-right)/2
	for i, n := range nodes {
		b := box{X: s.nodeX, Y: y, W: s.width - s.nodeX - 2, H: heights[i], Middle: y + heights[i]/2, Name: short(n.name, s.nodeLetters)}
		if t.rates {
			b.Text = bytesPerSecond(n.bytes)
		}
		down, class := n.down(), ""
		if down > 0 {
			b.Bad, b.Wrong = fmt.Sprintf("%d of %d down", down, len(n.pods)), true
			if down == len(n.pods) {
				class = "bad"
			}
		}
		said := fmt.Sprintf("%s: %s %s", n.name, b.Text, b.Bad)
		// They leave the edge side by side, so that the busy ones can be told apart.
		leave := d.Edge.Middle + (float64(i)-float64(len(nodes)-1)/2)*min(16, (inner-20)/float64(len(nodes)))
		if d.Narrow || len(nodes) == 1 {
			leave = d.Edge.Middle + (b.Middle-d.Edge.Middle)*0.5
		}
		in := b.Middle
		if s.rows > 0 && len(n.pods) <= s.rows {
			in = b.Y + s.head + float64(len(n.pods))*s.row/2 - 2
		}
		d.Lines = append(d.Lines, t.line(s.edgeX+s.edgeWidth, leave, b.X, in, n.bytes, class, said))
		t.podsOf(&d, &b, n, s, in)
		y += heights[i] + s.gap
		d.Nodes = append(d.Nodes, b)
	}
	return d
}

// podsOf puts pods into the box of a node: with their names if they are few.
func (t *landscape) podsOf(d *scene, b *box, n *place, s shape, in float64) {
	leaves := n.leaves()
	if len(leaves) <= s.rows {
		for i, l := range leaves {
			p := pod{X: b.X + 40, Y: b.Y + s.head + float64(i)*s.row, Size: s.size, Class: classOf(l.state), Full: l.name + ": " + string(l.state)}
			p.Name, p.TextX = short(l.name, s.nodeLetters-5), p.X+s.size+7
			class := ""
			if l.state == edge.Down {
				class = "bad"
			}
			d.Lines = append(d.Lines, t.line(b.X, in, p.X, p.Y+s.size/2, l.bytes, class, p.Full))
			b.Pods = append(b.Pods, p)
		}
		return
	}
	// The worst first: they are seen, however many there are.
	slices.SortStableFunc(leaves, func(a, b *leaf) int { return rank(a.state) - rank(b.state) })
	most := s.dots * dotRows
	shown := leaves[:min(len(leaves), most)]
	for i, l := range shown {
		b.Pods = append(b.Pods, pod{
			X: b.X + 10 + float64(i%s.dots)*s.pitch, Y: b.Y + s.head + float64(i/s.dots)*s.pitch,
			Size: s.size, Class: classOf(l.state),
		})
		if !d.Narrow { // on a phone nothing hovers
			b.Pods[i].Full = l.name + ": " + string(l.state)
		}
	}
	if more := len(leaves) - len(shown); more > 0 {
		b.More, b.MoreY = "and "+strconv.Itoa(more)+" more", b.Y+b.H-8
	}
}

// dotRows is how many rows of pods a node has at most.
const dotRows = 3

func (s shape) nodeHeight(n *place) float64 {
	if len(n.pods) <= s.rows {
		return s.head + float64(len(n.pods))*s.row + 4
	}
	rows := min((len(n.pods)+s.dots-1)/s.dots, dotRows)
	h := s.head + float64(rows)*s.pitch + 8
	if len(n.pods) > s.dots*dotRows {
		h += 16
	}
	return h
}

func classOf(state edge.BackendState) string {
	if slices.Contains(states, state) {
		return string(state)
	}
	return string(edge.Pending)
}

func (t *landscape) line(x1, y1, x2, y2, bytes float64, class, says string) line {
	l := line{Width: thickness(bytes), Class: class, Says: says}
	bend := (x2 - x1) / 2
	l.Path = fmt.Sprintf("M%.4g %.4gC%.4g %.4g %.4g %.4g %.4g %.4g", x1, y1, x1+bend, y1, x2-bend, y2, x2, y2)
	if l.Class == "" {
		l.Class, l.Moves = "busy", bytes > moving
		if bytes < 1 {
			l.Class = "idle"
		}
	}
	return l
}

// moving is how many bytes a second a line has to have, so that it is thick enough
// for dots that run along it.
const moving = 700

// thickness is that of a line through which so many bytes go a second: 2 pixels
// more for each power of ten, from 100 on.
func thickness(bytes float64) string {
	return strconv.FormatFloat(min(1.5+2*math.Log10(1+bytes/100), 14), 'f', 1, 64)
}

// together makes one place of those that there is no room for.
func together(places []*place, most int) []*place {
	if len(places) <= most {
		return places
	}
	sorted := slices.Clone(places)
	trouble := func(p *place) int {
		if p.down() > 0 || p.closed > 0 {
			return 0
		}
		return 1
	}
	// Those with trouble are seen, and then those with traffic.
	slices.SortStableFunc(sorted, func(a, b *place) int {
		return cmp.Or(trouble(a)-trouble(b), cmp.Compare(b.bytes, a.bytes))
	})
	rest := &place{pods: map[string]*leaf{}}
	for _, p := range sorted[most-1:] {
		rest.bytes, rest.open, rest.closed, rest.count = rest.bytes+p.bytes, rest.open+p.open, rest.closed+p.closed, rest.count+p.count
		for name, l := range p.pods {
			rest.pods[p.name+" "+name] = l
		}
	}
	rest.name = strconv.Itoa(rest.count) + " more"
	kept := slices.SortedFunc(slices.Values(sorted[:most-1]), func(a, b *place) int { return cmp.Compare(a.name, b.name) })
	return append(kept, rest)
}

func stack(n int, height func(int) float64, gap float64) float64 {
	sum := -gap
	for i := range n {
		sum += height(i) + gap
	}
	return max(sum, 0)
}

// short cuts a name in its middle: the ends of pods' names differ.
func short(name string, letters int) string {
	r := []rune(name)
	if len(r) <= letters {
		return name
	}
	head := (letters - 1) / 2
	return string(r[:head]) + "…" + string(r[len(r)-(letters-1-head):])
}

func count(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.FormatUint(n, 10) + " " + what + "s"
}

// says is the picture in words.
func (t *landscape) says() string {
	var b strings.Builder
	b.WriteString("Clients come from ")
	list := func(places []*place, words func(*place) string) {
		const most = 12
		for i, p := range places {
			switch {
			case i == most:
				fmt.Fprintf(&b, " and %d more", len(places)-most)
			case i > most:
			default:
				if i > 0 {
					b.WriteString(", ")
				}
				b.WriteString(p.name + " (" + words(p) + ")")
			}
		}
		if len(places) == 0 {
			b.WriteString("nowhere yet")
		}
	}
	list(t.zones, func(z *place) string {
		text := strconv.Itoa(z.open) + " open"
		if z.closed > 0 {
			text += ", " + strconv.Itoa(z.closed) + " not open"
		}
		return text
	})
	b.WriteString(", through gatehouse, to ")
	list(t.nodes, func(n *place) string {
		text := strconv.Itoa(len(n.pods)) + " behind it"
		if down := n.down(); down > 0 {
			text += ", " + strconv.Itoa(down) + " down"
		}
		return text
	})
	b.WriteString(".")
	return b.String()
}
