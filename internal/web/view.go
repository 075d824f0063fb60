package web

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// How much of a kind the page shows at a time. What is more is counted, and
// found with the filter.
const (
	cardsShown    = 40
	mostCards     = 200
	rowsShown     = 50
	backendsShown = 10
	podsNamed     = 4
)

// wish is what somebody wants to see. It is comparable: those who wish the same
// share what is made for them.
type wish struct {
	words string // lower case, apart by single spaces; all of them are to be in a row
	cards int    // how many frontends
}

// Words are what the filter has.
func (w wish) Words() string { return w.words }

func wishOf(query url.Values) wish {
	w := wish{words: strings.Join(strings.Fields(strings.ToLower(query.Get("q"))), " "), cards: cardsShown}
	if len(w.words) > 100 {
		w.words = w.words[:100]
	}
	if query.Get("all") != "" {
		w.cards = mostCards
	}
	return w
}

// has says whether a row with these words is wished for.
func (w wish) has(row ...string) bool {
	if w.words == "" {
		return true
	}
	text := strings.ToLower(strings.Join(row, "\n"))
	for word := range strings.FieldsSeq(w.words) {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}

// view is what the page shows of a Status.
type view struct {
	status.Status
	Now      time.Time
	Wish     wish
	All      int // frontends there are
	Matching int // of them, those that are wished for
	Open     int // doors that are open
	Cards    []*card
	Doors    []status.Listener // shared by name
	Refused  section[desired.Exposure]
	Held     section[status.Address]
	Ways     section[edge.Route]
	Machines section[edge.Lease] // that have an address by DHCP
	Routing  bool                // this machine is something for the machines of its zones, beside what it opens
	Troubles section[edge.Problem]
	Wide     scene
	Narrow   scene
}

// section is the part of rows that is shown.
type section[T any] struct {
	Rows []T
	More int
	All  int
}

func firstOf[T any](rows []T, limit int, keep func(T) bool) section[T] {
	s := section[T]{All: len(rows)}
	for _, row := range rows {
		switch {
		case !keep(row):
		case len(s.Rows) < limit:
			s.Rows = append(s.Rows, row)
		default:
			s.More++
		}
	}
	return s
}

// card is a frontend on the page.
type card struct {
	status.Frontend
	ID        string
	Now       time.Time
	Addresses []string
	Notes     []string
	Reason    string // it is open, and something is missing
	Remedy    string
	Service   string
	Rows      []backendRow
	More      []more  // backends that are not among the Rows, by state
	Skyline   skyline // of many backends
	Chart     bool    // somebody has connected in the last minutes
	Even      string  // what the chart says, in words
	Uneven    bool
	Over      status.Duration
}

// more counts backends of a state.
type more struct {
	Count int
	State edge.BackendState
}

// backendRow is a backend on a card. The bars are percentages of the chart's width.
type backendRow struct {
	status.Backend
	GotBar, WantedBar string
	Wanted            float64  // 0 to 1
	Each, GotEach     float64  // what each of several pods is to get, and got, 0 to 1
	Splits            []string // where the bar of what it got is parted, pod by pod
	Named             []string // pods, without the namespace that is the Service's
	Unnamed           int      // further pods
}

// Wrong says whether something about it is not as it should be.
func (c *card) Wrong() bool {
	return c.Reason != "" || !c.Draining && len(c.Backends) == 0 || slices.ContainsFunc(c.Backends, func(b status.Backend) bool { return b.State == edge.Down })
}

// Failing says whether connections or packets got no backend.
func (c *card) Failing() bool {
	for _, n := range c.Failures {
		if n > 0 {
			return true
		}
	}
	return c.AcceptErrors > 0 || c.Packets != nil && c.Packets.Dropped > 0
}

// NAT says whether the kernel moves it.
func (c *card) NAT() bool { return c.DataPlane == edge.DataPlaneNAT }

// Choice says what the backend of a connection follows from, where that is more
// than chance.
func (c *card) Choice() string {
	switch c.Balance {
	case edge.BalanceLeastConnections:
		return "fewest connections"
	case edge.BalanceSource:
		return "client address"
	case edge.BalanceRandom:
	}
	return ""
}

// MoreBans is how many clients are banned that are not named.
func (c *card) MoreBans() int { return c.Bans - len(c.Banned) }

// viewOf makes what is wished for of a status.
func viewOf(s status.Status, w wish, now time.Time) view {
	v := view{Status: s, Now: now, Wish: w, Doors: s.Listeners}
	rows := map[rowKey]*desired.Exposure{}
	for i := range s.Exposures {
		e := &s.Exposures[i]
		rows[rowKey{e.Name, e.Zone, e.Protocol}] = e
		if e.Open {
			v.Open++
		}
	}
	ids := map[string]int{}
	for i := range s.Frontends {
		f := &s.Frontends[i]
		if f.Error != "" {
			continue // it is among those that are not open
		}
		v.All++
		if !w.has(wordsOf(f)...) {
			continue
		}
		v.Matching++
		c := &card{Frontend: *f, Now: now, ID: idOf(f)}
		if ids[c.ID]++; ids[c.ID] > 1 {
			c.ID += "-" + strconv.Itoa(ids[c.ID])
		}
		if e := rows[rowKey{f.Name, f.Zone, f.Protocol}]; e != nil && !f.Draining {
			c.Service, c.Notes, c.Reason, c.Remedy = e.Service, e.Notes, e.Reason, e.Remedy
			for _, a := range e.Addresses {
				c.Addresses = append(c.Addresses, a.String())
			}
		}
		v.Cards = append(v.Cards, c)
	}
	if len(v.Cards) > w.cards {
		// What is wrong is shown, whatever its name; the order is that of all.
		wrong := func(c *card) int {
			if c.Wrong() {
				return 0
			}
			return 1
		}
		place := map[*card]int{}
		for i, c := range v.Cards {
			place[c] = i
		}
		slices.SortStableFunc(v.Cards, func(a, b *card) int { return wrong(a) - wrong(b) })
		v.Cards = v.Cards[:w.cards]
		slices.SortFunc(v.Cards, func(a, b *card) int { return place[a] - place[b] })
	}
	for _, c := range v.Cards {
		c.compare()
	}
	v.Refused = firstOf(s.Closed(), rowsShown, func(e desired.Exposure) bool {
		return w.has(append([]string{e.Name, e.Zone, e.Reason, e.Why}, e.Hostnames...)...)
	})
	v.Held = firstOf(s.Addresses, rowsShown, func(a status.Address) bool {
		return w.has(append([]string{a.Addr.String(), a.Pool, a.Zone, string(a.State)}, a.Services...)...)
	})
	v.Routing = s.Firewall != nil || len(s.Links) > 0 || len(s.DHCP) > 0 || len(s.Advertised) > 0 || s.DNS != nil
	var leases []edge.Lease
	for _, z := range s.DHCP {
		leases = append(leases, z.Leases...)
	}
	v.Machines = firstOf(leases, rowsShown, func(l edge.Lease) bool { return w.has(l.Addr.String(), l.Hostname, l.Zone, l.MAC) })
	v.Ways = firstOf(s.Routes, rowsShown, func(r edge.Route) bool { return w.has(r.Dst.String(), r.Via.String(), r.Why) })
	v.Troubles = firstOf(s.Problems, rowsShown, func(edge.Problem) bool { return true })
	site := siteOf(s)
	v.Wide, v.Narrow = site.draw(wideScene), site.draw(narrowScene)
	return v
}

type rowKey struct {
	name, zone string
	protocol   edge.Protocol
}

// idOf is the same for a frontend as long as it is there, and needs no escaping.
func idOf(f *status.Frontend) string {
	h := fnv.New64a()
	for _, part := range []string{f.Name, f.Zone, string(cmp.Or(f.DataPlane, edge.DataPlaneProxy)), string(f.Protocol), f.Listen} {
		h.Write([]byte(part + "\x00"))
	}
	return "f" + strconv.FormatUint(h.Sum64(), 36)
}

// wordsOf are what a frontend is found by.
func wordsOf(f *status.Frontend) []string {
	words := []string{f.Name, f.Zone, string(f.Protocol) + " " + f.Listen, string(cmp.Or(f.DataPlane, edge.DataPlaneProxy))}
	words = append(words, f.Hostnames...)
	if f.Draining {
		words = append(words, "draining")
	}
	for _, b := range f.Backends {
		words = append(append(words, b.Addr, b.Node, string(b.State)), b.Pods...)
	}
	return words
}

// mostSplits is how many pods of a backend the bar tells apart.
const mostSplits = 20

// namespaceOf is what the names of a Service's own pods begin with.
func namespaceOf(service string) string {
	namespace, _, ok := strings.Cut(service, "/")
	if !ok {
		return ""
	}
	return namespace + "/"
}

// enough is how many connections there have to have been, before anything is
// said of how even they were.
const enough = 30

// compare makes the chart of wanted and got shares.
func (c *card) compare() {
	most, furthest := 0.0, 0.0
	total := uint64(0)
	rows := make([]backendRow, len(c.Backends))
	for i, b := range c.Backends {
		r := &rows[i]
		r.Backend, r.Wanted = b, b.Share
		if b.Got != nil {
			total += b.Got.Connections
			c.Over = max(c.Over, b.Got.Over)
			r.Wanted = b.Got.Wanted
			most = max(most, b.Got.Share)
		}
		most = max(most, r.Wanted)
		for _, pod := range b.Pods[:min(len(b.Pods), podsNamed)] {
			r.Named = append(r.Named, strings.TrimPrefix(pod, namespaceOf(c.Name)))
		}
		r.Unnamed = len(b.Pods) - len(r.Named)
	}
	c.Chart = total > 0
	for i := range rows {
		r := &rows[i]
		got := 0.0
		if r.Got != nil {
			got = r.Got.Share
			// How many standard deviations of chance it is off.
			if p, n := r.Wanted, float64(cmp.Or(r.Got.Of, total)); p > 0 && p < 1 {
				furthest = max(furthest, math.Abs(got-p)/math.Sqrt(p*(1-p)/n))
			} else if math.Abs(got-p) > 0 {
				furthest = math.Inf(1)
			}
		}
		r.GotBar, r.WantedBar = percentOf(got, most), percentOf(r.Wanted, most)
		if n := len(r.Pods); n > 1 {
			r.Each, r.GotEach = r.Wanted/float64(n), got/float64(n)
			for part := 1; part < n && n <= mostSplits; part++ {
				r.Splits = append(r.Splits, percentOf(got*float64(part)/float64(n), most))
			}
		}
	}
	switch {
	case !c.Chart || c.Draining:
	case c.Balance != edge.BalanceRandom:
		c.Even = "chosen by " + c.Choice() + ": shares need not be even"
	case total < enough:
		c.Even = "too few connections to say"
	case furthest > 4:
		c.Even, c.Uneven = "further off than chance explains", true
	default:
		c.Even = "as even as chance allows"
	}
	if len(rows) > backendsShown {
		c.Skyline = skylineOf(rows)
		// Those that are not up are named first.
		slices.SortStableFunc(rows, func(a, b backendRow) int { return rank(a.State) - rank(b.State) })
		count := map[edge.BackendState]int{}
		for _, r := range rows[backendsShown:] {
			count[r.State]++
		}
		for _, state := range states {
			if n := count[state]; n > 0 {
				c.More = append(c.More, more{n, state})
			}
		}
		rows = rows[:backendsShown]
	}
	c.Rows = rows
}

// states are those of backends, the worst first.
var states = []edge.BackendState{edge.Down, edge.Pending, status.Draining, edge.Up}

func rank(s edge.BackendState) int { return slices.Index(states, s) }

func percentOf(part, whole float64) string {
	if whole <= 0 {
		return "0%"
	}
	return strconv.FormatFloat(min(100*part/whole, 100), 'f', 1, 64) + "%"
}

// skyline is a chart of many backends side by side: how much each got, as part
// of what it should have.
type skyline struct {
	Got    string // a path, in a box of 100 by 40
	Wanted float64
}

const (
	skylineColumns = 100
	skylineTop     = 2 // times what was wanted
)

func skylineOf(rows []backendRow) skyline {
	columns := min(len(rows), skylineColumns)
	s := skyline{Wanted: 40 - 40.0/skylineTop}
	var path strings.Builder
	width := 100 / float64(columns)
	for i := range columns {
		wanted, got := 0.0, 0.0
		for _, r := range rows[i*len(rows)/columns : (i+1)*len(rows)/columns] {
			wanted += r.Wanted
			if r.Got != nil {
				got += r.Got.Share
			}
		}
		if got == 0 || wanted == 0 {
			continue
		}
		height := min(got/wanted, skylineTop) * 40 / skylineTop
		fmt.Fprintf(&path, "M%.2f 40v-%.1fh%.2fv%.1fz", float64(i)*width+0.1*width, height, 0.8*width, height)
	}
	s.Got = path.String()
	return s
}

// linkTo is the address of the page that explains.
func linkTo(to, from string) string {
	q := url.Values{"to": {to}}
	if from != "" {
		q.Set("from", from)
	}
	return "explain?" + q.Encode()
}

// askAbout is where something that a problem names is explained; empty: nowhere.
func askAbout(object string) string {
	if service, ok := strings.CutPrefix(object, "service/"); ok {
		return linkTo(service, "")
	}
	return ""
}

// ago prints how long something is: to the second, to the minute or to the hour.
func ago(d time.Duration) string {
	switch {
	case d < time.Minute:
		return status.Age(max(d, 0).Truncate(time.Second))
	default:
		return status.Age(d.Truncate(time.Minute))
	}
}

// perSecond prints a number of connections a second.
func perSecond(n float64) string {
	switch {
	case n == 0:
		return "0"
	case n < 0.1:
		return "<0.1"
	case n < 100:
		return strings.TrimSuffix(strconv.FormatFloat(n, 'f', 1, 64), ".0")
	}
	return strconv.FormatFloat(n, 'f', 0, 64)
}

func bytesPerSecond(n float64) string { return status.Bytes(uint64(max(n, 0))) + "/s" }

func percent(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }
