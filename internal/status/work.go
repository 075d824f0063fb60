package status

import (
	"slices"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// Work is what this process has done since it began, and how long that took.
type Work struct {
	// Decisions are from when a change was noticed until it was applied.
	Decisions Timing `json:"decisions"`
	// NATApplied are the changes to the rules of the nat data plane that were tried,
	// NATFailures those of them that the kernel did not take, and NATMended is how
	// often somebody else had changed the rules.
	NATApplied  Timing `json:"natApplied"`
	NATFailures uint64 `json:"natFailures,omitempty"`
	NATMended   uint64 `json:"natMended,omitempty"`
	// Of health checks, those that were answered well, and the others.
	ChecksPassed Timing `json:"checksPassed"`
	ChecksFailed Timing `json:"checksFailed"`
	// StateSavedAt is when the state directory was last written; zero: not by this
	// process.
	StateSavedAt time.Time `json:"stateSavedAt,omitzero"`
}

// Timing says how long something took, each time.
type Timing struct {
	Count   uint64  `json:"count"`
	Seconds float64 `json:"seconds"` // all together
	// Within are how many took no longer than the bound of TimingBounds with the
	// same index, those of the bounds before included; absent: none was made.
	Within []uint64 `json:"within,omitempty"`
}

// TimingBounds are seconds, ascending: from what a decision takes at rest to what
// nobody should have to wait for.
var TimingBounds = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5}

// Took adds one to the Timing.
func (t *Timing) Took(d time.Duration) {
	if t.Within == nil {
		t.Within = make([]uint64, len(TimingBounds))
	}
	t.Count++
	t.Seconds += d.Seconds()
	for i, bound := range TimingBounds {
		if d.Seconds() <= bound {
			t.Within[i]++
		}
	}
}

// ProblemKinds are what KindOf says.
var ProblemKinds = []string{"addresses", "configuration", "dhcp", "dns", "firewall", "frontend", "kubernetes", "link", "nat", "routerAdvertisements", "service", "transparent", "other"}

// KindOf says what a problem is about: the first word of its object, or the
// configuration, where it is of a place in a file.
func KindOf(p edge.Problem) string {
	kind, _, _ := strings.Cut(p.Object, "/")
	if kind == "" {
		return "configuration"
	}
	if slices.Contains(ProblemKinds, kind) {
		return kind
	}
	return "other"
}
