package filter

import (
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/nft"
)

// verb is what a step does.
type verb int

const (
	add verb = iota
	flush
	remove
)

// step is a command of a transaction.
type step struct {
	verb
	object knftables.Object
}

func (s step) addTo(tx *knftables.Transaction) {
	switch s.verb {
	case add:
		tx.Add(s.object)
	case flush:
		tx.Flush(s.object)
	case remove:
		tx.Delete(s.object)
	}
}

// steps are those of one transaction. Should it have to be taken apart, the
// structure is together.
type steps struct {
	structure, elements []step
	// dear is how many elements the kernel looks at for those that are deleted from
	// sets of intervals: all that are there, for each of them.
	dear int
}

// tooDear is more than it takes to make the table anew: an element that the kernel
// looks at takes about 10 us, since it copies the set for each that it deletes
// (6.18), and a whole table of ten thousand doors half a second.
const tooDear = 40_000

func (s *steps) size() int { return len(s.structure) + len(s.elements) }

func (s *steps) objects() []knftables.Object {
	var all []knftables.Object
	for _, step := range slices.Concat(s.structure, s.elements) {
		all = append(all, step.object)
	}
	return all
}

// replacement makes a table anew. Policies begin with what they have counted
// before.
func replacement(want *content, counts map[string]nft.Count) *steps {
	var s steps
	for _, o := range want.fixed {
		s.structure = append(s.structure, step{add, o})
	}
	had := found{zones: map[string]bool{}, counters: map[string]bool{}}
	s.policies(&had, want, counts)
	s.change(&had, want)
	return &s
}

// difference is what makes of what there is what is wanted, where what is fixed
// is the same.
func difference(have *found, want *content) steps {
	var s steps
	s.policies(have, want, nil)
	s.change(have, want)
	return s
}

// policies changes the rules of policies, if they differ, with the sets and the
// counters that they need.
func (s *steps) policies(have *found, want *content, counts map[string]nft.Count) {
	for _, name := range want.zones {
		if !have.zones[name] {
			s.structure = append(s.structure, step{add, &knftables.Set{Name: name, Type: "ifname"}})
		}
	}
	wanted := want.found()
	for _, name := range slices.Sorted(maps.Keys(wanted.counters)) {
		if !have.counters[name] {
			c := &knftables.Counter{Name: name}
			if n, ok := counts[name]; ok {
				c.Packets, c.Bytes = &n.Packets, &n.Bytes
			}
			s.structure = append(s.structure, step{add, c})
		}
	}
	if !slices.Equal(have.policies, wanted.policies) {
		if have.exists {
			for _, chain := range []string{toSelf, through, masquerade} {
				s.structure = append(s.structure, step{flush, &knftables.Chain{Name: chain}})
			}
		}
		for _, o := range want.policies {
			s.structure = append(s.structure, step{add, o})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.counters)) {
		if !wanted.counters[name] {
			s.structure = append(s.structure, step{remove, &knftables.Counter{Name: name}})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.zones)) {
		if !wanted.zones[name] {
			s.structure = append(s.structure, step{remove, &knftables.Set{Name: name}})
		}
	}
}

// change changes the elements that differ.
func (s *steps) change(have *found, want *content) {
	sets := map[string]bool{}
	for name := range have.elements {
		sets[name] = true
	}
	for name := range want.elements {
		sets[name] = true
	}
	wanted := want.found()
	for _, set := range slices.Sorted(maps.Keys(sets)) {
		if have.zones[set] && !wanted.zones[set] {
			continue // it goes with them
		}
		before, after := have.elements[set], want.elements[set]
		var gone []string
		unread := false // one of them has no text
		for id, e := range before {
			if _, stays := after[id]; !stays {
				gone = append(gone, id)
				unread = unread || e.text == nil
			}
		}
		if unread {
			if strings.Contains(set, from) {
				s.dear += len(before) * len(before)
			}
			s.elements = append(s.elements, step{flush, &knftables.Set{Name: set}})
			before, gone = nil, nil
		}
		if strings.Contains(set, from) {
			s.dear += len(gone) * len(before)
		}
		slices.Sort(gone)
		for _, id := range gone {
			s.elements = append(s.elements, step{remove, &knftables.Element{Set: set, Key: before[id].text}})
		}
		var come []string
		for id, e := range after {
			if _, there := before[id]; !there && e.text != nil { // else it was kept, and is lost
				come = append(come, id)
			}
		}
		slices.Sort(come)
		for _, id := range come {
			s.elements = append(s.elements, step{add, &knftables.Element{Set: set, Key: after[id].text}})
		}
	}
}
