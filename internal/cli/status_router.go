package cli

import (
	"fmt"
	"strings"

	"e13.dev/gatehouse/internal/status"
)

// router is what this machine is for the machines of its zones.
func (p picture) router(r status.Router) []string {
	lines := titled("links", r.Links, func(l status.Link) string {
		text := l.Name + ": " + l.Says(p.now)
		if !l.Well() {
			return p.in(bad, text)
		}
		return text
	})
	if f := r.Firewall; f != nil {
		text := f.Says()
		if !f.Applied {
			text = p.in(bad, text)
		}
		lines = append(lines, "firewall       "+text)
		var dropped []string
		for _, d := range f.Dropped {
			if d.Packets > 0 {
				dropped = append(dropped, d.Says())
			}
		}
		if len(dropped) > 0 {
			lines = append(lines, strings.Repeat(" ", 15)+p.in(quiet, "dropped "+strings.Join(dropped, ", ")))
		}
	}
	lines = append(lines, titled("dhcp", r.DHCP, func(z status.DHCPZone) string {
		text := z.Says()
		if z.Error != "" || z.Full() {
			text = p.in(bad, text)
		}
		return fmt.Sprintf("zone %s: %s", z.Zone, text)
	})...)
	lines = append(lines, titled("ipv6", r.Advertised, func(a status.Advertised) string {
		text := a.Says()
		if a.Error != "" {
			text = p.in(bad, text)
		}
		return fmt.Sprintf("zone %s, %s: %s", a.Zone, a.Interface, text)
	})...)
	if d := r.DNS; d != nil {
		lines = append(lines, titled("dns", d.Zones, func(z status.DNSZone) string {
			text := z.Says()
			if z.Error != "" {
				text = p.in(bad, text)
			}
			return fmt.Sprintf("zone %s: %s", z.Zone, text)
		})...)
		lines = append(lines, titled("dns asks", d.Upstreams, func(u status.Upstream) string {
			if !u.Up {
				return p.in(bad, u.Says())
			}
			return u.Says()
		})...)
	}
	return lines
}
