package daemon

import (
	"context"
	"log/slog"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// links keeps the interfaces of the configuration.
type links struct {
	log     *slog.Logger
	changed func() // asks for a new decision
}

func newLinks(log *slog.Logger, changed func()) *links { return &links{log: log, changed: changed} }

// run looks after it until ctx ends.
func (x *links) run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// retire is called when another process is about to take over, and with false if
// that came to nothing.
func (x *links) retire(bool) {}

// apply sees that the interfaces are as they should be.
func (x *links) apply(context.Context, *config.Config) []edge.Problem { return nil }

// leases are what DHCP servers have told for interfaces of this machine, sorted by interface.
func (x *links) leases() []edge.LinkLease { return nil }

func (x *links) status(*config.Config) []status.Link { return nil }
