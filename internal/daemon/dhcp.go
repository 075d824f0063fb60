package daemon

import (
	"context"
	"log/slog"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// dhcp gives addresses to the machines of zones.
type dhcp struct {
	log     *slog.Logger
	changed func() // asks for a new decision
}

func newDHCP(log *slog.Logger, changed func()) *dhcp { return &dhcp{log: log, changed: changed} }

// run looks after it until ctx ends.
func (x *dhcp) run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// retire is called when another process is about to take over, and with false if
// that came to nothing.
func (x *dhcp) retire(bool) {}

// apply serves what was decided.
func (x *dhcp) apply(context.Context, decision) []edge.Problem { return nil }

// leases are those that there are, sorted by address.
func (x *dhcp) leases() []edge.Lease { return nil }

func (x *dhcp) status(*config.Config) []status.DHCPZone { return nil }
