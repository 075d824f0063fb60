// Package history remembers what the counters of frontends and backends were in
// the last minutes, so that status can say how much comes a second, and which
// share each backend got. It is given the time, and reads no clock.
package history

import (
	"time"

	"e13.dev/gatehouse/internal/status"
)

const (
	// Every is how often Note is to be called.
	Every = 2 * time.Second
	// RatesOver is how long rates are averaged over.
	RatesOver = 10 * time.Second
	// SharesOver is how long the shares that backends got are counted over.
	SharesOver = 5 * time.Minute
)

// History is what is remembered. Its methods may be called at once.
type History struct{}

// New remembers nothing yet.
func New() *History { return &History{} }

// Note remembers what the counters are now. Rows that are not noted any more are
// forgotten; a counter that is lower than before has begun anew.
func (h *History) Note(_ time.Time, _ []status.Frontend) {}

// Fill sets the Rates and Got of the rows, which may be those of a later moment
// than the last Note.
func (h *History) Fill(_ time.Time, _ []status.Frontend) {}
