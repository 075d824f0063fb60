package daemon

import (
	"context"
	"errors"
	"net"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/web"
)

// serveAdmin keeps the status page where the configuration wants it. A page
// that cannot be served is a problem, and no reason to serve no traffic.
func (d *Daemon) serveAdmin(ctx context.Context, a config.Admin) []edge.Problem {
	if a.Listen == "" {
		d.page = page{}
		if d.admin.stop() {
			d.log.Info("status page closed")
		}
		return nil
	}
	if d.admin.holds(a.Listen) {
		return nil
	}
	d.admin.stop() // before listening: the new address may overlap the old one
	d.page = page{}
	listener, err := d.listenAdmin(a.Listen)
	if err != nil {
		return []edge.Problem{{Pos: a.Pos, Path: "admin.listen", What: "no status page: " + err.Error(), Remedy: "it is tried again"}}
	}
	d.page = page{a.Listen, listener}
	d.log.Info("status page", "url", "http://"+listener.Addr().String()+"/")
	// The page outlives ctx, to show connections draining.
	d.admin.set(context.WithoutCancel(ctx), a.Listen, func(ctx context.Context) {
		if err := web.New(web.Source{Status: d.Status, Explain: d.Explain}, d.log).Serve(ctx, listener); err != nil && !errors.Is(err, context.Canceled) {
			d.log.Error("status page ended", "err", err)
		}
	})
	return nil
}

// listenAdmin opens the address, unless the process before had it open.
func (d *Daemon) listenAdmin(address string) (*net.TCPListener, error) {
	if p := d.inherited; p.listener != nil && p.Listen == address {
		d.inherited = page{}
		return p.listener, nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return listener.(*net.TCPListener), nil
}
