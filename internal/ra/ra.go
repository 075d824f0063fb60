// Package ra advertises this machine as an IPv6 router to its neighbours: router
// advertisements (RFC 4861 §6.2) with prefixes that machines make themselves
// addresses of (RFC 4862), DNS servers and search domains (RFC 8106).
//
//	a := ra.New(log, ra.Options{})
//	a.Apply(ctx, map[string]ra.Content{"eth0": {Lifetime: 30 * time.Minute, Prefixes: ...}})
//	...
//	a.Stop(true) // tells everybody that this is no router any more
//
// It owns one raw ICMPv6 socket for each interface and the times at which is
// advertised. It changes nothing of the machine, and reads no configuration.
//
// A prefix that is not in the Content any more is advertised as deprecated for
// two hours (prefixes.go): machines open no new connections from addresses in
// it, and those that they have go on.
package ra

import (
	"net/netip"
	"slices"
	"time"
)

// Content is what is advertised on one interface.
type Content struct {
	// Lifetime is how long this machine is a default router for who hears of it, to
	// the second, at most 18h12m15s; 0: it is none.
	Lifetime time.Duration
	// Other says that there is more to know by stateless DHCPv6 (RFC 4861 §4.2, O).
	Other    bool
	MTU      uint32 // 0: not said
	Prefixes []Prefix
	DNS      []netip.Addr // RFC 8106 §5.1
	Search   []string     // RFC 8106 §5.2; without dots at their ends
}

// Prefix is a network on the interface.
type Prefix struct {
	Prefix netip.Prefix
	// Valid is how long addresses in it may be used, Preferred how long new
	// connections may be opened from them; both to the second, and Preferred the
	// shorter one.
	Valid, Preferred time.Duration
}

func (c Content) equal(o Content) bool {
	return c.Lifetime == o.Lifetime && c.Other == o.Other && c.MTU == o.MTU && slices.Equal(c.Prefixes, o.Prefixes) &&
		slices.Equal(c.DNS, o.DNS) && slices.Equal(c.Search, o.Search)
}

func (c Content) clone() Content {
	c.Prefixes, c.DNS, c.Search = slices.Clone(c.Prefixes), slices.Clone(c.DNS), slices.Clone(c.Search)
	return c
}
