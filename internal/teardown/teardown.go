// Package teardown takes out of the kernel what gatehouse has left there: the
// nat data plane, the firewall and addresses of pools outlive the process, and go only when
// they are told to.
//
//	removed, err := teardown.Run(ctx, delivery)
//
// It owns nothing, and knows where each thing is from: the packages that make
// them also remove them. It leaves the files of gatehouse alone.
package teardown

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/conntrack"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/filter"
	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/links"
	"e13.dev/gatehouse/internal/nat"
	"e13.dev/gatehouse/internal/nft"
	"e13.dev/gatehouse/internal/vip"
)

// RunningError is why nothing was removed: a gatehouse runs in this network
// namespace, and would make everything anew.
type RunningError struct{ Pids []int }

func (e *RunningError) Error() string {
	processes := "process"
	if len(e.Pids) > 1 {
		processes = "processes"
	}
	return fmt.Sprintf("gatehouse runs here (%s %s)", processes, strings.Trim(fmt.Sprint(e.Pids), "[]"))
}

// Run removes everything that there is, and says what it was. Where one thing
// cannot be removed the others are, and the error names it. The delivery is that
// of transparent relaying.
func Run(ctx context.Context, delivery host.Delivery) (removed []string, err error) {
	if err := Running(); err != nil {
		return nil, err
	}
	var errs []error
	note := func(what string, was bool, err error) {
		if was {
			removed = append(removed, what)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}

	// What the table says is needed once it is gone.
	table := nat.New()
	doors, backends, err := behind(ctx, table)
	note("", false, err)
	was, err := table.Remove(ctx)
	note(tableOf(nat.Table)+doorsOf(doors), was, err)
	if err == nil { // else the kernel would make new ones
		n, err := forget(ctx, backends)
		followed := "1 connection that the kernel followed"
		if n > 1 {
			followed = fmt.Sprintf("%d connections that the kernel followed", n)
		}
		note(followed, n > 0, err)
	}

	was, err = filter.New().Remove(ctx)
	note(tableOf(filter.Table)+": what it kept out may come in now", was, err)

	// Before the wall around them, which goes with them.
	was, err = vip.Remove(ctx)
	note("addresses of pools, and nftables tables inet and arp "+vip.Table, was, err)

	own, err := links.Remove()
	note("links: "+strings.Join(own, ", "), len(own) > 0, err)

	var routes host.Routes
	was, err = routes.Remove()
	note("routes to pods", was, err)

	was, err = nft.New().Apply(ctx, nft.State{})
	if errors.Is(err, nft.ErrNotInstalled) {
		if there, lookErr := delivery.Present(); lookErr == nil && !there {
			err = nil // the table is never without the routes
		}
	}
	note(tableOf(nft.Table), was, err)
	was, err = delivery.Remove()
	note("rules and routes of transparent relaying", was, err)
	return removed, errors.Join(errs...)
}

func tableOf(name string) string { return "nftables table inet " + name }

func doorsOf(doors []edge.Door) string {
	if len(doors) == 0 {
		return ""
	}
	const few = 5
	var names []string
	for _, d := range doors[:min(few, len(doors))] {
		names = append(names, d.String())
	}
	text := strings.Join(names, ", ")
	if more := len(doors) - few; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return ", which had " + text
}

// service is what a client has connected to, as far as an entry of conntrack
// tells: not by which interface.
type service struct {
	protocol edge.Protocol
	port     uint16
}

// behind returns the doors of the table and, for each service, where its
// connections may go: to the backends it has, and to former ones, whose counters
// are kept for as long as they have connections.
func behind(ctx context.Context, table *nat.Applier) (doors []edge.Door, backends map[service]map[netip.AddrPort]bool, err error) {
	doors, now, err := table.Adopt(ctx)
	if err != nil {
		return nil, nil, err
	}
	backends = map[service]map[netip.AddrPort]bool{}
	add := func(d edge.Door, backend netip.AddrPort) {
		s := service{d.Protocol, d.Listen.Port}
		if backends[s] == nil {
			backends[s] = map[netip.AddrPort]bool{}
		}
		backends[s][backend] = true
	}
	for door, all := range now {
		for _, backend := range all {
			add(door, backend)
		}
	}
	counts, err := table.Counters(ctx)
	for _, c := range counts {
		// Packets of others' connections are counted, too; their beginning is not.
		if c.Connections > 0 {
			add(c.Door, c.Backend)
		}
	}
	return doors, backends, err
}

// forget deletes the entries of connections to these backends. The kernel goes
// by them and not by the table once a connection has begun.
func forget(ctx context.Context, backends map[service]map[netip.AddrPort]bool) (deleted int, err error) {
	if len(backends) == 0 {
		return 0, nil
	}
	flows, err := conntrack.List(ctx, conntrack.Filter{DNAT: true})
	if err != nil {
		return 0, err
	}
	return conntrack.Delete(ctx, slices.DeleteFunc(flows, func(f conntrack.Flow) bool {
		return !backends[service{f.Protocol, f.Front.Port()}][f.Backend]
	}))
}
