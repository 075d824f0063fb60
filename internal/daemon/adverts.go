package daemon

import (
	"context"
	"log/slog"

	"e13.dev/gatehouse/internal/edge"
)

// adverts are what machines of zones are told of IPv6: router advertisements and
// stateless DHCPv6.
type adverts struct {
	log     *slog.Logger
	changed func() // asks for a new decision
}

func newAdverts(log *slog.Logger, changed func()) *adverts {
	return &adverts{log: log, changed: changed}
}

// run looks after it until ctx ends.
func (x *adverts) run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// retire is called when another process is about to take over, and with false if
// that came to nothing.
func (x *adverts) retire(bool) {}

// apply has those zones told that are to be.
func (x *adverts) apply(context.Context, decision) []edge.Problem { return nil }
