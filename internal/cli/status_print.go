package cli

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// tableHead begins the table of frontends, and the line that is its head.
const tableHead = "FRONTEND"

// picture is how a status is drawn.
type picture struct {
	palette
	bars bool // of shares
	now  time.Time
}

func printStatus(out io.Writer, s status.Status, now time.Time, colour bool) error {
	return picture{palette: palette(colour), now: now}.print(out, s)
}

// print says first what is wrong.
func (p picture) print(out io.Writer, s status.Status) error {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	readiness := p.in(good, "ready")
	if !s.Ready {
		readiness = p.in(bad, "waiting for "+strings.Join(s.NotReady, ", "))
	}
	add("gatehouse      %s, up %s, version %s", readiness, status.Age(p.now.Sub(s.StartedAt)), s.Version)
	troubles := p.problems(s)
	if len(troubles) > 0 {
		lines = append(append(append(lines, ""), troubles...), "")
	}
	configured := fmt.Sprintf("%s, read %s ago", strings.Join(s.Config.Files, ", "), status.Age(p.now.Sub(s.Config.LoadedAt)))
	if !s.Config.Current {
		configured += p.in(bad, "; what is on disk is bad, and does not run")
	}
	add("configuration  %s", configured)
	if t := s.Config.Trial; t != nil {
		add("               %s", p.in(bad, t.Says(p.now)))
	}
	if c := s.Cluster; c != nil {
		text := c.Says(p.now)
		if !c.Well() {
			text = p.in(bad, text)
		}
		add("cluster        %s", text)
	}
	lines = append(lines, p.router(s.Router)...)
	lines = append(lines, p.addresses(s)...)
	if c := s.Conntrack; c != nil {
		usage := fmt.Sprintf("%d of %d entries", c.Entries, c.Max)
		if c.Full() {
			usage = p.in(bad, usage)
		}
		add("conntrack      %s", usage)
	}
	lines = append(lines, titled("pod routes", s.Routes, func(r edge.Route) string { return fmt.Sprintf("%s via %s (%s)", r.Dst, r.Via, r.Why) })...)
	lines = append(append(lines, ""), p.frontends(s)...)
	_, err := io.WriteString(out, harmless(strings.Join(lines, "\n"))+"\n")
	return err
}

// problems are what somebody has to look at: what the daemon calls a problem,
// what is not open, and which backends are not up.
func (p picture) problems(s status.Status) []string {
	var lines []string
	closed := s.Closed()
	said := reasonsOf(closed)
	for _, problem := range s.Problems {
		if !said.in(problem) {
			lines = append(lines, "  "+problem.String())
		}
	}
	if len(lines) > 0 {
		lines = slices.Insert(lines, 0, p.in(bad, "Problems:"))
	}
	if len(closed) > 0 {
		lines = append(lines, p.in(bad, "Not open:"))
	}
	for _, e := range closed {
		lines = append(lines, "  "+notOpen(e))
	}
	title := p.in(bad, "Down:")
	for _, f := range s.Frontends {
		for _, b := range f.Backends {
			if b.State == edge.Down && !f.Draining {
				if title != "" {
					lines, title = append(lines, title), ""
				}
				lines = append(lines, fmt.Sprintf("  %s of %s%s: %s", named(b), f.Name, inZone(f.Zone), p.health(b)))
			}
		}
	}
	return lines
}

// reasons are why rows are closed, or lack something, by their length: problems
// end with them. There may be ten thousand of both.
type reasons map[int]map[string]bool

func reasonsOf(rows []desired.Exposure) reasons {
	r := reasons{}
	for i := range rows {
		reason := rows[i].Reason
		if reason == "" {
			continue
		}
		if r[len(reason)] == nil {
			r[len(reason)] = map[string]bool{}
		}
		r[len(reason)][reason] = true
	}
	return r
}

// in says whether a problem says the same as a row.
func (r reasons) in(p edge.Problem) bool {
	for length, same := range r {
		if length <= len(p.What) && same[p.What[len(p.What)-length:]] {
			return true
		}
	}
	return false
}

// notOpen says which row is not open, why, and what to do.
func notOpen(e desired.Exposure) string {
	text := titleOf(e) + ": " + e.Reason
	if desired.NamesZone(e.Reason, e.Zone) {
		text = e.Name + ": " + e.Reason
	}
	if e.Remedy != "" {
		text += "; " + e.Remedy
	}
	return text
}

func inZone(zone string) string {
	if zone == "" {
		return ""
	}
	return " in zone " + zone
}

func named(b status.Backend) string {
	if b.Node == "" {
		return b.Addr
	}
	return b.Addr + " " + b.Node
}

// health says since when a backend is what it is, and why.
func (p picture) health(b status.Backend) string {
	text := string(b.State)
	if !b.Since.IsZero() {
		text += " for " + status.Age(max(p.now.Sub(b.Since), 0))
	}
	if b.Error != "" {
		text += ": " + b.Error
	}
	return text
}

// titled is one line for each of several, the first of which has the title.
func titled[T any](title string, all []T, line func(T) string) []string {
	var lines []string
	for _, one := range all {
		lines = append(lines, fmt.Sprintf("%-13s  %s", title, line(one)))
		title = ""
	}
	return lines
}

// addresses say how much of the pools is used, and who has what of them.
func (p picture) addresses(s status.Status) []string {
	pools := titled("pools", s.Pools, func(pool status.Pool) string {
		text := pool.Says()
		if pool.Free == 0 {
			text = p.in(bad, text)
		}
		return fmt.Sprintf("%s in zone %s: %s", pool.Name, pool.Zone, text)
	})
	return append(pools, titled("addresses", s.Addresses, func(a status.Address) string {
		on := ""
		if a.Device != "" {
			on = " on " + a.Device
		}
		return fmt.Sprintf("%s%s for %s: %s", a.Addr, on, strings.Join(a.Services, ", "), p.in(inkOfAddress(a.State), a.Says(p.now)))
	})...)
}

func inkOfAddress(s status.AddressState) ink {
	switch s {
	case status.AddressReady:
		return good
	case status.AddressConflict, status.AddressFailed:
		return bad
	case status.AddressPending, status.AddressHeld:
		return quiet
	}
	return plain
}

// frontends are what is open, and what was and has connections left, by zone: a
// line for each frontend, and below it one for each backend.
func (p picture) frontends(s status.Status) []string {
	var table columns
	heads := []string{tableHead, "STATE", "WANTED", "GOT", "NOW", "NEW/S", "TOTAL", "IN", "OUT", "IN/S", "OUT/S"}
	for i, head := range heads {
		heads[i] = p.in(strong, head)
	}
	table.add(heads...)
	var zones []string
	note := func(zone string) {
		if !slices.Contains(zones, zone) {
			zones = append(zones, zone)
		}
	}
	open := slices.DeleteFunc(slices.Clone(s.Frontends), func(f status.Frontend) bool { return f.Error != "" }) // those are told of as not open
	listeners := slices.DeleteFunc(slices.Clone(s.Listeners), func(l status.Listener) bool { return l.Error != "" })
	for _, f := range open {
		note(f.Zone)
	}
	for _, l := range listeners {
		note(l.Zone)
	}
	if len(zones) == 0 {
		return []string{"Nothing is open."}
	}
	for _, zone := range zones {
		indent := ""
		if len(zones) > 1 || zone != "" {
			table.across(p.in(strong, cmp.Or(zone, "in no zone")))
			indent = "  "
		}
		for _, l := range listeners {
			if l.Zone == zone {
				p.listener(&table, indent, l)
			}
		}
		for _, f := range open {
			if f.Zone == zone {
				p.frontend(&table, indent, f)
			}
		}
	}
	return table.lines()
}

func (p picture) listener(table *columns, indent string, l status.Listener) {
	c, state, notes := p.door(l.Drain)
	table.add(indent+"(by server name) "+doorOf(l.Protocol, l.Listen), p.in(c, state), "", "",
		number(l.Active), "", number(l.Accepted), status.Bytes(l.Received), status.Bytes(l.Sent), "", "")
	if l.Waiting > 0 {
		notes = append(notes, fmt.Sprintf("%d waiting for a name", l.Waiting))
	}
	p.notes(table, indent, append(notes, troubles(l.Traffic)...))
}

func (p picture) frontend(table *columns, indent string, f status.Frontend) {
	c, state, notes := p.door(f.Drain)
	name := f.Name + " " + doorOf(f.Protocol, f.Listen)
	if f.DataPlane == edge.DataPlaneNAT {
		name += " nat"
	}
	perSecond := rates(f.Rates)
	table.add(indent+name, p.in(c, state), "", "", number(f.Active), perSecond[0], number(f.Accepted),
		status.Bytes(f.Received), status.Bytes(f.Sent), perSecond[1], perSecond[2])
	for _, host := range f.Hostnames {
		table.across(indent + "  " + host)
	}
	probed := func(b status.Backend) bool { return !b.Unprobed }
	stays := slices.DeleteFunc(slices.Clone(f.Backends), func(b status.Backend) bool { return b.Draining })
	unprobed := len(stays) > 0 && !slices.ContainsFunc(stays, probed)
	if len(f.Backends) == 0 && !f.Draining {
		notes = append(notes, "no backend")
	}
	if unprobed && !f.Draining {
		notes = append(notes, "backends are not checked")
	}
	if f.Bans > 0 {
		notes = append(notes, p.banned(f))
	}
	p.notes(table, indent, append(notes, troubles(f.Traffic)...))
	all := allGot(f)
	for _, b := range f.Backends {
		p.backend(table, indent+"  ", b, f, unprobed, all)
	}
}

// backend is the row of one of them; all is how many connections they got lately,
// all together.
func (p picture) backend(table *columns, indent string, b status.Backend, f status.Frontend, unprobed bool, all float64) {
	in, sent := "", "" // the relay counts them by frontend
	perSecond := rates(b.Rates)
	if f.DataPlane == edge.DataPlaneNAT {
		in, sent = status.Bytes(b.Received), status.Bytes(b.Sent)
	} else {
		perSecond[1], perSecond[2] = "", ""
	}
	wanted, got := percent(b.Share), ""
	if b.Got != nil {
		got = percent(b.Got.Share)
		if isUnfair(f.Balance, b.Got, all) {
			got = p.in(bad, got)
		}
	}
	if p.bars && b.Got != nil {
		got = bar(b.Got.Share, b.Got.Wanted) + " " + got
	}
	table.add(indent+named(b), p.in(inkOf(b.State), string(b.State)), wanted, got, number(b.Active), perSecond[0], number(b.Total), in, sent, perSecond[1], perSecond[2])
	var notes []string
	switch {
	case b.Draining:
		notes = append(notes, "its last connections: "+b.Ends(p.now))
	case b.State != edge.Up || b.Error != "":
		notes = append(notes, p.health(b))
	case b.Unprobed && !unprobed:
		notes = append(notes, "not checked")
	}
	if b.Got != nil && (isUnfair(f.Balance, b.Got, all) || math.Abs(b.Got.Wanted-b.Share) > 0.05) {
		notes = append(notes, fmt.Sprintf("it got %s in the last %s, and should have had %s", percent(b.Got.Share), b.Got.Over, percent(b.Got.Wanted)))
	}
	if b.Failures > 0 {
		notes = append(notes, fmt.Sprintf("%d failed", b.Failures))
	}
	p.notes(table, indent, notes)
}

// banned names some of the clients that are turned away: those whose time is over
// first.
func (p picture) banned(f status.Frontend) string {
	const most = 3
	var named []string
	for _, b := range f.Banned[:min(len(f.Banned), most)] {
		named = append(named, b.Client+" for "+status.Age(max(b.Until.Sub(p.now), 0))+" more")
	}
	if more := f.Bans - len(named); more > 0 && len(named) > 0 {
		named = append(named, strconv.Itoa(more)+" others")
	}
	if len(named) == 0 {
		return fmt.Sprintf("%d clients are banned", f.Bans)
	}
	return "banned: " + strings.Join(named, ", ")
}

// allGot is how many connections all backends got lately.
func allGot(f status.Frontend) float64 {
	all := 0.0
	for i := range f.Backends {
		if g := f.Backends[i].Got; g != nil {
			all += float64(g.Connections)
		}
	}
	return all
}

// isUnfair says whether a backend has got clearly more or less than it should
// have: by four times what chance does to so many connections.
func isUnfair(by edge.Balance, g *status.Got, all float64) bool {
	if g.Of > 0 {
		all = float64(g.Of)
	}
	if by != edge.BalanceRandom && by != "" {
		return false // it follows the clients, or what the backends are busy with
	}
	return all > 0 && math.Abs(g.Share-g.Wanted) > 0.02+4*math.Sqrt(g.Wanted*(1-g.Wanted)/all)
}

// notes are what is to be known beyond the numbers, in a line of their own.
func (p picture) notes(table *columns, indent string, notes []string) {
	if len(notes) > 0 {
		table.across(indent + "  " + p.in(quiet, strings.Join(notes, ", ")))
	}
}

// bar is a share as a picture, ten cells wide, with a stroke at what is wanted.
func bar(got, wanted float64) string {
	const room = 10
	cells := []rune(strings.Repeat("█", int(math.Round(min(got, 1)*room))) + strings.Repeat("·", room))[:room]
	if at := int(math.Round(min(wanted, 1) * room)); at > 0 {
		if cells[at-1] == '█' {
			cells[at-1] = '▌'
		} else {
			cells[at-1] = '|'
		}
	}
	return string(cells)
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

func percent(share float64) string { return fmt.Sprintf("%.1f%%", 100*share) }

// rates are connections, bytes from clients and bytes to them, a second. What is
// not known yet is empty.
func rates(r *status.Rates) [3]string {
	if r == nil {
		return [3]string{}
	}
	connections := fmt.Sprintf("%.1f", r.Connections)
	if r.Connections >= 100 {
		connections = fmt.Sprintf("%.0f", r.Connections)
	}
	return [3]string{connections, status.Bytes(uint64(r.Received)), status.Bytes(uint64(r.Sent))}
}

func doorOf(protocol edge.Protocol, listen string) string {
	if protocol == edge.TCP {
		return listen
	}
	return listen + "/" + string(protocol)
}

func (p picture) door(d status.Drain) (c ink, state string, notes []string) {
	if d.Draining {
		return quiet, "draining", []string{"its last connections: " + d.Ends(p.now)}
	}
	return plain, "open", nil
}

func inkOf(s edge.BackendState) ink {
	switch s {
	case edge.Up:
		return good
	case edge.Down:
		return bad
	case edge.Pending, status.Draining:
		return quiet
	}
	return plain
}

// troubles are the connections that came to nothing: "4 no backend".
func troubles(t status.Traffic) []string {
	var texts []string
	for _, reason := range slices.Sorted(maps.Keys(t.Failures)) {
		if n := t.Failures[reason]; n > 0 {
			texts = append(texts, fmt.Sprintf("%d %s", n, strings.ReplaceAll(reason, "_", " ")))
		}
	}
	if t.AcceptErrors > 0 {
		texts = append(texts, fmt.Sprintf("%d not accepted", t.AcceptErrors))
	}
	return texts
}
