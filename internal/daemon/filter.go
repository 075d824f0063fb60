package daemon

import (
	"context"
	"log/slog"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// filter is the packet filter between zones.
type filter struct {
	log     *slog.Logger
	changed func() // asks for a new decision
}

func newFilter(log *slog.Logger, changed func()) *filter { return &filter{log: log, changed: changed} }

// run looks after it until ctx ends.
func (x *filter) run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// retire is called when another process is about to take over, and with false if
// that came to nothing.
func (x *filter) retire(bool) {}

// apply has the kernel filter what was decided, and not what was not.
func (x *filter) apply(context.Context, decision) []edge.Problem { return nil }

func (x *filter) status(*config.Config) *status.Firewall { return nil }
