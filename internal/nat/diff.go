package nat

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/edge"
)

// step is what belongs into one transaction: all that changes of a door.
type step struct{ commands []command }

// command adds an element, or deletes it.
type command struct {
	remove bool
	*knftables.Element
}

// difference returns what makes of one content another, in the order of doors.
func difference(have, want content) []step {
	var steps []step
	var pairs step
	for _, pair := range slices.SortedFunc(maps.Keys(merged(have.hairpins, want.hairpins)), func(x, y [2]string) int {
		return slices.Compare(x[:], y[:])
	}) {
		pairs.set(hairpins, []string{strconv.Quote(pair[0]), strconv.Quote(pair[1])}, have.hairpins[pair], want.hairpins[pair])
	}
	if len(pairs.commands) > 0 {
		steps = append(steps, pairs)
	}
	var changed []edge.Door
	for door, row := range want.rows {
		if !have.rows[door].equal(row) {
			changed = append(changed, door)
		}
	}
	for door := range have.rows {
		if _, stays := want.rows[door]; !stays {
			changed = append(changed, door)
		}
	}
	slices.SortFunc(changed, compareDoors)
	for _, door := range changed {
		steps = append(steps, rowStep(door, have.rows[door], want.rows[door]))
	}
	return steps
}

func merged[K comparable](x, y map[K]bool) map[K]bool {
	all := maps.Clone(x)
	if all == nil {
		return y
	}
	maps.Copy(all, y)
	return all
}

// rowStep says how the row of a door becomes another; the zero row is none.
// What would be missed is added before, and deleted after, what leads to it, for
// the case that a step has to be taken apart.
func rowStep(d edge.Door, have, want row) step {
	key := doorKey(d)
	ways := []struct {
		version, backends string
		have, want        way
	}{
		{"4", of(wordOf(d.Protocol), 4, backends), have.v4, want.v4},
		{"6", of(wordOf(d.Protocol), 6, backends), have.v6, want.v6},
	}
	var s step
	for _, w := range ways {
		s.remove(doors+w.version, key, verdict("goto", w.have.chain), verdict("goto", w.want.chain))
	}
	for _, w := range ways {
		for i := range max(len(w.have.slots), len(w.want.slots)) {
			slot := []string{key[0], key[2], strconv.Itoa(i)}
			before, after := slotValue(w.have.slots, i), slotValue(w.want.slots, i)
			s.remove(w.backends, slot, before, after)
			s.add(w.backends, slot, before, after)
		}
	}
	for _, change := range []struct {
		from, to []netip.Prefix
		has, get bool
	}{{have.sources, want.sources, true, false}, {want.sources, have.sources, false, true}} {
		for _, p := range change.from {
			if !slices.Contains(change.to, p) {
				s.set(sources+versionOf(p.Addr()), append(slices.Clip(key), p.String()), change.has, change.get)
			}
		}
	}
	s.set(restricted, key, have.restricted, want.restricted)
	s.set(masqueraded, key, have.masqueraded, want.masqueraded)
	s.remove(remembered, key, verdict("jump", have.remember), verdict("jump", want.remember))
	s.add(remembered, key, verdict("jump", have.remember), verdict("jump", want.remember))
	s.set(frontends, key, have.open, want.open)
	for _, w := range ways {
		s.add(doors+w.version, key, verdict("goto", w.have.chain), verdict("goto", w.want.chain))
	}
	return s
}

// set adds an element to a set, or deletes it, or does nothing.
func (s *step) set(name string, key []string, have, want bool) {
	if have != want {
		s.commands = append(s.commands, command{remove: have, Element: &knftables.Element{Set: name, Key: key}})
	}
}

// remove deletes an element of a map whose value is to be another; no value is
// no element.
func (s *step) remove(name string, key, have, want []string) {
	if have != nil && !slices.Equal(have, want) {
		s.commands = append(s.commands, command{remove: true, Element: &knftables.Element{Map: name, Key: key}})
	}
}

// add adds it again, with the value that is wanted.
func (s *step) add(name string, key, have, want []string) {
	if want != nil && !slices.Equal(have, want) {
		s.commands = append(s.commands, command{Element: &knftables.Element{Map: name, Key: key, Value: want}})
	}
}

// apart makes of a step some of at most so many commands. The order of the
// commands has the door closed in between if it leads elsewhere afterwards.
func (s step) apart(most int) []step {
	var steps []step
	for part := range slices.Chunk(s.commands, most) {
		steps = append(steps, step{part})
	}
	return steps
}

// addChains adds chains that are made when they are needed. One may go to
// another. They are flushed: another process may have made them in the meantime.
func addChains(tx *knftables.Transaction, names []string) {
	var rules []knftables.Object
	for _, name := range names {
		objects := chainOf(name)
		tx.Add(objects[0])
		tx.Flush(&knftables.Chain{Name: name})
		rules = append(rules, objects[1:]...)
	}
	for _, o := range rules {
		tx.Add(o)
	}
}

func addSteps(tx *knftables.Transaction, steps []step) {
	for _, s := range steps {
		for _, c := range s.commands {
			if c.remove {
				tx.Delete(c.Element)
			} else {
				tx.Add(c.Element)
			}
		}
	}
}

// wordOf is nft's for a protocol.
func wordOf(protocol edge.Protocol) string { return strings.ToLower(string(protocol)) }

func doorKey(d edge.Door) []string {
	return []string{strconv.Quote(d.Listen.Device), wordOf(d.Protocol), strconv.Itoa(int(d.Listen.Port))}
}

func verdict(word, chain string) []string {
	if chain == "" {
		return nil
	}
	return []string{word + " " + chain}
}

func slotValue(slots []netip.AddrPort, i int) []string {
	if i >= len(slots) || !slots[i].IsValid() {
		return nil
	}
	return []string{slots[i].Addr().String(), fmt.Sprint(slots[i].Port())}
}

func versionOf(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

// losesClients says whether a backend has gone from a door that remembers
// clients.
func losesClients(have, want map[edge.Door]row) bool {
	for door, before := range have {
		if !before.remembers() {
			continue
		}
		after := want[door]
		if after.equal(before) {
			continue
		}
		to := after.backends()
		for _, backend := range before.backends() {
			if _, stays := slices.BinarySearchFunc(to, backend, netip.AddrPort.Compare); !stays || !after.remembers() {
				return true
			}
		}
	}
	return false
}

func commands(steps []step) int {
	n := 0
	for _, s := range steps {
		n += len(s.commands)
	}
	return n
}
