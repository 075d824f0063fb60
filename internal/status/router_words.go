package status

import (
	"fmt"
	"strings"
	"time"
)

// Says what it is in a few words: "4 policies, 12 pinholes, 120 packets dropped".
func (f *Firewall) Says() string {
	if !f.Applied {
		return "the kernel has not the rules that were decided: " + f.Error
	}
	var dropped uint64
	for _, d := range f.Dropped {
		dropped += d.Packets
	}
	return fmt.Sprintf("%s, %s, %s dropped", several(uint64(len(f.Policies)), "policy"), several(uint64(f.Pinholes), "pinhole"), several(dropped, "packet"))
}

// Says who wanted where: "internet -> self: 100 packets".
func (d Dropped) Says() string {
	return fmt.Sprintf("%s -> %s: %s", orNoZone(d.From), orNoZone(d.To), several(d.Packets, "packet"))
}

func orNoZone(zone string) string {
	if zone == "" {
		return "(no zone)"
	}
	return zone
}

// Well is whether it is as the configuration says.
func (l Link) Well() bool { return l.Error == "" && l.Up }

// Says what it is, and whose address it has how long.
func (l Link) Says(now time.Time) string {
	words := []string{l.Kind}
	switch {
	case l.Error != "":
		return l.Error
	case !l.Up:
		words = append(words, "down")
	}
	for _, a := range l.Addrs {
		words = append(words, a.String())
	}
	if lease := l.Lease; lease != nil {
		words = append(words, fmt.Sprintf("by DHCP from %s, for %s", lease.Server, Age(max(lease.Expires.Sub(now), 0))))
	}
	return strings.Join(words, ", ")
}

// Says how much is left: "5 leases, 95 of 100 addresses free".
func (z DHCPZone) Says() string {
	if z.Error != "" {
		return z.Error
	}
	leased, declined := z.count()
	text := fmt.Sprintf("%s, %d of %s free", several(uint64(max(leased, 0)), "lease"), z.Free, several(uint64(max(z.Size, 0)), "address"))
	if declined > 0 {
		text += fmt.Sprintf(", %d taken by somebody who was not given it", declined)
	}
	return text
}

// count says how many addresses machines have, and how many nobody may have.
func (z DHCPZone) count() (leased, declined int) {
	for _, l := range z.Leases {
		if l.Declined {
			declined++
		} else {
			leased++
		}
	}
	return leased, declined
}

// Leased is how many addresses machines have.
func (z DHCPZone) Leased() int { n, _ := z.count(); return n }

// Declined is how many are taken by somebody who was not given them.
func (z DHCPZone) Declined() int { _, n := z.count(); return n }

// Full says that the next machine gets no address.
func (z DHCPZone) Full() bool { return z.Size > 0 && z.Free == 0 }

// Says what is told: "fd00:10::/64, 12 advertisements, 3 answers by DHCPv6".
func (a Advertised) Says() string {
	if a.Error != "" {
		return a.Error
	}
	var words []string
	for _, p := range a.Prefixes {
		words = append(words, p.String())
	}
	for _, p := range a.Deprecated {
		words = append(words, p.String()+" (not any more)")
	}
	if len(words) == 0 {
		words = append(words, "no prefix")
	}
	return fmt.Sprintf("%s; %s, %s by DHCPv6", strings.Join(words, ", "), several(a.Sent+a.Answered, "advertisement"), several(a.Replies, "answer"))
}

// Says what was asked: "1200 questions, 900 from the cache, 12 of its 40 names".
func (z DNSZone) Says() string {
	if z.Error != "" {
		return z.Error
	}
	var asked uint64
	for _, n := range z.Queries {
		asked += n
	}
	text := fmt.Sprintf("%s, %s", several(uint64(max(z.Names, 0)), "name"), several(asked, "question"))
	if asked > 0 {
		text += fmt.Sprintf(": %d about them, %d from the cache, %d asked further", z.Own, z.CacheHits, z.Forwarded)
	}
	if z.Limited > 0 {
		text += fmt.Sprintf(", %d too many", z.Limited)
	}
	if z.Rebinding > 0 {
		text += fmt.Sprintf(", %d answers held back that could be DNS rebinding", z.Rebinding)
	}
	return text
}

// Says whether it answers.
func (u Upstream) Says() string {
	text := fmt.Sprintf("%s: %s", u.Server, several(u.Queries, "question"))
	if u.Failed > 0 {
		text += fmt.Sprintf(", %d without an answer", u.Failed)
	}
	if !u.Up {
		text += ", down"
	}
	if u.Error != "" {
		text += ": " + u.Error
	}
	return text
}

var plurals = map[string]string{"policy": "policies", "address": "addresses"}

func several(n uint64, what string) string {
	if n != 1 {
		if p, ok := plurals[what]; ok {
			what = p
		} else {
			what += "s"
		}
	}
	return fmt.Sprintf("%d %s", n, what)
}
