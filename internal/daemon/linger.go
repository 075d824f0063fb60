package daemon

import (
	"slices"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// A lingerer is how the relay had a door that the kernel has now.
type lingerer struct {
	frontends []edge.Frontend
	until     time.Time
}

// toRelay are the frontends that the relay is to have: its own, and for a while
// those whose doors the kernel has taken over, since a client whose handshake
// has begun is still the relay's. While the kernel goes on as before that is
// nobody's.
func (d *Daemon) toRelay(state desired.State, held bool) []edge.Frontend {
	relayed, translated := byDataPlane(state.Frontends)
	own := map[edge.Door]bool{}
	for _, f := range relayed {
		own[f.Door] = true
	}
	if !held {
		had := map[edge.Door][]edge.Frontend{}
		for _, f := range d.relayed {
			had[f.Door] = append(had[f.Door], f)
		}
		lingering := map[edge.Door]lingerer{}
		for _, f := range translated {
			l, lingers := d.lingering[f.Door]
			before, moves := had[f.Door]
			if !lingers && !moves {
				continue
			}
			taken, refused := d.kernel.leave(f.Door)
			if moves {
				l.frontends = before
			}
			if moves && taken || refused {
				l.until = time.Now().Add(lingerTime)
			}
			if lingers || taken || refused {
				lingering[f.Door] = l
			}
		}
		// What is neither plane's any more is closed at once.
		d.lingering, d.relayed = lingering, relayed
	}
	all := slices.Clone(relayed)
	for door, l := range d.lingering {
		if own[door] || time.Now().After(l.until) {
			delete(d.lingering, door)
			if !own[door] {
				d.kernel.purgeUntranslated(door)
			}
			continue
		}
		all = append(all, l.frontends...)
	}
	return all
}
