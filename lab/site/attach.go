package site

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// attachment is where a host's interface ends: the cable and the network behind it.
type attachment struct {
	Host      string `json:"host"`
	Interface string `json:"interface"`
	Network   string `json:"network"`
}

var validNetwork = regexp.MustCompile(`^[a-z][a-z0-9]{0,9}$`)

// Attach gives a host one more interface while the lab is up, with a cable to one of the networks inet, home and cluster,
// or to a new one of any other name, which is there from then on. The addresses carry a prefix length. LinkDown and
// LinkUp know the cable, Detach takes it away.
func (s *Site) Attach(ctx context.Context, hostName, iface, network string, addrs ...string) error {
	return s.change(func() error {
		if !s.isHost(hostName) {
			return s.noSuchHost(hostName)
		}
		if !validNetwork.MatchString(network) {
			return fmt.Errorf("network %q: want a lower-case letter, then up to 9 lower-case letters or digits", network)
		}
		port := portName(hostName, iface)
		if len(port) > 15 || iface == "" {
			return fmt.Errorf("interface %q of %s: want a name of 1 to %d characters", iface, hostName, 14-len(hostName))
		}
		sw, h := nsName(s.name, "sw"+network), nsName(s.name, hostName)
		if !slices.Contains(segments, network) && !slices.ContainsFunc(s.record.Attached, func(a attachment) bool { return a.Network == network }) {
			err := tool(ctx, fmt.Sprintf("netns add %[1]s\nlink add br0 netns %[1]s type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n", sw), "ip", "-batch", "-")
			if err == nil {
				err = tool(ctx, "", "ip", "-n", sw, "link", "set", "br0", "up")
			}
			if err != nil {
				return err
			}
		}
		if err := tool(ctx, "", "ip", "link", "add", port, "netns", sw, "type", "veth", "peer", "name", iface, "netns", h); err != nil {
			return err
		}
		s.record.Attached = append(s.record.Attached, attachment{hostName, iface, network})
		if err := tool(ctx, "", "ip", "-n", sw, "link", "set", port, "master", "br0", "up"); err != nil {
			return err
		}
		return tool(ctx, nicSetup(nic{name: iface, addrs: addrs}), "ip", "-n", h, "-batch", "-")
	})
}

// Detach takes away what Attach has made. A network without hosts stays.
func (s *Site) Detach(ctx context.Context, hostName, iface string) error {
	return s.change(func() error {
		i := slices.IndexFunc(s.record.Attached, func(a attachment) bool { return a.Host == hostName && a.Interface == iface })
		if i < 0 {
			return fmt.Errorf("%s has no interface %s that Attach has made", hostName, iface)
		}
		s.record.Attached = slices.Delete(s.record.Attached, i, i+1)
		return tool(ctx, "", "ip", "-n", nsName(s.name, hostName), "link", "del", iface)
	})
}

// cables are all of the lab's, those it is made with first.
func (s *Site) cables() []attachment {
	var all []attachment
	for _, h := range hosts(s.record.Options) {
		for _, n := range h.nics {
			all = append(all, attachment{h.name, n.name, n.segment})
		}
	}
	return append(all, s.record.Attached...)
}

// cable finds the switch and the port where the cable of a host's interface ends.
func (s *Site) cable(hostName, iface string) (segment, port string, err error) {
	if !s.isHost(hostName) {
		return "", "", s.noSuchHost(hostName)
	}
	var names []string
	for _, c := range s.cables() {
		if c.Host != hostName {
			continue
		}
		if c.Interface == iface {
			return c.Network, portName(hostName, iface), nil
		}
		names = append(names, c.Interface)
	}
	return "", "", fmt.Errorf("%s has no cable at %s; it has %s", hostName, iface, strings.Join(names, ", "))
}
