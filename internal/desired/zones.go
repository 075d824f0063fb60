package desired

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// checkZones reports interfaces that are not there, and walls with a hole.
func (b *builder) checkZones() {
	zoneOf := map[string]*edge.Zone{}
	for i := range b.in.Config.Zones {
		z := &b.in.Config.Zones[i]
		for _, name := range z.Interfaces {
			zoneOf[name] = z
			switch device, ok := b.devices[name]; {
			case ok && !device.Up:
				b.problem(edge.Problem{
					Pos: z.Pos, Path: "zones." + z.Name + ".interfaces",
					What: fmt.Sprintf("interface %q is down, or has no cable: nobody comes in through it", name),
				})
			case !ok:
				b.problem(edge.Problem{
					Pos: z.Pos, Path: "zones." + z.Name + ".interfaces",
					What:   fmt.Sprintf("no interface %q on this machine", name),
					Remedy: "the zone opens on it when it appears; there are " + b.deviceNames(),
				})
			}
		}
	}
	// Two interfaces in one network, each in a zone of its own (a MACVLAN and
	// its parent): with arp_ignore=0 the kernel answers on either for both, and
	// which zone a client lands in is a matter of luck.
	sorted := slices.SortedFunc(slices.Values(b.in.Interfaces), func(x, y edge.Interface) int { return cmp.Compare(x.Name, y.Name) })
	for i, first := range sorted {
		for _, second := range sorted[i+1:] {
			za, zb := zoneOf[first.Name], zoneOf[second.Name]
			if za == nil || zb == nil || za == zb || !first.AnswersForOthers && !second.AnswersForOthers || !shareNetwork(first, second) {
				continue
			}
			b.problem(edge.Problem{
				Pos: zb.Pos, Path: "zones." + zb.Name,
				What: fmt.Sprintf("%s (zone %s) and %s (zone %s) are in one network and answer ARP for each other, so that clients of one zone can end up in the other",
					first.Name, za.Name, second.Name, zb.Name),
				Remedy: "set the sysctls net.ipv4.conf.all.arp_ignore=1 and net.ipv4.conf.all.arp_announce=2",
			})
		}
	}
}

func (b *builder) deviceNames() string {
	var names []string
	for name := range b.devices {
		if name != "lo" {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "none but lo"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func shareNetwork(first, second edge.Interface) bool {
	for _, p := range first.Addrs {
		for _, q := range second.Addrs {
			if p.Addr().Is4() && p.Overlaps(q) {
				return true
			}
		}
	}
	return false
}
