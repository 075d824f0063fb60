package daemon

import (
	"fmt"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/relay"
)

// report tells systemd what is new, and that it may go on if it waits for us.
func (d *Daemon) report(awaited bool) {
	d.mu.Lock()
	open := 0
	for _, e := range d.state.Exposures {
		if e.Open {
			open++
		}
	}
	now := fmt.Sprintf("open: %d, problems: %d", open, len(d.decided))
	if len(d.waiting) > 0 {
		now += ", waiting for " + strings.Join(d.waiting, ", ")
	}
	d.mu.Unlock()
	if problems := d.files.status().Problems; len(problems) > 0 {
		now += "; the configuration on disk is bad: " + problems[0].String()
	}
	var lines []string
	if awaited {
		lines = append(lines, "READY=1")
	}
	if now != d.said {
		d.said = now
		lines = append(lines, "STATUS="+strings.ReplaceAll(now, "\n", " "))
	}
	if len(lines) > 0 {
		d.manager.tell(lines...)
	}
}

func (d *Daemon) publish(now decision, cluster view, closedDoors int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state, d.decided, d.seen = now.state, now.problems, cluster
	d.config, d.interfaces, d.allocations = now.in.Config, now.in.Interfaces, d.ledger.all
	d.waiting = nil
	if now.in.Config.Kubernetes != nil && cluster.snapshot == nil {
		d.waiting = append(d.waiting, "the Kubernetes API")
	}
	if closedDoors > 0 {
		d.waiting = append(d.waiting, fmt.Sprintf("listeners that could not be opened: %d", closedDoors))
	}
	if noNAT := now.in.NoNAT; noNAT != "" {
		d.waiting = append(d.waiting, "data plane nat: "+noNAT)
	}
	if why := d.addresses.whyNot(); why != "" {
		d.waiting = append(d.waiting, "addresses of pools: "+why)
	}
	for _, e := range now.state.Exposures {
		// A Service that is closed is its owner's business, a file's frontend is ours.
		if e.Service == "" && !e.Open {
			d.waiting = append(d.waiting, "frontend "+e.Name)
		}
	}
	ready := len(d.waiting) == 0
	if ready != d.ready || !slices.Equal(d.waiting, d.waitedFor) {
		d.log.Info("readiness", "ready", ready, "waiting_for", d.waiting)
	}
	d.ready, d.waitedFor = ready, d.waiting
}

// failed are the doors that could not be opened, with the reason.
func failed(doors []relay.DoorStatus) map[edge.Door]string {
	bad := map[edge.Door]string{}
	for _, s := range doors {
		if s.Error != "" {
			bad[s.Door] = s.Error
		}
	}
	return bad
}

func sameDoors(x, y map[edge.Door]string) bool {
	if len(x) != len(y) {
		return false
	}
	for door, err := range x {
		if y[door] != err {
			return false
		}
	}
	return true
}
