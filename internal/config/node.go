package config

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"e13.dev/gatehouse/internal/edge"
)

// A value is a node of a file, with the path that leads to it. Every way to
// read one reports what is wrong with it, where it stands.
type value struct {
	file *file
	node *yaml.Node // nil: absent
	path string
	spec *field // nil for elements of lists and maps
}

func (v value) absent() bool { return v.node == nil }

func (v value) pos() edge.Pos {
	return edge.Pos{File: v.file.name, Line: max(v.node.Line, 1), Col: max(v.node.Column, 1)}
}

func (v value) problem(what, remedy string) {
	v.file.problem(v.pos(), v.path, what, remedy)
}

func (v value) fault(f *Fault) { v.problem(f.What, f.Remedy) }

// wrongKind says that something else was expected, with the example of the
// field, or the one given for elements of lists and maps.
func (v value) wrongKind(want, example string) {
	var remedy string
	switch {
	case v.spec != nil:
		remedy = v.spec.remedy()
	case example != "":
		remedy = "write " + example
	}
	switch {
	case v.node.Kind == yaml.AliasNode:
		v.problem("aliases (*"+v.node.Value+") are not supported", "write the value out")
	case v.node.Kind == yaml.ScalarNode && v.node.Tag == "!!null":
		switch {
		case v.spec == nil && remedy == "":
			remedy = "write one, or remove it"
		case v.spec == nil:
			remedy += ", or remove it"
		case v.spec.def != required:
			remedy += ", or leave it out"
		}
		v.problem("has no value", remedy)
	default:
		v.problem("must be "+want+", not "+describe(v.node), remedy)
	}
}

// describe says in words what a node is.
func describe(n *yaml.Node) string {
	if n.Style&yaml.TaggedStyle != 0 {
		return "a value with the tag " + quote(n.Tag)
	}
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "a map"
	default:
	}
	switch n.Tag {
	case "!!int", "!!float":
		return "the number " + quote(n.Value)
	case "!!bool":
		return n.Value
	case "!!timestamp":
		return "the date " + quote(n.Value)
	case "!!null":
		return "empty"
	}
	return "the text " + quote(n.Value)
}

// scalar returns the text of a scalar with that tag.
func (v value) scalar(tag, want string) (string, bool) {
	if v.absent() {
		return "", false
	}
	if v.node.Kind != yaml.ScalarNode || v.node.Tag != tag || v.node.Style&yaml.TaggedStyle != 0 {
		v.wrongKind(want, "")
		return "", false
	}
	return v.node.Value, true
}

func (v value) text() (string, bool) {
	if v.absent() {
		return "", false
	}
	words := v.spec == nil || v.spec.typ == "text"
	if n := v.node; words && n.Kind == yaml.ScalarNode && n.Style == 0 && slices.Contains([]string{"!!int", "!!float", "!!bool", "!!timestamp"}, n.Tag) {
		v.problem("must be text, not "+describe(n), "put it in quotes: "+quote(n.Value))
		return "", false
	}
	return v.scalar("!!str", "text")
}

// checked reads text that a function finds no fault with. Absent text leaves
// dst alone.
func (v value) checked(dst *string, check func(string) *Fault) {
	s, ok := v.text()
	if !ok {
		return
	}
	if f := check(s); f != nil {
		v.fault(f)
		return
	}
	*dst = s
}

// parsed reads text with a parser. Absent text leaves dst alone.
func parsed[T any](v value, dst *T, parse func(string) (T, *Fault)) {
	s, ok := v.text()
	if !ok {
		return
	}
	t, f := parse(s)
	if f != nil {
		v.fault(f)
		return
	}
	*dst = t
}

func (v value) bool(dst *bool) {
	if !v.absent() && v.node.Kind == yaml.ScalarNode && v.node.Tag == "!!str" {
		if f := oldBool(v.node.Value); f != nil {
			v.fault(f)
			return
		}
	}
	if s, ok := v.scalar("!!bool", "true or false"); ok {
		*dst = strings.EqualFold(s, "true")
	}
}

// int reads a whole number from lo to hi.
func (v value) int(dst *int, lo, hi int) bool {
	if v.absent() {
		return false
	}
	limits := strconv.Itoa(lo) + " to " + strconv.Itoa(hi)
	if n := v.node; n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		if _, err := strconv.Atoi(n.Value); err == nil {
			v.problem("must be a number, not "+describe(n), "write "+n.Value+" without quotes")
			return false
		}
	}
	if v.node.Kind == yaml.ScalarNode && v.node.Tag == "!!float" {
		v.problem(quote(v.node.Value)+" is not a whole number", "write one from "+limits)
		return false
	}
	s, ok := v.scalar("!!int", "a number")
	if !ok {
		return false
	}
	n, err := strconv.Atoi(s)
	// 0x50 and 1_000 are numbers to YAML, and 010 is eight or ten, depending on
	// whom one asks.
	if strings.Trim(s, "-0123456789") != "" || err == nil && strconv.Itoa(n) != s {
		v.problem(quote(s)+" is not a decimal number", "write one from "+limits)
		return false
	}
	if err != nil || n < lo || n > hi {
		v.problem(shorten(s)+" is out of range", "write a number from "+limits)
		return false
	}
	*dst = n
	return true
}

// duration reads a Go duration from lo to hi, or, if zero is true, 0.
func (v value) duration(dst *time.Duration, lo, hi time.Duration, zero bool) {
	if v.absent() {
		return
	}
	limits := "write a duration from " + brief(lo) + " to " + brief(hi)
	if zero {
		limits += ", or 0"
	}
	var s string
	if n := v.node; n.Kind == yaml.ScalarNode && (n.Tag == "!!int" || n.Tag == "!!float") {
		if n.Value != "0" {
			v.problem("duration "+quote(n.Value)+" has no unit", "write "+shorten(n.Value)+"s for seconds")
			return
		}
		s = n.Value
	} else {
		var ok bool
		if s, ok = v.scalar("!!str", "a duration"); !ok {
			return
		}
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		v.problem(quote(s)+" is not a duration", limits+", such as 5s or 1m30s")
	case d == 0 && zero, d >= lo && d <= hi:
		*dst = d
	default:
		v.problem("duration "+quote(s)+" is out of range", limits)
	}
}

// isZero says whether a duration that was read is 0, however it is written.
func (v value) isZero() bool {
	d, err := time.ParseDuration(v.node.Value)
	return err == nil && d == 0
}

// brief prints 1h0m0s as 1h.
func brief(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// choice reads one of a few words.
func choice[T ~string](v value, noun string, have []T) (T, bool) {
	s, ok := v.text()
	if !ok {
		return "", false
	}
	t, f := word(s, noun, have)
	if f != nil {
		v.fault(f)
	}
	return t, f == nil
}

// list returns the elements of a list.
func (v value) list() []value {
	if v.absent() {
		return nil
	}
	if v.node.Kind != yaml.SequenceNode || v.node.Style&yaml.TaggedStyle != 0 {
		v.wrongKind("a list", "")
		return nil
	}
	elements := make([]value, len(v.node.Content))
	for i, n := range v.node.Content {
		elements[i] = value{file: v.file, node: n, path: v.path + "[" + strconv.Itoa(i) + "]"}
	}
	return elements
}

// texts returns the elements of a list of texts, each once. The check, if any,
// says what is wrong with one.
func (v value) texts(check func(string) *Fault) []text {
	return v.parsedTexts(func(s string) (string, *Fault) {
		if check == nil {
			return s, nil
		}
		return s, check(s)
	})
}

// parsedTexts is texts for what can be written in several ways, and has one
// that the parser returns.
func (v value) parsedTexts(parse func(string) (string, *Fault)) []text {
	var texts []text
	seen := map[string]edge.Pos{}
	for _, e := range v.list() {
		s, ok := e.text()
		if !ok {
			continue
		}
		parsed, f := parse(s)
		if f != nil {
			e.fault(f)
			continue
		}
		if first, ok := seen[parsed]; ok {
			e.problem(quote(s)+" is in the list twice", "the first is at "+first.String())
			continue
		}
		seen[parsed] = e.pos()
		texts = append(texts, text{parsed, e})
	}
	return texts
}

// text is an element of a list of texts.
type text struct {
	text string
	at   value
}

func plain(texts []text) []string {
	var plain []string
	for _, t := range texts {
		plain = append(plain, t.text)
	}
	return plain
}

func (v value) emptyList() bool {
	return !v.absent() && v.node.Kind == yaml.SequenceNode && len(v.node.Content) == 0
}

// An entry is a key of a map with its value.
type entry struct {
	key   string
	keyAt value
	value value
}

func (v value) isMap(example string) bool {
	if v.node.Kind != yaml.MappingNode || v.node.Style&yaml.TaggedStyle != 0 {
		v.wrongKind("a map", example)
		return false
	}
	return true
}

var bareKey = regexp.MustCompile(`^[-A-Za-z0-9_]{1,63}$`)

// entries returns what a map holds, in file order, each key once.
func (v value) entries() []entry {
	if v.absent() || !v.isMap("") {
		return nil
	}
	var entries []entry
	first := map[string]edge.Pos{}
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		k, n := v.node.Content[i], v.node.Content[i+1]
		at := value{file: v.file, node: k, path: v.path}
		switch {
		case k.Tag == "!!merge":
			at.problem("merge keys (<<) are not supported", "write the fields out")
			continue
		case k.Kind != yaml.ScalarNode || k.Tag == "!!null":
			at.problem("a key must be text, not "+describe(k), "write KEY: VALUE")
			continue
		}
		key := k.Value
		switch {
		case !bareKey.MatchString(key):
			at.path += "[" + quote(key) + "]"
		case v.path == "":
			at.path = key
		default:
			at.path += "." + key
		}
		if pos, ok := first[key]; ok {
			at.problem("defined twice", "the first is at "+pos.String()+"; keep one of them")
			continue
		}
		first[key] = at.pos()
		entries = append(entries, entry{key, at, value{file: v.file, node: n, path: at.path}})
	}
	return entries
}

// says whether a word is there and reads so: a field that is wrong has a
// problem of its own.
func (v value) says(word string) bool { return !v.absent() && v.node.Value == word }

// fields are the values of a map with a fixed set of keys.
type fields struct {
	of     value
	block  *block
	values map[string]value
	keys   map[string]value
}

// fields reads a map that may hold what the block says, and nothing else.
func (v value) fields(b *block) (fields, bool) {
	f := fields{of: v, block: b, values: map[string]value{}, keys: map[string]value{}}
	if v.absent() || !v.isMap(b.example) {
		return f, false
	}
	for _, e := range v.entries() {
		if spec := b.field(e.key); spec != nil {
			e.value.spec = spec
			f.values[e.key], f.keys[e.key] = e.value, e.keyAt
			continue
		}
		if r := find(b.later, e.key); r != nil {
			e.keyAt.problem("not supported yet", r.remedy)
			continue
		}
		if r := find(b.wrong, e.key); r != nil {
			e.keyAt.problem("unknown field", r.remedy)
			continue
		}
		e.keyAt.problem("unknown field", Suggest(e.key, "known:", b.keys()))
	}
	return f, true
}

func find(rs []refusal, key string) *refusal {
	for i := range rs {
		if rs[i].key == key {
			return &rs[i]
		}
	}
	return nil
}

// get returns the value of a key of the block.
func (f fields) get(key string) value {
	if f.block.field(key) == nil {
		panic("config: block " + f.block.path + " has no field " + key)
	}
	return f.values[key]
}

// need is get for a field that may not be absent.
func (f fields) need(key string) value {
	v := f.get(key)
	if v.absent() {
		path := key
		if f.of.path != "" {
			path = f.of.path + "." + key
		}
		f.of.file.problem(f.of.pos(), path, "missing", f.block.field(key).remedy())
	}
	return v
}
