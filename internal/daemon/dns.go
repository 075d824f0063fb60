package daemon

import (
	"context"
	"log/slog"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// dns answers the questions of zones.
type dns struct {
	log     *slog.Logger
	changed func() // asks for a new decision
}

func newDNS(log *slog.Logger, changed func()) *dns { return &dns{log: log, changed: changed} }

// run looks after it until ctx ends.
func (x *dns) run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// retire is called when another process is about to take over, and with false if
// that came to nothing.
func (x *dns) retire(bool) {}

// apply serves what was decided, with the names of machines that have a lease,
// and with the upstreams that interfaces of this machine have been told.
func (x *dns) apply(context.Context, decision, []edge.Lease, []edge.LinkLease) []edge.Problem {
	return nil
}

func (x *dns) status(*config.Config) *status.DNS { return nil }
