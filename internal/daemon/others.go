package daemon

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/host"
)

// afterUpgrade is when the process before has long said that it leaves.
const afterUpgrade = 10 * time.Second

// others are the gatehouses with which this one would share the kernel's tables.
type others struct {
	looked bool
	pids   []int
}

// problem says that there are some: each would take away what the other has put
// there. Who comes later looks once, and again while somebody is there.
func (o *others) problem(now, from time.Time, shared bool) []edge.Problem {
	if !shared || now.Before(from) {
		*o = others{}
		return nil
	}
	if !o.looked || len(o.pids) > 0 {
		o.looked = true
		pids, err := host.Deciding()
		if err != nil { // nobody is accused
			pids = nil
		}
		o.pids = slices.DeleteFunc(pids, func(pid int) bool { return pid == os.Getpid() })
	}
	if len(o.pids) == 0 {
		return nil
	}
	var names []string
	for _, pid := range o.pids {
		if pid == 0 {
			names = append(names, "one in another container")
			continue
		}
		names = append(names, fmt.Sprintf("process %d", pid))
	}
	return []edge.Problem{{
		Object: "machine",
		What:   "another gatehouse runs in this network namespace (" + strings.Join(names, ", ") + "): data plane nat, transparent connections and addresses of pools of the two would take each other's away",
		Remedy: "stop one of them, or give it a network namespace of its own",
	}}
}

// alone is from when on nobody else is expected to decide.
func (d *Daemon) alone() time.Time {
	if d.opts.Previous != nil {
		return d.started.Add(afterUpgrade)
	}
	return d.started
}
