package edge

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Selector is a Kubernetes label selector in its string form, parsed:
// `app=web,tier!=db,env in (prod,stage),!legacy`. The zero Selector matches
// everything.
type Selector []requirement

type requirement struct {
	key    string
	values []string // nil: the key only has to exist
	negate bool
}

var (
	labelKey   = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	labelValue = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$`)
	setForm    = regexp.MustCompile(`^(\S+)\s+(in|notin)\s*\(([^()]*)\)$`)
)

// ParseSelector reads a label selector, or says what part of it is none.
func ParseSelector(text string) (Selector, error) {
	var s Selector
	for _, part := range splitOutsideParens(text) {
		part = strings.TrimSpace(part)
		if part == "" {
			if strings.TrimSpace(text) == "" {
				return nil, nil
			}
			return nil, fmt.Errorf("%q has an empty requirement", text)
		}
		r, err := parseRequirement(part)
		if err != nil {
			return nil, err
		}
		s = append(s, r)
	}
	return s, nil
}

func parseRequirement(part string) (requirement, error) {
	var r requirement
	if m := setForm.FindStringSubmatch(part); m != nil {
		r = requirement{key: m[1], negate: m[2] == "notin", values: []string{}}
		for v := range strings.SplitSeq(m[3], ",") {
			r.values = append(r.values, strings.TrimSpace(v))
		}
	} else if key, value, ok := strings.Cut(part, "!="); ok {
		r = requirement{key: strings.TrimSpace(key), values: []string{strings.TrimSpace(value)}, negate: true}
	} else if key, value, ok := strings.Cut(part, "="); ok {
		r = requirement{key: strings.TrimSpace(key), values: []string{strings.TrimSpace(strings.TrimPrefix(value, "="))}}
	} else if key, ok := strings.CutPrefix(part, "!"); ok {
		r = requirement{key: strings.TrimSpace(key), negate: true}
	} else {
		r = requirement{key: part}
	}
	if !labelKey.MatchString(r.key) {
		return r, fmt.Errorf("%q is no label key", r.key)
	}
	for _, v := range r.values {
		if !labelValue.MatchString(v) {
			return r, fmt.Errorf("%q is no label value", v)
		}
	}
	return r, nil
}

// Matches reports whether the labels meet every requirement. As in Kubernetes,
// != and notin are also met by a missing label.
func (s Selector) Matches(labels map[string]string) bool {
	for _, r := range s {
		value, has := labels[r.key]
		met := has && (r.values == nil || slices.Contains(r.values, value))
		if met == r.negate {
			return false
		}
	}
	return true
}

func splitOutsideParens(text string) []string {
	var parts []string
	depth, start := 0, 0
	for i, c := range text {
		switch c {
		case '(':
			depth++
		case ')':
			depth--
		case ',':
			if depth == 0 {
				parts = append(parts, text[start:i])
				start = i + 1
			}
		}
	}
	return append(parts, text[start:])
}
