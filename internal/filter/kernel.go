package filter

import (
	"errors"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/nft"
)

// found is what is in the kernel.
type found struct {
	exists bool // the table
	// Lines of outline: of what is fixed, and of policies.
	fixed, policies []string
	zones           map[string]bool
	counters        map[string]bool
	elements        map[string]map[string]element
}

// found is what the kernel has once it has this content.
func (c *content) found() found {
	f := found{exists: true, fixed: outline(c.fixed), policies: outline(c.policies), zones: map[string]bool{}, counters: map[string]bool{}, elements: c.elements}
	for _, z := range c.zones {
		f.zones[z] = true
	}
	for _, name := range c.counters {
		f.counters[name] = true
	}
	return f
}

var errLayout = errors.New("another layout")

// readKernel reads the table.
func readKernel() (found, error) {
	exists, err := nft.Exists(Table)
	if err != nil || !exists {
		return found{}, err
	}
	chains, err := nft.Chains(Table)
	if err != nil {
		return found{}, err
	}
	f := found{exists: true, zones: map[string]bool{}, counters: map[string]bool{}, elements: map[string]map[string]element{}}
	for _, name := range chains {
		f.fixed = append(f.fixed, "chain "+name)
	}
	rules, err := nft.Rules(Table)
	if err != nil {
		return found{}, err
	}
	for _, line := range rules {
		if isOfPolicy(line) {
			f.policies = append(f.policies, line)
		} else {
			f.fixed = append(f.fixed, line)
		}
	}
	sets, err := nft.Sets(Table)
	if err != nil {
		return found{}, err
	}
	for _, name := range sets {
		if strings.HasPrefix(name, zonePrefix) {
			f.zones[name] = true
		} else {
			f.fixed = append(f.fixed, "set "+name)
		}
		if strings.HasPrefix(name, dropped) {
			continue
		}
		elements, err := nft.Elements(Table, name)
		if err != nil {
			return found{}, err
		}
		for _, e := range elements {
			f.add(name, e)
		}
	}
	counters, err := nft.Counters(Table)
	for name := range counters {
		f.counters[name] = true
	}
	f.fixed, f.policies = sorted(f.fixed), sorted(f.policies)
	return f, err
}

func (f *found) add(set string, e nft.Element) {
	if f.elements[set] == nil {
		f.elements[set] = map[string]element{}
	}
	one := element{key: e.Key, end: e.End}
	if one.end == nil && strings.Contains(set, from) {
		one.end = one.key // an interval of one
	}
	f.elements[set][one.id()] = one
}

func isOfPolicy(line string) bool {
	return slices.ContainsFunc([]string{toSelf, through, masquerade}, func(chain string) bool { return strings.HasPrefix(line, "rule "+chain+" ") })
}

// outline is a line for each chain, set and rule; of a rule the comment.
func outline(objects []knftables.Object) []string {
	var lines []string
	for _, o := range objects {
		switch o := o.(type) {
		case *knftables.Chain:
			lines = append(lines, "chain "+o.Name)
		case *knftables.Set:
			lines = append(lines, "set "+o.Name)
		case *knftables.Rule:
			lines = append(lines, "rule "+o.Chain+" "+*o.Comment)
		}
	}
	return sorted(lines)
}

// sorted puts lines in the order of what they belong to alone: the rules of a
// chain have an order.
func sorted(lines []string) []string {
	slices.SortStableFunc(lines, func(x, y string) int { return strings.Compare(head(x), head(y)) })
	return lines
}

func head(line string) string {
	if fields := strings.SplitN(line, " ", 3); fields[0] == "rule" {
		return fields[0] + " " + fields[1]
	}
	return line
}

// readDrops reads what was dropped, by interfaces.
func readDrops() (map[dropKey]uint64, error) {
	drops := map[dropKey]uint64{}
	for _, of := range []struct {
		set  string
		size int
	}{{dropped + input, nameBytes}, {dropped + forward, 2 * nameBytes}} {
		elements, err := nft.Elements(Table, of.set)
		if errors.Is(err, os.ErrNotExist) {
			return nil, errLayout
		}
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			if len(e.Key) != of.size || !e.Counted {
				continue
			}
			key := dropKey{in: nft.Text(e.Key[:nameBytes])}
			if of.size > nameBytes {
				key.out = nft.Text(e.Key[nameBytes:])
			}
			// Assigned, not added: one that the kernel lists twice, as it may while a set
			// grows, is one.
			drops[key] = e.Packets
		}
	}
	return drops, nil
}
