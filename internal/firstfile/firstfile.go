// Package firstfile proposes a first configuration from the interfaces of a
// machine. It owns which interface is taken for which network, and the text of
// the file; it leaves asking the machine and the cluster to others:
//
//	f, err := firstfile.Propose(firstfile.Facts{Links: links, Towards: towards})
//	text := f.YAML()
package firstfile

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// The names of zones that are proposed where there is a reason to.
const (
	home     = "home"
	internet = "internet"
	cluster  = "cluster"
)

// Facts are what a proposal is made of.
type Facts struct {
	Links      []edge.Link
	Towards    []Towards   // the cluster, if it is known
	Zones      []edge.Zone // as the operator says; their interfaces are not looked at
	Kubeconfig string      // empty: where gatehouse kubeconfig is to be copied to
}

// Towards is the interface by which packets leave for something of the cluster.
type Towards struct {
	What string // "the API server 10.0.0.10"
	Link string
}

// File is a proposal.
type File struct {
	Zones      []Zone
	LeftOut    []LeftOut
	Kubeconfig string
}

// Zone is one that is proposed.
type Zone struct {
	Name  string
	Links []edge.Link
	Why   string // what it is taken for
}

// LeftOut is an interface that is in no zone.
type LeftOut struct{ Name, Why string }

// Propose says which interface is taken for which network. An error is about
// the zones that the operator has named.
func Propose(f Facts) (File, error) {
	p := proposal{facts: f, left: map[string]edge.Link{}}
	p.file.Kubeconfig = cmp.Or(f.Kubeconfig, "/etc/gatehouse/kubeconfig")
	for _, l := range f.Links {
		p.left[l.Name] = l
	}
	if err := p.takeNamed(); err != nil {
		return File{}, err
	}
	var candidates, stacked []edge.Link
	for _, l := range f.Links {
		if _, there := p.left[l.Name]; !there {
			continue
		}
		switch why := leaveOut(l); {
		case why != "":
			delete(p.left, l.Name)
			p.file.LeftOut = append(p.file.LeftOut, LeftOut{l.Name, why})
		case p.reallyTowards(l):
			p.add(cluster, l, "it leads to "+p.towards(l))
		case l.Parent != "" && l.Kind != "vlan":
			stacked = append(stacked, l)
		default:
			candidates = append(candidates, l)
		}
	}
	// The interface that the machine itself goes out by says most.
	slices.SortStableFunc(candidates, func(a, b edge.Link) int {
		if a.Default != b.Default {
			return cmp.Compare(boolean(b.Default), boolean(a.Default))
		}
		return cmp.Compare(a.Metric, b.Metric)
	})
	for _, l := range candidates {
		p.place(l)
	}
	for _, l := range stacked {
		p.placeStacked(l)
	}
	slices.SortStableFunc(p.file.Zones, func(a, b Zone) int { return cmp.Compare(rank(a.Name), rank(b.Name)) })
	return p.file, nil
}

func boolean(b bool) int {
	if b {
		return 1
	}
	return 0
}

// rank puts the usual zones first, in the order in which they matter.
func rank(zone string) int {
	if i := slices.Index([]string{home, internet, cluster}, zone); i >= 0 {
		return i
	}
	return 3
}

type proposal struct {
	facts Facts
	file  File
	left  map[string]edge.Link // not yet in a zone
}

func (p *proposal) takeNamed() error {
	for _, z := range p.facts.Zones {
		if !dnsLabel.MatchString(z.Name) {
			return fmt.Errorf("%q is not a name of a zone: write 1 to 63 small letters, digits and -", z.Name)
		}
		if p.zone(z.Name) != nil {
			return fmt.Errorf("zone %s is there twice; write its interfaces in one", z.Name)
		}
		for _, name := range z.Interfaces {
			l, ok := p.left[name]
			switch {
			case !ok && slices.ContainsFunc(p.facts.Links, func(l edge.Link) bool { return l.Name == name }):
				return fmt.Errorf("interface %s is in two zones; it can be in one", name)
			case !ok:
				return fmt.Errorf("zone %s: this machine has no interface %q; it has %s", z.Name, name, p.names())
			case !plain(name):
				return fmt.Errorf("zone %s: the name of interface %q cannot be written into a file", z.Name, name)
			}
			p.add(z.Name, l, "as you say")
		}
	}
	return nil
}

func (p *proposal) names() string {
	var names []string
	for _, l := range p.facts.Links {
		if !l.Loopback {
			names = append(names, l.Name)
		}
	}
	return cmp.Or(strings.Join(names, ", "), "none")
}

// reallyTowards says whether an interface leads to the cluster and is not the
// way to everything else as well.
func (p *proposal) reallyTowards(l edge.Link) bool {
	return p.towards(l) != "" && !l.Default && p.mayPropose(cluster)
}

// towards is what of the cluster an interface leads to.
func (p *proposal) towards(l edge.Link) string {
	var what []string
	for _, t := range p.facts.Towards {
		if t.Link == l.Name && !slices.Contains(what, t.What) {
			what = append(what, t.What)
		}
	}
	return strings.Join(what, ", ")
}

// place finds the zone of an interface with a way of its own out of the machine.
func (p *proposal) place(l edge.Link) {
	also := ""
	if t := p.towards(l); t != "" {
		also = "; it leads to " + t + ", too"
	}
	switch same := p.sameNetwork(l); {
	case public(l) && p.mayPropose(internet):
		p.add(internet, l, "it has a public address"+also)
	case same != nil && (same.Why != "as you say"):
		p.add(same.Name, l, "the same network"+also)
	case !public(l) && l.Default && p.zone(home) == nil:
		p.add(home, l, "the default route leaves by it, and its addresses are private"+also)
	// Behind the only way to the Internet, this machine is the router of somebody.
	case !public(l) && p.zone(home) == nil && p.zone(internet) != nil && !tunnel(l):
		p.add(home, l, "its addresses are private"+also)
	default:
		p.add(p.nameFor(l), l, "named after its interface: call it what the network is"+also)
	}
}

// placeStacked finds that of a MACVLAN and its like. Nobody makes one for the
// network that its interface is in already: it is a door of its own there, such
// as for what a router forwards from outside.
func (p *proposal) placeStacked(l edge.Link) {
	parent := p.zoneOf(l.Parent)
	if parent != nil && parent.Name == home && p.mayPropose(internet) && !public(l) {
		to := "it"
		if len(l.Addrs) > 0 {
			to = l.Addrs[0].Addr().String()
		}
		p.add(internet, l, "a "+l.Kind+" on "+l.Parent+", a door of its own: have the router forward public ports to "+to)
		return
	}
	p.place(l)
}

// mayPropose says whether a zone is free, or was proposed here: one that the
// operator has named has the interfaces that the operator has named.
func (p *proposal) mayPropose(name string) bool {
	z := p.zone(name)
	return z == nil || z.Why != "as you say"
}

func (p *proposal) zone(name string) *Zone {
	for i := range p.file.Zones {
		if p.file.Zones[i].Name == name {
			return &p.file.Zones[i]
		}
	}
	return nil
}

func (p *proposal) zoneOf(link string) *Zone {
	for i, z := range p.file.Zones {
		if slices.ContainsFunc(z.Links, func(l edge.Link) bool { return l.Name == link }) {
			return &p.file.Zones[i]
		}
	}
	return nil
}

// sameNetwork is the zone of another interface into the same IPv4 network, as of
// a notebook with a cable and a radio.
func (p *proposal) sameNetwork(l edge.Link) *Zone {
	for i, z := range p.file.Zones {
		for _, other := range z.Links {
			for _, a := range l.Addrs {
				if a.Addr().Is4() && a.Bits() < 31 && slices.ContainsFunc(other.Addrs, func(b netip.Prefix) bool { return b.Masked() == a.Masked() }) {
					return &p.file.Zones[i]
				}
			}
		}
	}
	return nil
}

func (p *proposal) add(zone string, l edge.Link, why string) {
	delete(p.left, l.Name)
	if z := p.zone(zone); z != nil {
		z.Links = append(z.Links, l)
		return
	}
	p.file.Zones = append(p.file.Zones, Zone{Name: zone, Links: []edge.Link{l}, Why: why})
}

var notLabel = regexp.MustCompile(`[^a-z0-9]+`)

// nameFor is a name that no zone has yet.
func (p *proposal) nameFor(l edge.Link) string {
	name := strings.Trim(notLabel.ReplaceAllString(strings.ToLower(l.Name), "-"), "-")
	switch {
	case tunnel(l):
		name = "vpn"
	case l.Wireless:
		name = "wifi"
	case name == "":
		name = "net"
	}
	base := name
	for n := 2; p.zone(name) != nil; n++ {
		name = base + "-" + strconv.Itoa(n)
	}
	return name
}
