package links

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

const (
	// mostRounds is how often it is looked again what follows from what was done: an
	// interface that is on another that is on another.
	mostRounds = 8
	// askAgain is how long an IPv6 address that another machine has is left at that.
	askAgain = 30 * time.Second
)

// Apply makes the machine have what is wanted, as far as it can now, and returns
// the interfaces that there are then. Twice changes nothing.
func (a *Applier) Apply(want Want, now time.Time) ([]Device, []edge.Problem) {
	failed := map[string]edge.Problem{}
	var have *machine
	var problems []edge.Problem
	for range mostRounds {
		var err error
		if have, err = a.read(); err != nil {
			return nil, []edge.Problem{{Object: "links", What: err.Error(), Remedy: "it is tried again"}}
		}
		// Before what is made is set up, which is when it begins to speak.
		unset, changed := a.set(settings(want, have))
		if len(changed) > 0 {
			a.log.Info("sysctls changed", "settings", changed)
			a.solicit(changed, have)
		}
		var steps []step
		steps, problems = plan(want, have)
		problems = append(problems, unset...)
		steps = slices.DeleteFunc(steps, func(s step) bool {
			_, before := failed[s.String()]
			return before || s.op == addrRenew && !a.mayRenew(mark{have.device(s.device).Index, s.addr}, now)
		})
		if len(steps) == 0 {
			break
		}
		a.runAll(want, steps, have, failed)
	}
	a.forget(have)
	for _, p := range failed {
		problems = append(problems, p)
	}
	slices.SortFunc(problems, func(x, y edge.Problem) int { return strings.Compare(x.String(), y.String()) })
	a.note(failed)
	return have.devices, problems
}

// runAll does the steps of one round.
func (a *Applier) runAll(want Want, steps []step, have *machine, failed map[string]edge.Problem) {
	for _, s := range steps {
		err := a.run(s, have)
		if errors.Is(err, unix.ENODEV) {
			continue // it has just gone; the next round says so
		}
		if err != nil {
			what, remedy := explain(s, err)
			p := edge.Problem{Object: "link/" + s.device, What: what, Remedy: remedy}
			if i := slices.IndexFunc(want.Links, func(l Link) bool { return l.Name == s.device }); i >= 0 {
				p.Pos = want.Links[i].Pos
			}
			failed[s.String()] = p
			continue
		}
		a.log.Info("interfaces changed", "step", s.String())
	}
}

// note logs what fails, once.
func (a *Applier) note(failed map[string]edge.Problem) {
	for what, p := range failed {
		if !a.failing[what] {
			a.log.Warn("interfaces not changed", "step", what, "problem", p.What)
		}
	}
	clear(a.failing)
	for what := range failed {
		a.failing[what] = true
	}
}

func (a *Applier) mayRenew(at mark, now time.Time) bool {
	if last, ok := a.renewed[at]; ok && now.Sub(last) < askAgain {
		return false
	}
	a.renewed[at] = now
	return true
}

// forget drops what was remembered of interfaces that have gone: another of that
// name, or number, is another interface.
func (a *Applier) forget(have *machine) {
	for at := range a.added {
		if have.name(at.index) == "" {
			delete(a.added, at)
		}
	}
	for name := range a.first {
		if have.device(name) == nil {
			delete(a.first, name)
		}
	}
	for name := range a.before {
		if parts := strings.Split(name, "/"); len(parts) == 4 && parts[2] != "all" && have.device(parts[2]) == nil {
			delete(a.before, name)
		}
	}
}

// Left says whether there is something of gatehouse's, of a process before.
func Left() (bool, error) {
	a := New(nil)
	have, err := a.read()
	if err != nil {
		return false, err
	}
	return len(have.own()) > 0, nil
}

// own lists what has a mark.
func (m *machine) own() (names []string) {
	for _, d := range m.devices {
		if d.Made {
			names = append(names, "interface "+d.Name)
		} else if strings.HasPrefix(d.alias, portAlias) {
			names = append(names, "port "+d.Name)
		}
	}
	for _, a := range m.addresses {
		if a.ours {
			names = append(names, a.addr.String()+" on "+m.name(a.index))
		}
	}
	for _, r := range m.routes {
		if r.ours {
			names = append(names, "route to "+r.To.String())
		}
	}
	return names
}

// Remove takes away everything that has a mark, and says what it was.
func Remove() (removed []string, err error) {
	a := New(nil)
	have, err := a.read()
	if err != nil {
		return nil, err
	}
	for range mostRounds {
		steps, _ := plan(Want{}, have)
		if len(steps) == 0 {
			break
		}
		own := have.own()
		var errs []error
		for _, s := range steps {
			if err := a.run(s, have); err != nil && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, fmt.Errorf("%s: %w", s, err))
			}
		}
		if have, err = a.read(); err != nil {
			return removed, err
		}
		left := have.own()
		for _, name := range own {
			if !slices.Contains(left, name) {
				removed = append(removed, name)
			}
		}
		if len(errs) > 0 {
			return removed, errors.Join(errs...)
		}
	}
	return removed, nil
}

// Devices are the interfaces of the machine.
func (a *Applier) Devices() ([]Device, error) {
	have, err := a.read()
	if err != nil {
		return nil, err
	}
	return have.devices, nil
}
