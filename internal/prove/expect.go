package prove

import (
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// Verb is what a Statement claims.
type Verb uint8

// Can claims that all of it is reached, Cannot that nothing of it is, and Only
// that all of it is and nothing else.
const (
	Can Verb = iota
	Cannot
	Only
)

// Statement is one line of a file of expectations.
type Statement struct {
	Pos     edge.Pos
	Text    string // as it is written
	From    string // a zone; empty: each
	Sources []netip.Prefix
	Verb    Verb
	Targets []Target // none: with Cannot, anything; with Only, nothing
}

// Target is what is reached, or not. One of Self, Zone, Network and Name is set.
type Target struct {
	Text     string
	Self     bool
	Zone     string
	Network  netip.Prefix       // an address is a network of one
	Name     string             // of a Service ("shop/web") or a frontend
	Services []config.PortRange // nil: everything
}

// Parse reads expectations, which are lines such as
//
//	home can reach 10.0.0.10:6443, shop/web:80
//	internet cannot reach self
//	internet can reach only public/web:443    # a comment
//	home from 10.11.12.7 can reach self:ssh
//
// zones are those that there are. It returns every mistake, with its position.
func Parse(file string, data []byte, zones []string) ([]Statement, []edge.Problem) {
	var all []Statement
	var problems []edge.Problem
	line := 0
	for text := range strings.Lines(string(data)) {
		line++
		r := reader{file: file, line: line, zones: zones}
		if !utf8.ValidString(text) {
			r.problem(0, "it is not UTF-8 text", "write it with an editor, as text")
		} else {
			r.read(text)
		}
		problems = append(problems, r.problems...)
		if r.found && len(r.problems) == 0 {
			all = append(all, r.statement)
		}
	}
	return all, problems
}

// reader reads one line.
type reader struct {
	file      string
	line      int
	zones     []string
	words     []word
	end       int // behind the last word
	found     bool
	statement Statement
	problems  []edge.Problem
}

// word is a word or a comma, and where it begins.
type word struct {
	text string
	at   int
}

func (r *reader) problem(at int, what, remedy string) {
	r.problems = append(r.problems, edge.Problem{Pos: edge.Pos{File: r.file, Line: r.line, Col: at + 1}, What: what, Remedy: remedy})
}

// split makes words of a line, and leaves out a comment.
func (r *reader) split(text string) {
	begin := -1
	flush := func(to int) {
		if begin >= 0 {
			r.words, r.end = append(r.words, word{text[begin:to], begin}), to
		}
		begin = -1
	}
	for i, c := range text {
		switch {
		case c == '#' && begin < 0:
			return
		case strings.ContainsRune(" \t\r\n", c):
			flush(i)
		case c == ',':
			flush(i)
			r.words, r.end = append(r.words, word{",", i}), i+1
		case begin < 0:
			begin = i
		}
	}
	flush(len(text))
}

const form = "write ZONE can reach TARGET, ZONE cannot reach TARGET or ZONE can reach only TARGET, ..."

// next takes a word; the second result is false where there is none.
func (r *reader) next() (word, bool) {
	if len(r.words) == 0 {
		return word{at: r.end}, false
	}
	w := r.words[0]
	r.words = r.words[1:]
	return w, true
}

func (r *reader) read(text string) {
	r.split(text)
	from, any := r.next()
	if !any {
		return
	}
	r.found = true
	s := &r.statement
	s.Pos = edge.Pos{File: r.file, Line: r.line, Col: from.at + 1}
	s.Text = strings.Join(strings.Fields(text[from.at:r.end]), " ")
	if from.text != config.AnyZone {
		s.From = from.text
		if !slices.Contains(r.zones, from.text) {
			r.problem(from.at, "no zone named "+quoted(from.text), config.Suggest(from.text, "have", append(slices.Clone(r.zones), config.AnyZone)))
		}
	}
	verb, _ := r.next()
	if verb.text == "from" {
		at, _ := r.next()
		network, ok := networkOf(at.text)
		if !ok {
			r.problem(at.at, quoted(at.text)+" is neither an address nor a network", "write one such as 10.11.12.7 or 10.11.12.0/24")
		}
		s.Sources = []netip.Prefix{network}
		verb, _ = r.next()
	}
	switch verb.text {
	case "can":
	case "cannot":
		s.Verb = Cannot
	default:
		r.problem(verb.at, "here can or cannot is expected, not "+quoted(verb.text), form)
		return
	}
	if reach, _ := r.next(); reach.text != "reach" {
		r.problem(reach.at, "here reach is expected, not "+quoted(reach.text), form)
		return
	}
	if len(r.words) > 0 && r.words[0].text == "only" {
		only, _ := r.next()
		if s.Verb == Cannot {
			r.problem(only.at, "cannot reach only says nothing of the rest", "write can reach only and what may be reached")
		}
		s.Verb = Only
	}
	r.targets()
}

// mostTargets is how many one statement may have: what is to be proved of all of
// them together takes time.
const mostTargets = 100

// targets reads what is behind the verb.
func (r *reader) targets() {
	s := &r.statement
	if len(r.words) == 1 && (r.words[0].text == "anything" || r.words[0].text == "nothing") {
		w, _ := r.next()
		switch {
		case w.text == "anything" && s.Verb == Cannot:
		case w.text == "nothing" && s.Verb == Can:
			s.Verb = Cannot
		default:
			r.problem(w.at, quoted(w.text)+" does not fit here", "write cannot reach anything, can reach nothing, or targets")
		}
		return
	}
	for {
		if len(s.Targets) == mostTargets && len(r.words) > 0 {
			r.problem(r.words[0].at, "more targets than one statement can have", "write another line for them")
			return
		}
		w, any := r.next()
		if !any || w.text == "," {
			r.problem(w.at, "here a target is expected", "write one such as 10.0.0.10:6443, self:ssh, a zone, or a Service such as shop/web:80")
			return
		}
		if t, ok := r.target(w); ok {
			s.Targets = append(s.Targets, t)
		}
		comma, any := r.next()
		if !any {
			return
		}
		if comma.text != "," {
			r.problem(comma.at, "here a comma is expected, not "+quoted(comma.text), "write targets with commas between them")
			return
		}
	}
}

// target reads ADDRESS[:PORTS], [ADDRESS]:PORTS, self[:PORTS], ZONE[:PORTS] or
// NAME[:PORTS].
func (r *reader) target(w word) (Target, bool) {
	t := Target{Text: w.text}
	what, ports, hasPorts := w.text, "", false
	if _, ok := networkOf(what); !ok { // else it has no ports, and may have colons
		if i := strings.LastIndexByte(what, ':'); i >= 0 {
			what, ports, hasPorts = what[:i], what[i+1:], true
		}
	}
	if inner, ok := strings.CutPrefix(what, "["); ok {
		what = strings.TrimSuffix(inner, "]")
	}
	network, isNetwork := networkOf(what)
	switch {
	case isNetwork:
		t.Network = network
	case what == config.Self:
		t.Self = true
	case slices.Contains(r.zones, what):
		t.Zone = what
	case what == "" || strings.ContainsAny(what, ":[]"):
		r.problem(w.at, quoted(w.text)+" is no target", "write one such as 10.0.0.10:6443, [fd00::1]:22, self:ssh, a zone, or a Service such as shop/web:80")
		return t, false
	default:
		t.Name = what
	}
	if hasPorts {
		services, flt := config.ParseServices(ports)
		if flt != nil {
			r.problem(w.at+len(w.text)-len(ports), flt.What, flt.Remedy)
			return t, false
		}
		t.Services = services
	}
	return t, true
}

// networkOf reads an address or a network.
func networkOf(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err == nil && !p.Addr().Is4In6()
}

func quoted(s string) string {
	if s == "" {
		return "the end of the line"
	}
	return `"` + s + `"`
}
