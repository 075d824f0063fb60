package daemon

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/dhcp6"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/ra"
	"e13.dev/gatehouse/internal/status"
)

// How long machines may use addresses (valid) and open new connections from them
// (preferred). A prefix that is in the file is another one when somebody edits
// it, and gatehouse has time to say so. One that is taken from this machine's
// addresses may be another one after a loss of power (RFC 9096 §3.4).
const (
	writtenValid, writtenPreferred = 24 * time.Hour, 4 * time.Hour
	ownValid, ownPreferred         = 90 * time.Minute, 45 * time.Minute
)

// It is looked for changes in what was told at these times, and it is saved after
// the longer one anyway, since it holds for longer then.
const (
	toldInterval = 2 * time.Second
	toldAgain    = 10 * time.Minute
)

// adverts are what machines of zones are told of IPv6: router advertisements and
// stateless DHCPv6.
type adverts struct {
	log        *slog.Logger
	advertiser *ra.Advertiser
	server     *dhcp6.Server

	mu       sync.Mutex
	retired  bool // another process tells
	ended    bool // it is over
	recalled bool // what a process before has told is known
	stateDir string
	applied  []advertised
}

// advertised is what is told on an interface.
type advertised struct {
	zone, device string
	pos          edge.Pos
	ra           ra.Link
	dhcp6        dhcp6.Link
}

func newAdverts(log *slog.Logger, changed func()) *adverts {
	return &adverts{
		log:        log,
		advertiser: ra.New(log, ra.Options{Changed: changed}), server: dhcp6.New(log, dhcp6.Options{Changed: changed}),
	}
}

// run keeps what was told until ctx ends; then everybody is told that this is no
// router any more, unless another process goes on.
func (x *adverts) run(ctx context.Context) error {
	look := time.NewTicker(toldInterval)
	defer look.Stop()
	var saved ra.Told
	var at time.Time
	for {
		select {
		case <-ctx.Done():
			x.mu.Lock()
			defer x.mu.Unlock()
			x.ended = true
			x.advertiser.Stop(!x.retired)
			x.server.Stop()
			return ctx.Err()
		case <-look.C:
		}
		x.mu.Lock()
		dir, told := x.stateDir, x.advertiser.Told()
		ours := x.recalled && !x.retired && dir != ""
		x.mu.Unlock()
		if !ours || maps.EqualFunc(saved, told, samePrefixes) && time.Since(at) < toldAgain {
			continue
		}
		saved, at = told, time.Now()
		if err := ra.Save(dir, told); err != nil {
			x.log.Warn("advertised prefixes not saved", "err", err)
		}
	}
}

func samePrefixes(a, b map[netip.Prefix]time.Time) bool {
	return maps.EqualFunc(a, b, func(time.Time, time.Time) bool { return true })
}

// retire is called when another process is about to take over, and with false if
// that came to nothing.
func (x *adverts) retire(yes bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.retired = yes
	if yes {
		x.advertiser.Stop(false)
		x.server.Stop()
	} else {
		x.tellLocked(context.Background())
	}
}

// apply has those zones told that are to be.
func (x *adverts) apply(ctx context.Context, now decision) []edge.Problem {
	taken := make(map[netip.Addr]bool, len(now.state.Addresses))
	for _, a := range now.state.Addresses {
		taken[a.Addr] = true
	}
	all, problems := toAdvertise(now.in.Config, now.in.Interfaces, taken)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.retired || x.ended || ctx.Err() != nil {
		return nil
	}
	x.stateDir = now.in.Config.StateDir
	if len(all) > 0 && !x.recalled {
		x.recalled = true
		if x.stateDir != "" {
			before, err := ra.Load(x.stateDir)
			if err != nil {
				x.log.Warn("advertised prefixes of before not read", "err", err)
			}
			x.advertiser.Recall(before)
		}
	}
	x.applied = all
	x.tellLocked(ctx)
	failures, dhcpFailures := x.advertiser.Status(), x.server.Status()
	for _, a := range all {
		object := "routerAdvertisements/" + a.device
		if failure := failures[a.device].Error; failure != "" {
			problems = append(problems, edge.Problem{
				Pos: a.pos, Object: object, What: "nothing is advertised on " + a.device + ": " + failure,
				Remedy: "it takes IPv6 on the interface (net.ipv6.conf." + a.device + ".disable_ipv6 is 0) and CAP_NET_RAW; it is tried again",
			})
		}
		if failure := dhcpFailures[a.device].Error; failure != "" {
			problems = append(problems, edge.Problem{
				Pos: a.pos, Object: object, What: "stateless DHCPv6 is not answered on " + a.device + ": " + failure,
				Remedy: "port 547/UDP has to be free there, and takes CAP_NET_BIND_SERVICE; it is tried again",
			})
		}
	}
	return problems
}

func (x *adverts) tellLocked(ctx context.Context) {
	advertise, answer := map[string]ra.Link{}, map[string]dhcp6.Link{}
	for _, a := range x.applied {
		if a.ra.Index != 0 {
			advertise[a.device] = a.ra
		}
		if a.dhcp6.Index != 0 {
			answer[a.device] = a.dhcp6
		}
	}
	x.advertiser.Apply(ctx, advertise)
	x.server.Apply(ctx, answer)
}

// toAdvertise is what is told on which interface, and what is wrong with that.
// taken are addresses that come and go with Services.
func toAdvertise(c *config.Config, interfaces []edge.Interface, taken map[netip.Addr]bool) (all []advertised, problems []edge.Problem) {
	for _, d := range c.DHCP {
		r, zone := d.RouterAdvertisements, c.Zone(d.Zone)
		if r == nil || zone == nil {
			continue
		}
		served := map[netip.Prefix]bool{}
		for _, device := range zone.Interfaces {
			n := slices.IndexFunc(interfaces, func(i edge.Interface) bool { return i.Name == device })
			if n < 0 {
				continue // which is said where zones are
			}
			i := interfaces[n]
			a := advertised{zone: d.Zone, device: device, pos: r.Pos}
			networks := networks64(i, taken)
			content := ra.Content{Lifetime: r.Lifetime, MTU: uint32(r.MTU), DNS: r.DNS, Search: searchOf(c, d)}
			for _, p := range networks {
				if r.Prefixes == nil {
					content.Prefixes = append(content.Prefixes, ra.Prefix{Prefix: p, Valid: ownValid, Preferred: ownPreferred})
				} else if slices.Contains(r.Prefixes, p) {
					content.Prefixes = append(content.Prefixes, ra.Prefix{Prefix: p, Valid: writtenValid, Preferred: writtenPreferred})
					served[p] = true
				}
			}
			if r.DNS == nil && c.DNS != nil && slices.Contains(c.DNS.Zones, d.Zone) {
				if own := ownAddress6(i, taken); own.IsValid() {
					content.DNS = []netip.Addr{own}
				}
			}
			more := dhcp6.Content{DNS: content.DNS, Search: content.Search, NTP: r.NTP}
			content.Other = !more.Empty()
			if i.Up {
				a.ra = ra.Link{Index: i.Index, Content: content}
			}
			if !more.Empty() {
				a.dhcp6 = dhcp6.Link{Index: i.Index, Content: more}
			}
			all = append(all, a)
			if r.Prefixes == nil && len(networks) == 0 && i.Up {
				problems = append(problems, edge.Problem{
					Pos: r.Pos, Object: "routerAdvertisements/" + device,
					What:   device + " has no IPv6 address in a network of 64 bits: machines there can make themselves none",
					Remedy: "give it one, such as fd00:10::1/64",
				})
			}
		}
		for _, p := range r.Prefixes {
			if !served[p] {
				problems = append(problems, edge.Problem{
					Pos: r.Pos, Object: "routerAdvertisements/" + d.Zone,
					What:   p.String() + " is not advertised: no interface of zone " + d.Zone + " has an address in it",
					Remedy: "give one of them an address such as " + netip.PrefixFrom(p.Addr().Next(), 64).String(),
				})
			}
		}
	}
	return all, problems
}

// networks64 are those in which the machines of an interface can make themselves
// addresses.
func networks64(i edge.Interface, taken map[netip.Addr]bool) (all []netip.Prefix) {
	for _, p := range i.Addrs {
		if n := p.Masked(); ra.CanHave(n) && !taken[p.Addr()] && !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	return all
}

// ownAddress6 is the one at which this machine is asked: one of a site rather
// than of the Internet (RFC 4193), which moves when the provider likes.
func ownAddress6(i edge.Interface, taken map[netip.Addr]bool) (own netip.Addr) {
	for _, p := range i.Addrs {
		a := p.Addr()
		if !a.Is6() || a.Is4In6() || taken[a] {
			continue
		}
		if a.IsPrivate() {
			return a
		}
		if !own.IsValid() {
			own = a
		}
	}
	return own
}

// searchOf are the domains in which machines look for short names.
func searchOf(c *config.Config, d config.DHCP) []string {
	switch {
	case d.RouterAdvertisements.Search != nil:
		return d.RouterAdvertisements.Search
	case d.Options.Search != nil:
		return d.Options.Search
	case d.Options.Domain != "":
		return []string{d.Options.Domain}
	case c.DNS != nil && c.DNS.Domain != "":
		return []string{c.DNS.Domain}
	}
	return nil
}

// status says what is told on each interface.
func (x *adverts) status() (all []status.Advertised) {
	x.mu.Lock()
	defer x.mu.Unlock()
	told, answered := x.advertiser.Status(), x.server.Status()
	for _, a := range x.applied {
		s, d := told[a.device], answered[a.device]
		row := status.Advertised{
			Zone: a.zone, Interface: a.device, Sent: s.Sent, Answered: s.Answered, Requests: d.Requests, Replies: d.Replies, Error: s.Error,
		}
		if row.Error == "" {
			row.Error = d.Error
		}
		if a.ra.Index == 0 {
			row.Error = "it is down"
		}
		for _, p := range a.ra.Content.Prefixes {
			row.Prefixes = append(row.Prefixes, p.Prefix)
		}
		for _, p := range s.Deprecated {
			row.Deprecated = append(row.Deprecated, p.Prefix)
		}
		all = append(all, row)
	}
	return all
}
