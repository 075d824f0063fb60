package daemon

import (
	"context"
	"log/slog"
	"slices"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// router is what makes this machine the router of its zones. Each part is off
// without its block in the configuration, and takes away what it has made when
// the block goes.
type router struct {
	links   *links
	filter  *filter
	dhcp    *dhcp
	adverts *adverts
	dns     *dns
}

func newRouter(log *slog.Logger, changed func()) router {
	return router{
		links: newLinks(log, changed), filter: newFilter(log, changed), dhcp: newDHCP(log, changed),
		adverts: newAdverts(log, changed), dns: newDNS(log, changed),
	}
}

// serve is what follows from a decision and changes nothing that it follows
// from. The filter is not among it, which has to be there before doors are
// opened.
func (r router) serve(ctx context.Context, now decision) []edge.Problem {
	dhcp := r.dhcp.apply(ctx, now)
	adverts := r.adverts.apply(ctx, now)
	dns := r.dns.apply(ctx, now, r.dhcp.leases(), r.links.leases())
	return slices.Concat(dhcp, adverts, dns)
}

// retire stops what another process does from now on, or has it go on if that
// came to nothing.
func (r router) retire(yes bool) {
	r.links.retire(yes)
	r.filter.retire(yes)
	r.dhcp.retire(yes)
	r.adverts.retire(yes)
	r.dns.retire(yes)
}

func (r router) status(c *config.Config) status.Router {
	return status.Router{Firewall: r.filter.status(c), Links: r.links.status(c), DHCP: r.dhcp.status(c), DNS: r.dns.status(c), Advertised: r.adverts.status()}
}
