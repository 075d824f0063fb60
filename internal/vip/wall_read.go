package vip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// readWall asks nft what there is.
func readWall(ctx context.Context) (wall, error) {
	w := wall{elements: map[element]bool{}}
	var have []string
	for _, family := range []string{"inet", "arp"} {
		out, err := command(ctx, "", "-j", "-n", "list", "table", family, Table)
		if err != nil && strings.Contains(err.Error(), "No such file or directory") {
			continue
		}
		if err != nil {
			return w, err
		}
		lines, err := w.read(out)
		if err != nil {
			return w, fmt.Errorf("nft: read table %s %s: %w", family, Table, err)
		}
		w.exists = true
		have = append(have, lines...)
	}
	w.sound = slices.Equal(have, outline())
	return w, nil
}

// read takes the elements from what nft prints of a table, and returns a line
// for each chain, set and rule of it.
func (w *wall) read(out []byte) (lines []string, err error) {
	var listing struct {
		Nftables []struct {
			Chain *struct{ Family, Name string }
			Set   *struct {
				Family, Name string
				Elem         []json.RawMessage
			}
			Rule *struct{ Family, Chain, Comment string }
		}
	}
	if err := json.Unmarshal(out, &listing); err != nil {
		return nil, err
	}
	for _, o := range listing.Nftables {
		switch {
		case o.Chain != nil:
			lines = append(lines, line(o.Chain.Family, "chain", o.Chain.Name))
		case o.Rule != nil:
			lines = append(lines, line(o.Rule.Family, "rule", o.Rule.Chain, o.Rule.Comment))
		case o.Set != nil:
			lines = append(lines, line(o.Set.Family, "set", o.Set.Name))
			for _, raw := range o.Set.Elem {
				if err := w.take(o.Set.Family, o.Set.Name, raw); err != nil {
					lines = append(lines, line(o.Set.Family, "element", err.Error())) // the layout has none of those
				}
			}
		}
	}
	slices.SortStableFunc(lines, byHead)
	return lines, nil
}

func line(words ...string) string { return strings.Join(words, " ") }

// byHead sorts by what a line belongs to: the rules of a chain have an order.
func byHead(x, y string) int { return slices.Compare(head(x), head(y)) }

func head(l string) []string {
	words := strings.SplitN(l, " ", 4)
	return words[:min(3, len(words))]
}

// outline is what read returns of tables that are as they are to be.
func outline() []string {
	var lines []string
	for i, family := range []string{"inet", "arp"} {
		var chain string
		var some []string
		for text := range strings.Lines(layout()[i]) {
			words := strings.Fields(text)
			_, comment, isRule := strings.Cut(text, `comment "`)
			switch {
			case isRule:
				some = append(some, line(family, "rule", chain, strings.TrimSuffix(strings.TrimSpace(comment), `"`)))
			case len(words) == 3 && words[0] == "set":
				some = append(some, line(family, "set", words[1]))
			case len(words) == 3 && words[0] == "chain":
				chain = words[1]
				some = append(some, line(family, "chain", chain))
			}
		}
		slices.SortStableFunc(some, byHead)
		lines = append(lines, some...)
	}
	return lines
}

var errElement = errors.New("an element is not of the set's type")

// take takes in an element.
func (w *wall) take(family, set string, raw json.RawMessage) error {
	parts, err := partsOf(raw)
	if err != nil {
		return err
	}
	device, kind := "", strings.TrimRight(set, "46")
	if kind == "places" || kind == "openings" {
		device, parts = parts[0], parts[1:]
	}
	if len(parts) == 0 {
		return errElement
	}
	addr, err := netip.ParseAddr(parts[0])
	if err != nil {
		return errElement
	}
	key := addr.String()
	if len(parts) == 3 {
		o := opening{device: device, addr: addr}
		if _, err := fmt.Sscan(parts[1]+" "+parts[2], &o.protocol, &o.port); err != nil {
			return errElement
		}
		w.openings = append(w.openings, o)
		key = o.key()
	} else if device != "" {
		key = fmt.Sprintf("%q . %s", device, addr)
	}
	w.elements[element{family + " " + Table + " " + set, key}] = true
	return nil
}

// partsOf reads the key of an element: a word or a number, or several.
func partsOf(raw json.RawMessage) ([]string, error) {
	var whole struct{ Concat []any }
	var one any
	if json.Unmarshal(raw, &whole) == nil && len(whole.Concat) > 0 {
		parts := make([]string, 0, len(whole.Concat))
		for _, p := range whole.Concat {
			parts = append(parts, fmt.Sprint(p))
		}
		return parts, nil
	}
	if err := json.Unmarshal(raw, &one); err != nil {
		return nil, errElement
	}
	return []string{fmt.Sprint(one)}, nil
}
