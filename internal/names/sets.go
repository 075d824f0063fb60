package names

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

type key struct{ name, typ string }

// sets are the records of a zone while they are collected.
type sets struct {
	ttl uint32
	of  map[key]*edge.RecordSet
}

func newSets(ttl uint32, names int) sets { return sets{ttl, make(map[key]*edge.RecordSet, names)} }

// add takes a record, unless the name stands for another one (RFC 1034 §3.6.2:
// there is nothing beside a CNAME, and one of it).
func (s sets) add(name, typ, data, why string) bool {
	if _, alias := s.of[key{name, "CNAME"}]; alias {
		return false
	}
	set := s.of[key{name, typ}]
	if set == nil {
		set = &edge.RecordSet{Name: name, Type: typ, TTL: s.ttl, Why: why}
		s.of[key{name, typ}] = set
	}
	if !slices.Contains(set.Data, data) {
		set.Data = append(set.Data, data)
	}
	return true
}

// written takes what a file says, but for addresses.
func (s sets) written(r *config.Record) {
	switch why := r.Pos.String(); {
	case r.CNAME != "":
		if !s.has(r.Name) {
			s.add(r.Name, "CNAME", r.CNAME, why)
		}
	case r.SRV != nil:
		s.add(r.Name, "SRV", srvData(*r.SRV), why)
	case r.TXT != nil:
		for _, text := range r.TXT {
			s.add(r.Name, "TXT", quoted(text), why)
		}
	}
}

// has says whether a name has something that a file can say of it.
func (s sets) has(name string) bool {
	return slices.ContainsFunc([]string{"CNAME", "SRV", "TXT"}, func(typ string) bool { return s.of[key{name, typ}] != nil })
}

func (s sets) sorted() []edge.RecordSet {
	all := make([]edge.RecordSet, 0, len(s.of))
	for _, set := range s.of {
		slices.Sort(set.Data)
		all = append(all, *set)
	}
	slices.SortFunc(all, func(x, y edge.RecordSet) int {
		return cmp.Or(strings.Compare(x.Name, y.Name), strings.Compare(x.Type, y.Type))
	})
	return all
}

// quoted is a text as a zone file writes it (RFC 1035 §5.1): without quotes it
// would be several where it has spaces, and end where it has a semicolon.
func quoted(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(text) {
		switch {
		case c == '"', c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, "\\%03d", c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// srvData is a service as a zone file writes it (RFC 2782).
func srvData(v config.SRV) string {
	n := func(u uint16) string { return strconv.Itoa(int(u)) }
	return n(v.Priority) + " " + n(v.Weight) + " " + n(v.Port) + " " + v.Target
}
