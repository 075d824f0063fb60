package changes

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// Block is what would be different in a part of the configuration that opens no
// Service: zones, the firewall, a link, what a zone has of DHCP, DNS.
type Block struct {
	Name string `json:"name"` // "firewall", "link eth0", "dhcp of zone cluster"
	// Added and Removed are the policies of the firewall, and whole blocks.
	Added       []string     `json:"added,omitempty"`
	Removed     []string     `json:"removed,omitempty"`
	Differences []Difference `json:"differences,omitempty"`
}

// Blocks tells what differs between what a daemon goes by and what it is to go by.
// Where in the files it is written makes no difference.
func Blocks(was, now *config.Config) []Block {
	var all []Block
	note := func(b Block) {
		if len(b.Added)+len(b.Removed)+len(b.Differences) > 0 {
			all = append(all, b)
		}
	}
	note(zones(was.Zones, now.Zones))
	note(policies(was.Firewall, now.Firewall))
	each(note, "link ", was.Links, now.Links, func(l config.Link) string { return l.Name })
	each(note, "dhcp of zone ", was.DHCP, now.DHCP, func(d config.DHCP) string { return d.Zone })
	note(block("dns", reflect.ValueOf(was.DNS), reflect.ValueOf(now.DNS)))
	return all
}

// policies are compared in their order, which decides.
func policies(was, now *config.Firewall) Block {
	b := Block{Name: "firewall"}
	lines := func(f *config.Firewall) (all []string) {
		for i := range f.Policies {
			line := f.Policies[i].String()
			if f.Policies[i].Masquerade {
				line += ", masqueraded"
			}
			if !f.Policies[i].Allow {
				line += ", dropped"
			}
			all = append(all, line)
		}
		return all
	}
	switch {
	case was == nil && now == nil:
		return b
	case was == nil:
		b.Differences = append(b.Differences, Difference{What: "the block", To: "there: what no policy lets pass is dropped"})
		was = &config.Firewall{}
	case now == nil:
		b.Differences = append(b.Differences, Difference{What: "the block", From: "there: everything may pass that nobody else keeps"})
		now = &config.Firewall{}
	}
	before, after := lines(was), lines(now)
	b.Added, b.Removed = less(after, before), less(before, after)
	if len(b.Added)+len(b.Removed) == 0 && !slices.Equal(before, after) {
		b.Differences = append(b.Differences, Difference{What: "order of the policies", From: strings.Join(before, "; "), To: strings.Join(after, "; ")})
	}
	return b
}

// less are the items that others do not have, as often as they have them.
func less(items, others []string) (left []string) {
	count := map[string]int{}
	for _, o := range others {
		count[o]++
	}
	for _, i := range items {
		if count[i]--; count[i] < 0 {
			left = append(left, i)
		}
	}
	return left
}

// each compares blocks that have names.
func each[T any](note func(Block), title string, was, now []T, name func(T) string) {
	find := func(all []T, n string) (v reflect.Value) {
		for i := range all {
			if name(all[i]) == n {
				return reflect.ValueOf(&all[i])
			}
		}
		return reflect.ValueOf((*T)(nil))
	}
	for _, v := range was {
		note(block(title+name(v), reflect.ValueOf(&v), find(now, name(v))))
	}
	for _, v := range now {
		if old := find(was, name(v)); old.IsNil() {
			note(block(title+name(v), old, reflect.ValueOf(&v)))
		}
	}
}

// zones are compared by their interfaces, a difference for each zone.
func zones(was, now []edge.Zone) Block {
	b := Block{Name: "zones"}
	interfaces := map[string][2]string{}
	for side, all := range [][]edge.Zone{was, now} {
		for _, z := range all {
			both := interfaces[z.Name]
			both[side] = strings.Join(z.Interfaces, ", ")
			interfaces[z.Name] = both
		}
	}
	for _, name := range slices.Sorted(maps.Keys(interfaces)) {
		if both := interfaces[name]; both[0] != both[1] {
			b.Differences = append(b.Differences, Difference{What: name, From: both[0], To: both[1]})
		}
	}
	return b
}

// block compares the fields of two pointers to structs; nil: there is none.
func block(name string, was, now reflect.Value) Block {
	b := Block{Name: name}
	switch {
	case was.IsNil() && now.IsNil():
		return b
	case was.IsNil():
		b.Added = []string{text(now)}
		return b
	case now.IsNil():
		b.Removed = []string{text(was)}
		return b
	}
	was, now = was.Elem(), now.Elem()
	for i := range was.NumField() {
		f, from, to := was.Type().Field(i), was.Field(i), now.Field(i)
		if f.Type == positions {
			continue
		}
		what := lower(f.Name)
		if f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct && !speaks(f.Type.Elem()) {
			before, after := eachText(from), eachText(to)
			gone, come := less(before, after), less(after, before)
			for _, v := range gone {
				b.Differences = append(b.Differences, Difference{What: what, From: v})
			}
			for _, v := range come {
				b.Differences = append(b.Differences, Difference{What: what, To: v})
			}
			if len(gone)+len(come) == 0 && !slices.Equal(before, after) {
				b.Differences = append(b.Differences, Difference{What: what, From: strings.Join(before, "; "), To: strings.Join(after, "; ")})
			}
			continue
		}
		words := text
		if f.Type.Kind() == reflect.Bool {
			words = func(v reflect.Value) string { return fmt.Sprint(v.Bool()) }
		}
		if from, to := words(from), words(to); from != to {
			b.Differences = append(b.Differences, Difference{What: what, From: from, To: to})
		}
	}
	return b
}

var (
	positions = reflect.TypeFor[edge.Pos]()
	stringer  = reflect.TypeFor[fmt.Stringer]()
)

func speaks(t reflect.Type) bool { return t.Implements(stringer) }

func lower(name string) string {
	if upper := strings.ToUpper(name); name == upper { // MTU, DNS
		return strings.ToLower(name)
	}
	r, size := utf8.DecodeRuneInString(name)
	return string(unicode.ToLower(r)) + name[size:]
}

func eachText(v reflect.Value) (all []string) {
	for i := range v.Len() {
		all = append(all, text(v.Index(i)))
	}
	return all
}

// text is a value in words; empty if it is that of a field that is not written.
func text(v reflect.Value) string {
	switch {
	case v.Kind() == reflect.Pointer && v.IsNil(), v.Kind() == reflect.Slice && v.IsNil(), v.Kind() != reflect.Slice && v.IsZero():
		return ""
	case v.Type() == reflect.TypeFor[time.Duration]():
		return status.Duration(v.Int()).String()
	case speaks(v.Type()):
		return fmt.Sprint(v.Interface())
	}
	return compound(v)
}

// compound is what consists of others.
func compound(v reflect.Value) string {
	kind := v.Kind()
	var all []string
	if kind == reflect.Pointer {
		if inner := text(v.Elem()); inner != "" {
			return inner
		}
		return "there"
	}
	if kind == reflect.Slice {
		if v.Len() == 0 {
			return "[]"
		}
		return strings.Join(eachText(v), ", ")
	}
	if kind == reflect.Map {
		for _, k := range v.MapKeys() {
			all = append(all, fmt.Sprint(k.Interface())+": "+text(v.MapIndex(k)))
		}
		slices.Sort(all)
		return strings.Join(all, ", ")
	}
	if kind == reflect.Struct {
		for i := range v.NumField() {
			if v.Type().Field(i).Type == positions {
				continue
			}
			if t := text(v.Field(i)); t != "" {
				all = append(all, lower(v.Type().Field(i).Name)+" "+t)
			}
		}
		return strings.Join(all, " ")
	}
	return fmt.Sprint(v.Interface())
}
