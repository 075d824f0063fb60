package links

import (
	"cmp"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// setting is a sysctl of net, such as "ipv4/conf/veth0/arp_ignore".
type setting struct {
	name  string
	value int
	why   string // for people
}

const (
	forwarding4 = "ipv4/ip_forward"
	forwarding6 = "ipv6/conf/all/forwarding"
)

// settings are the sysctls that what is wanted takes, in the order in which they
// are to be written. It is pure.
func settings(want Want, have *machine) []setting {
	var all []setting
	together := sharing(want, have)
	for _, d := range have.devices {
		conf := "ipv4/conf/" + d.Name + "/"
		if other := together[d.Name]; other != "" {
			why := "it shares a network with " + other
			all = append(all,
				setting{conf + "arp_ignore", 1, why},   // answers only for its own addresses
				setting{conf + "arp_announce", 2, why}, // asks in the name of its own
				setting{conf + "rp_filter", 2, why},    // though the way back may be by the other
			)
		}
		accepts := slices.ContainsFunc(want.Links, func(l Link) bool { return l.AcceptRA && l.Name == d.Name })
		switch {
		case accepts:
			all = append(all, setting{"ipv6/conf/" + d.Name + "/accept_ra", 2, "acceptRA"})
		case want.Forwarding && have.advertised[d.Index]:
			// A router takes no advertisements by itself: without this it would lose its own
			// way out.
			all = append(all, setting{"ipv6/conf/" + d.Name + "/accept_ra", 2, "its default route is advertised"})
		}
	}
	if want.Forwarding {
		// Last: with it the kernel forgets what was advertised where it may not be.
		all = append(all, setting{forwarding4, 1, "this machine is a router"}, setting{forwarding6, 1, "this machine is a router"})
	}
	return all
}

// sharing are the interfaces that have a network in common, each with another of
// them: MACVLANs with what they are on, and those with addresses of one network, if
// one of the two is a link.
func sharing(want Want, have *machine) map[string]string {
	together := map[string]string{}
	share := func(a, b string) {
		if together[a] == "" {
			together[a] = b
		}
		if together[b] == "" {
			together[b] = a
		}
	}
	for _, l := range want.Links {
		d := have.device(l.Name)
		if d == nil {
			continue
		}
		for _, other := range have.devices {
			if other.Name == d.Name || other.Kind == "" || other.Name == "lo" {
				continue
			}
			onOne := d.Kind == kindMacvlan && (other.Index == d.parent || other.Kind == kindMacvlan && other.parent == d.parent)
			if onOne || overlap(d.Addrs, other.Addrs) {
				share(d.Name, other.Name)
			}
		}
	}
	return together
}

func overlap(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(p netip.Prefix) bool {
		return p.Addr().Is4() && p.Bits() < 32 && slices.ContainsFunc(b, func(q netip.Prefix) bool {
			return q.Addr().Is4() && q.Bits() < 32 && p.Overlaps(q)
		})
	})
}

// holds says whether a setting holds as it is: the kernel takes the larger of
// an interface's and that of all (ip-sysctl.rst), where it is one of ARP.
func (s setting) holds(value, all int) bool {
	if strings.HasSuffix(s.name, "arp_ignore") || strings.HasSuffix(s.name, "arp_announce") {
		return max(value, all) >= s.value
	}
	return value == s.value
}

// set writes the sysctls that are not as they should be, and puts those back that
// nobody asks for any more, as far as it is known what they were.
func (a *Applier) set(all []setting) (problems []edge.Problem, changed []string) {
	wanted := map[string]bool{}
	for _, s := range all {
		wanted[s.name] = true
		before, err := readSetting(s.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6, or the interface has just gone
		}
		value, _ := strconv.Atoi(before)
		common := 0
		if dir, file, ok := cutLast(s.name, "/"); ok && strings.HasPrefix(dir, "ipv4/conf/") {
			text, _ := readSetting("ipv4/conf/all/" + file)
			common, _ = strconv.Atoi(text)
		}
		if err == nil && s.holds(value, common) {
			continue
		}
		if err == nil {
			err = os.WriteFile(sysctlRoot+s.name, []byte(strconv.Itoa(s.value)), 0)
		}
		dotted := dotted(s.name)
		if err != nil {
			remedy := "sysctl -w " + dotted + "=" + strconv.Itoa(s.value)
			if errors.Is(err, fs.ErrPermission) || strings.Contains(err.Error(), "read-only") {
				remedy += "; or let gatehouse: with systemd, gatehouse.service.d/links.conf does"
			}
			problems = append(problems, edge.Problem{
				Object: "link/" + dotted, What: "it is " + cmp.Or(before, "unknown") + ", has to be " + strconv.Itoa(s.value) + " (" + s.why + "), and cannot be changed", Remedy: remedy,
			})
			continue
		}
		if _, known := a.before[s.name]; !known {
			a.before[s.name] = before
		}
		changed = append(changed, dotted+"="+strconv.Itoa(s.value))
	}
	for name, before := range a.before {
		if wanted[name] {
			continue
		}
		delete(a.before, name)
		if err := os.WriteFile(sysctlRoot+name, []byte(before), 0); err == nil {
			changed = append(changed, dotted(name)+"="+before)
		}
	}
	slices.Sort(changed)
	return problems, changed
}

// dotted is a setting as sysctl(8) calls it, which writes a dot in the name of an
// interface as a slash.
func dotted(name string) string {
	return "net." + strings.NewReplacer("/", ".", ".", "/").Replace(name)
}

func readSetting(name string) (string, error) {
	text, err := os.ReadFile(sysctlRoot + name)
	return strings.TrimSpace(string(text)), err
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
