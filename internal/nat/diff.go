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
// Addresses are there before their doors, and after them.
func difference(have, want content) []step {
	var steps []step
	var pairs step
	for _, pair := range slices.SortedFunc(maps.Keys(merged(have.hairpins, want.hairpins)), func(x, y [2]string) int {
		return slices.Compare(x[:], y[:])
	}) {
		pairs.set(hairpins, []string{strconv.Quote(pair[0]), strconv.Quote(pair[1])}, have.hairpins[pair], want.hairpins[pair])
	}
	var lost []step
	for _, addr := range slices.SortedFunc(maps.Keys(merged(have.addresses, want.addresses)), netip.Addr.Compare) {
		var s step
		s.set(addresses+strconv.Itoa(versionOf(addr)), []string{addr.String()}, have.addresses[addr], want.addresses[addr])
		if want.addresses[addr] {
			steps = append(steps, s)
		} else {
			lost = append(lost, s)
		}
	}
	for _, way := range lanes() {
		before, after := verdict("goto", have.counting[way]), verdict("goto", want.counting[way])
		pairs.remove(counting, way.key(), before, after)
		pairs.add(counting, way.key(), before, after)
	}
	steps = append(steps, pairs)
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
	return slices.DeleteFunc(append(steps, lost...), func(s step) bool { return len(s.commands) == 0 })
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
	n, key := namesOf(d), doorKey(d)
	ways := []struct {
		doors, backends string
		have, want      way
	}{
		{n.set(doors, 4), n.of(wordOf(d.Protocol), 4, backends), have.v4, want.v4},
		{n.set(doors, 6), n.of(wordOf(d.Protocol), 6, backends), have.v6, want.v6},
	}
	var s step
	// Whoever reads half of a door knows by this which it is.
	s.set(n.set(frontends, 0), key, have.open, have.open || want.open)
	for _, w := range ways {
		s.remove(w.doors, key, verdict("goto", w.have.chain), verdict("goto", w.want.chain))
	}
	for _, w := range ways {
		for i := range max(len(w.have.slots), len(w.want.slots)) {
			slot := slotKey(d, i)
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
				s.set(n.set(sources, versionOf(p.Addr())), append(slices.Clip(key), p.String()), change.has, change.get)
			}
		}
	}
	s.set(n.set(restricted, 0), key, have.restricted, want.restricted)
	s.set(n.set(masqueraded, 0), key, have.masqueraded, want.masqueraded)
	s.remove(n.set(remembered, 0), key, verdict("jump", have.remember), verdict("jump", want.remember))
	s.add(n.set(remembered, 0), key, verdict("jump", have.remember), verdict("jump", want.remember))
	s.set(n.set(frontends, 0), key, have.open || want.open, want.open)
	for _, w := range ways {
		s.add(w.doors, key, verdict("goto", w.have.chain), verdict("goto", w.want.chain))
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
	key := []string{strconv.Quote(d.Listen.Device)}
	if d.Listen.Addr.IsValid() {
		key = append(key, d.Listen.Addr.String())
	}
	return append(key, wordOf(d.Protocol), strconv.Itoa(int(d.Listen.Port)))
}

// slotKey is that of a door's slot; see names.slots.
func slotKey(d edge.Door, slot int) []string {
	key := []string{strconv.Quote(d.Listen.Device)}
	switch namesOf(d).version {
	case 4:
		key = append(key, d.Listen.Addr.String())
	case 6:
		key = []string{strconv.FormatUint(uint64(hashOfDevice(d.Listen.Device)), 10), d.Listen.Addr.String()}
	}
	return append(key, strconv.Itoa(int(d.Listen.Port)), strconv.Itoa(slot))
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

func versionOf(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
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
