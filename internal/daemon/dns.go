package daemon

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/config"
	dnsserver "e13.dev/gatehouse/internal/dns"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/names"
	"e13.dev/gatehouse/internal/status"
)

const (
	resolvConf = "/etc/resolv.conf"
	// How often the file is looked at: nobody tells when it changes.
	resolvInterval = 10 * time.Second

	dnsPort = 53
)

// dns answers the questions of zones.
type dns struct {
	log        *slog.Logger
	changed    func() // asks for a new decision
	server     *dnsserver.Server
	resolvConf string
	lookEvery  time.Duration // at resolvConf

	mu       sync.Mutex
	resolv   []byte // as it was last read
	followed bool   // something follows from it
	failures []dnsserver.Failure
	absent   map[string]bool // zones none of whose interfaces is there
}

func newDNS(log *slog.Logger, changed func()) *dns {
	return &dns{log: log, changed: changed, server: dnsserver.New(log, dnsserver.Options{}), resolvConf: resolvConf, lookEvery: resolvInterval}
}

// run looks after it until ctx ends.
func (x *dns) run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- x.server.Run(ctx) }()
	look := time.NewTicker(x.lookEvery)
	defer look.Stop()
	for {
		select {
		case err := <-served:
			return err
		case <-look.C:
			x.mu.Lock()
			before, followed := x.resolv, x.followed
			x.mu.Unlock()
			if followed && !bytes.Equal(before, x.read()) {
				x.changed()
			}
		}
	}
}

// retire is called when another process is about to take over, and with false if
// that came to nothing. Both answer until this one ends, from the same names:
// their sockets share the port.
func (x *dns) retire(bool) {}

// apply serves what was decided, with the names of machines that have a lease,
// and with the upstreams that interfaces of this machine have been told.
func (x *dns) apply(_ context.Context, now decision, leases []edge.Lease, told []edge.LinkLease) []edge.Problem {
	c := now.in.Config
	if c.DNS == nil {
		x.server.Apply(dnsserver.Config{})
		x.mu.Lock()
		defer x.mu.Unlock()
		x.failures, x.absent, x.followed = nil, nil, false
		return nil
	}
	records := names.Build(names.Inputs{
		Config: c, Interfaces: now.in.Interfaces, Exposures: now.state.Exposures, Names: now.state.Names, Cluster: now.in.Cluster,
		Leases: leases,
	})
	want, absent := dnsZones(c, now, records)
	upstreams, problems := x.upstreams(c.DNS, told)
	want.Upstreams = upstreams
	for _, f := range c.DNS.Forwards {
		want.Forwards = append(want.Forwards, dnsserver.Forward{Domain: f.Domain, Upstreams: known(f.Upstreams, told)})
	}
	for _, u := range want.Upstreams {
		if !u.Usable(want.Self, dnsPort) {
			problems = append(problems, edge.Problem{
				Pos: c.DNS.Pos, Path: "dns.upstreams", What: fmt.Sprintf("the upstream %s is this machine", u),
				Remedy: "name another server there, or in " + x.resolvConf,
			})
		}
	}
	failures := x.server.Apply(want)
	for _, f := range failures {
		problems = append(problems, edge.Problem{
			Pos: c.DNS.Pos, Object: "zone/" + f.Zone, Path: "dns", What: fmt.Sprintf("DNS is not served on %s: %v", f.Device, f.Err),
			Remedy: "end that server, or take the zone out of dns.zones",
		})
	}
	for _, u := range x.server.Stats().Upstreams {
		if u.Error == dnsserver.Loop {
			problems = append(problems, edge.Problem{
				Pos: c.DNS.Pos, Path: "dns.upstreams", What: fmt.Sprintf("the upstream %s: %s", u.Server, u.Error),
				Remedy: "have one of the two ask somebody else",
			})
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.failures, x.absent = failures, absent
	return problems
}

// dnsZones is where the server answers, and with which names; and the zones of
// which there is no interface.
func dnsZones(c *config.Config, now decision, records []edge.Records) (dnsserver.Config, map[string]bool) {
	d := c.DNS
	want := dnsserver.Config{
		Domain: d.Domain, ServiceDomain: d.ServiceDomain, NameServer: names.Own + "." + d.Domain, Rebinding: d.Rebinding,
		TTL: d.TTL, CacheSize: d.CacheSize, RatePerClient: d.RatePerClient,
	}
	absent := map[string]bool{}
	for _, i := range now.in.Interfaces {
		served := slices.ContainsFunc(c.Zones, func(z edge.Zone) bool {
			return slices.Contains(d.Zones, z.Name) && slices.Contains(z.Interfaces, i.Name)
		})
		for _, p := range i.Addrs {
			// What answers at 127.0.0.1 is another server: this one is bound to its
			// interfaces.
			if served || !p.Addr().IsLoopback() {
				want.Self = append(want.Self, p.Addr())
			}
		}
	}
	for _, r := range records {
		z := dnsserver.Zone{Name: r.Zone, Records: r}
		for _, i := range interfacesOf(c, now.in.Interfaces, r.Zone) {
			device := dnsserver.Device{Name: i.Name, Index: i.Index}
			for _, p := range i.Addrs {
				device.Addrs = append(device.Addrs, p.Addr())
			}
			z.Devices = append(z.Devices, device)
		}
		networks := networksOf(c, now.in.Interfaces, r.Zone)
		want.Reverse = append(want.Reverse, networks...)
		z.Clients = append(networks, behind(c, now, networks)...)
		absent[r.Zone] = len(z.Devices) == 0
		want.Zones = append(want.Zones, z)
	}
	slices.SortFunc(want.Reverse, netip.Prefix.Compare)
	want.Reverse = slices.Compact(want.Reverse)
	return want, absent
}

func interfacesOf(c *config.Config, all []edge.Interface, zone string) []edge.Interface {
	var list []edge.Interface
	for _, z := range c.Zones {
		for _, i := range all {
			if z.Name == zone && slices.Contains(z.Interfaces, i.Name) {
				list = append(list, i)
			}
		}
	}
	return list
}

// networksOf are the networks of a zone's interfaces, and those behind relay
// agents of its DHCP server.
func networksOf(c *config.Config, all []edge.Interface, zone string) []netip.Prefix {
	var list []netip.Prefix
	for _, i := range interfacesOf(c, all, zone) {
		for _, p := range i.Addrs {
			if !p.IsSingleIP() {
				list = append(list, p.Masked())
			}
		}
	}
	for _, d := range c.DHCP {
		for _, r := range d.Relayed {
			if d.Zone == zone {
				list = append(list, r.Network.Masked())
			}
		}
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}

// behind are the networks that are reached by a neighbour in one of networks:
// those of the file's routes, but for a default route, and of the pods of nodes.
func behind(c *config.Config, now decision, networks []netip.Prefix) []netip.Prefix {
	in := func(a netip.Addr) bool {
		return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	var list []netip.Prefix
	for _, l := range c.Links {
		for _, r := range l.Routes {
			if r.To.Bits() > 0 && in(r.Via) {
				list = append(list, r.To.Masked())
			}
		}
	}
	if now.in.Cluster != nil {
		for _, n := range now.in.Cluster.Nodes {
			if slices.ContainsFunc(n.Addrs, in) {
				list = append(list, n.PodCIDRs...)
			}
		}
	}
	return list
}

// upstreams are the servers of the configuration, or without any those of
// resolv.conf.
func (x *dns) upstreams(d *config.DNS, told []edge.LinkLease) ([]dnsserver.Upstream, []edge.Problem) {
	x.mu.Lock()
	x.followed = d.Upstreams == nil
	x.mu.Unlock()
	if d.Upstreams != nil {
		return known(d.Upstreams, told), nil
	}
	text := x.read()
	x.mu.Lock()
	x.resolv = text
	x.mu.Unlock()
	list := nameservers(string(text))
	if len(list) > 0 {
		return list, nil
	}
	return nil, []edge.Problem{{
		Pos: d.Pos, Path: "dns.upstreams", What: fmt.Sprintf("there is nobody to ask: %s names no server", x.resolvConf),
		Remedy: `name some, such as ["9.9.9.9"]; or [], if nobody is to be asked`,
	}}
}

// known are the addresses of upstreams, as far as they are known: those of an
// interface only once it has a lease.
func known(upstreams []config.Upstream, told []edge.LinkLease) []dnsserver.Upstream {
	var list []dnsserver.Upstream
	for _, u := range upstreams {
		if u.Link == "" {
			list = append(list, dnsserver.Upstream{Addr: u.Addr, TLS: u.TLS})
			continue
		}
		for _, l := range told {
			for _, a := range l.DNS {
				if l.Link == u.Link {
					list = append(list, dnsserver.Upstream{Addr: netip.AddrPortFrom(a, dnsPort)})
				}
			}
		}
	}
	return list
}

func (x *dns) read() []byte {
	text, err := os.ReadFile(x.resolvConf)
	if err != nil {
		return nil
	}
	return text
}

// nameservers reads what resolv.conf(5) says of servers.
func nameservers(text string) []dnsserver.Upstream {
	var list []dnsserver.Upstream
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			list = append(list, dnsserver.Upstream{Addr: netip.AddrPortFrom(a.Unmap(), dnsPort)})
		}
	}
	return list
}

func (x *dns) status(c *config.Config) *status.DNS {
	if c == nil || c.DNS == nil {
		return nil
	}
	stats := x.server.Stats()
	x.mu.Lock()
	defer x.mu.Unlock()
	out := &status.DNS{Zones: []status.DNSZone{}, Upstreams: []status.Upstream{}, Cached: stats.Cached}
	for _, name := range c.DNS.Zones {
		one := status.DNSZone{Zone: name, Queries: map[string]uint64{}, Answers: map[string]uint64{}}
		for _, z := range stats.Zones {
			if z.Zone == name {
				one.Names, one.Own, one.CacheHits, one.Forwarded, one.Limited, one.Rebinding = z.Names, z.Own, z.CacheHits, z.Forwarded, z.Limited, z.Rebinding
				count(one.Queries, "UDP", z.UDP)
				count(one.Queries, "TCP", z.TCP)
				for code, n := range z.Answers {
					count(one.Answers, dnsserver.Rcode(code), n)
				}
			}
		}
		for _, f := range x.failures {
			if f.Zone == name {
				one.Error = fmt.Sprintf("%s: %v", f.Device, f.Err)
			}
		}
		if x.absent[name] {
			one.Error = "none of its interfaces is there"
		}
		out.Zones = append(out.Zones, one)
	}
	for _, u := range stats.Upstreams {
		out.Upstreams = append(out.Upstreams, status.Upstream{Server: u.Server, Up: u.Up, Queries: u.Queries, Failed: u.Failed, Error: u.Error})
	}
	return out
}

// count leaves out what has not happened.
func count(in map[string]uint64, key string, n uint64) {
	if n > 0 {
		in[key] = n
	}
}
