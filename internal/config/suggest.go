package config

import (
	"strconv"
	"strings"
	"unicode"
)

// maxShown is how much of a value a problem repeats, in characters.
const maxShown = 60

// maxListed is how many names a problem lists; no block has as many fields.
const maxListed = 32

// quote repeats a value in a problem: on one line, whatever it holds.
func quote(s string) string {
	if r := []rune(s); len(r) > maxShown {
		s = string(r[:maxShown]) + "…"
	}
	return strconv.Quote(s)
}

// Suggest says which of the names that exist may have been meant, and which
// there are: `did you mean "home"? have home, internet`.
func Suggest(got, verb string, have []string) string {
	if len(have) == 0 {
		return "there is none"
	}
	var b strings.Builder
	if near := nearest(got, have); near != "" && len(have) > 1 {
		b.WriteString("did you mean " + strconv.Quote(near) + "? ")
	}
	b.WriteString(verb + " " + list(have))
	return b.String()
}

func list(names []string) string {
	if extra := len(names) - maxListed; extra > 0 {
		return strings.Join(names[:maxListed], ", ") + " and " + strconv.Itoa(extra) + " more"
	}
	return strings.Join(names, ", ")
}

// nearest returns the name that got was most likely meant to be, or nothing if
// none is near.
func nearest(got string, have []string) string {
	r := []rune(fold(got))
	if len(r) > maxShown {
		return ""
	}
	best, bestDistance := "", 0
	for _, name := range have {
		want := []rune(fold(name))
		d := editDistance(r, want)
		// A third of the letters may be wrong, so that "lan2" is near "lan"
		// and "dns" is not near "home".
		if d > (max(len(r), len(want))+1)/3 {
			continue
		}
		if best == "" || d < bestDistance {
			best, bestDistance = name, d
		}
	}
	return best
}

// fold makes names equal that differ in case and separators only.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || r == ' ' {
			return -1
		}
		return unicode.ToLower(r)
	}, s)
}

// editDistance counts the letters to insert, delete, change or swap with their
// neighbour to get from a to b (optimal string alignment).
func editDistance(a, b []rune) int {
	before := make([]int, len(b)+1)
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range a {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range b {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(prev[j+1]+1, row[j]+1, prev[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, prev = prev, row
	}
	return prev[len(b)]
}
