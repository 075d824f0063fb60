package ra

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// twoHours are how long machines keep an address at least once they were told of
// it (RFC 4862 §5.5.3 e): who has not told them who they are, as nobody here has,
// cannot take it away from them sooner.
const twoHours = 2 * time.Hour

// An advertisement is one packet, on the smallest link that carries IPv6: who gets
// fragments of one throws them away (RFC 6980 §5). Of what has gone the last is
// told, where there is more: of the rest everybody has heard by then.
const (
	mostPrefixes    = 24 // with those that have not gone
	mostGoneServers = 4
	mostGoneDomains = 2
)

// memory is what was told on an interface, and until when it holds. What holds
// and is not told any more has to be taken back: nobody forgets it by himself
// when this machine's addresses change.
type memory struct {
	prefixes map[netip.Prefix]time.Time // how long addresses in it may be used
	leaving  map[netip.Prefix]bool      // those of them that are deprecated
	dns      map[netip.Addr]time.Time
	search   map[string]time.Time
}

func newMemory() *memory {
	return &memory{map[netip.Prefix]time.Time{}, map[netip.Prefix]bool{}, map[netip.Addr]time.Time{}, map[string]time.Time{}}
}

// dnsLifetime is that of servers and domains: three times what may be between two
// advertisements (RFC 8106 §5.1).
func dnsLifetime(c Content) time.Duration {
	most, _ := intervals(c.Lifetime)
	return 3 * most
}

// tell is what is said now, and is kept in mind. With last it is the last word:
// this machine is no router any more, and answers no questions.
func (m *memory) tell(c Content, now time.Time, last bool) message {
	out := message{hopLimit: hopLimit, other: c.Other, lifetime: c.Lifetime, mtu: c.MTU, dnsLifetime: dnsLifetime(c)}
	if last {
		out.lifetime, c.DNS, c.Search = 0, nil, nil
	}
	for _, p := range c.Prefixes {
		out.prefixes = append(out.prefixes, prefixInformation{p, true, true})
		m.prefixes[p.Prefix] = now.Add(p.Valid)
		delete(m.leaving, p.Prefix)
	}
	for _, p := range m.deprecated(c, now) {
		// Still on the link: connections between neighbours go on.
		out.prefixes = append(out.prefixes, prefixInformation{p, true, true})
	}
	out.dns, out.search = slices.Clone(c.DNS), slices.Clone(c.Search)
	out.goneDNS = told(m.dns, c.DNS, now, out.dnsLifetime, mostGoneServers, netip.Addr.Compare)
	out.goneSearch = told(m.search, c.Search, now, out.dnsLifetime, mostGoneDomains, strings.Compare)
	return out
}

// deprecated are prefixes that were told and are not in c: nobody is to begin
// anything from addresses in them. They may be used for as long as was told, and
// no longer than two hours; and are told for as long.
func (m *memory) deprecated(c Content, now time.Time) []Prefix {
	var all []Prefix
	for prefix, until := range m.prefixes {
		if slices.ContainsFunc(c.Prefixes, func(p Prefix) bool { return p.Prefix == prefix }) {
			continue
		}
		if latest := now.Add(twoHours); !m.leaving[prefix] && until.After(latest) {
			until = latest
		}
		m.prefixes[prefix], m.leaving[prefix] = until, true
		if left := until.Sub(now); left >= time.Second {
			all = append(all, Prefix{Prefix: prefix, Valid: left.Truncate(time.Second)})
		} else {
			delete(m.prefixes, prefix)
			delete(m.leaving, prefix)
		}
	}
	slices.SortFunc(all, func(a, b Prefix) int {
		return cmp.Or(cmp.Compare(b.Valid, a.Valid), a.Prefix.Addr().Compare(b.Prefix.Addr()))
	})
	most := min(max(mostPrefixes-len(c.Prefixes), 0), len(all))
	for _, p := range all[most:] {
		delete(m.prefixes, p.Prefix)
		delete(m.leaving, p.Prefix)
	}
	all = all[:most]
	slices.SortFunc(all, func(a, b Prefix) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
	return all
}

// told keeps in mind that these are told now, for so long, and returns those that
// were told before, hold, and are not among them.
func told[T comparable](memory map[T]time.Time, now []T, at time.Time, lifetime time.Duration, most int, compare func(a, b T) int) (gone []T) {
	for _, x := range now {
		memory[x] = at.Add(lifetime)
	}
	for x, until := range memory {
		switch {
		case !until.After(at):
			delete(memory, x)
		case !slices.Contains(now, x):
			gone = append(gone, x)
		}
	}
	slices.SortFunc(gone, func(a, b T) int { return cmp.Or(memory[b].Compare(memory[a]), compare(a, b)) })
	for len(gone) > most {
		delete(memory, gone[len(gone)-1])
		gone = gone[:len(gone)-1]
	}
	slices.SortFunc(gone, compare)
	return gone
}
