package cli

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/changes"
	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// running asks a daemon what it has.
func running(ctx context.Context, c *client) (status.Status, error) {
	var s status.Status
	data, err := c.get(ctx, "/status.json", nil)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%s: that is no status of a gatehouse: %w", c, err)
	}
	if undecided(s) {
		return s, fmt.Errorf("the gatehouse at %s has nothing to compare with: it is waiting for %s; ask again when gatehouse status says that it is ready", c,
			cmp.Or(strings.Join(s.NotReady, ", "), "its first decision"))
	}
	return s, nil
}

// undecided says that what a daemon has open says nothing of what it will have
// open: it has just begun, or knows no cluster yet, or is stopping.
func undecided(s status.Status) bool {
	unread := s.Cluster != nil && !s.Cluster.Synced && s.Cluster.From == "" && s.Cluster.Services+s.Cluster.Nodes == 0
	return !s.Ready && (unread || len(s.Exposures) == 0)
}

// asIfRunning adds to what a plan is made from what only the daemon knows: who
// has which address of a pool, how far they are, and which doors it cannot open.
func asIfRunning(in *desired.Inputs, s status.Status) {
	uids := map[string]string{}
	if in.Cluster != nil {
		for i := range in.Cluster.Services {
			uids[in.Cluster.Services[i].Key()] = in.Cluster.Services[i].UID
		}
	}
	in.Addresses = map[netip.Addr]edge.AddressState{}
	for _, a := range s.Addresses {
		for _, service := range a.Services {
			in.Allocations = append(in.Allocations, edge.Allocation{
				Addr: a.Addr, Pool: a.Pool, Zone: a.Zone, Service: service, UID: uids[service], Held: a.State == status.AddressHeld,
			})
		}
		if a.State == status.AddressConflict || a.State == status.AddressFailed {
			in.Addresses[a.Addr] = edge.AddressState{Conflict: a.Conflict, Error: a.Error}
		}
	}
	listens := map[string]edge.Listen{}
	for _, e := range s.Exposures {
		for _, l := range e.Listens {
			listens[l.String()] = l
		}
	}
	in.Doors = map[edge.Door]string{}
	for _, f := range s.Frontends {
		if l, known := listens[f.Listen]; known && f.Error != "" {
			in.Doors[edge.Door{Protocol: f.Protocol, Listen: l}] = f.Error
		}
	}
}

// printChanges says what would change, by zone.
func printChanges(out io.Writer, c changes.Changes) error {
	if c.None() {
		_, err := fmt.Fprintln(out, "nothing would change")
		return err
	}
	var zones []string
	for _, list := range [][]changes.Change{c.Opened, c.Closed, c.Changed} {
		for _, change := range list {
			if !slices.Contains(zones, change.Zone) {
				zones = append(zones, change.Zone)
			}
		}
	}
	slices.Sort(zones)
	var lines []string
	for _, zone := range zones {
		title := "zone " + zone
		if zone == "" {
			title = "no zone"
		}
		lines = append(lines, title+":")
		of := func(list []changes.Change, line func(changes.Change)) {
			for _, change := range list {
				if change.Zone == zone {
					line(change)
				}
			}
		}
		of(c.Opened, func(change changes.Change) {
			lines = append(lines, fmt.Sprintf("+ %s: opened at %s, for %s", change.Name, listed(change.Listens), orNone(change.Backends)))
		})
		of(c.Closed, func(change changes.Change) {
			text := fmt.Sprintf("- %s: closed at %s: %s", change.Name, listed(change.Listens), change.Reason)
			if change.Remedy != "" {
				text += "; " + change.Remedy
			}
			lines = append(lines, text)
		})
		of(c.Changed, func(change changes.Change) {
			lines = append(lines, fmt.Sprintf("~ %s:", change.Name))
			for _, d := range change.Differences {
				text := "    " + d.String()
				if d.What == "not open" && change.Remedy != "" {
					text += "; " + change.Remedy
				}
				lines = append(lines, text)
			}
		})
	}
	for _, b := range c.Blocks {
		lines = append(lines, b.Name+":")
		for _, text := range b.Removed {
			lines = append(lines, "- "+text)
		}
		for _, text := range b.Added {
			lines = append(lines, "+ "+text)
		}
		for _, d := range b.Differences {
			lines = append(lines, "    "+d.String())
		}
	}
	_, err := io.WriteString(out, harmless(strings.Join(lines, "\n"))+"\n")
	return err
}

// goneBy is the configuration that a daemon goes by, read from its files. What
// runs of each is told by sums; nil: it is not known.
func goneBy(files []string, sums []string) (*config.Config, error) {
	var all []config.File
	for i, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if sum := sha256.Sum256(data); sums != nil && sums[i] != hex.EncodeToString(sum[:]) {
			return nil, fmt.Errorf("%s is not what runs", name)
		}
		all = append(all, config.File{Name: name, Data: data})
	}
	c, problems := config.Parse(all)
	if len(problems) > 0 {
		return nil, errors.New(problems[0].String())
	}
	return c, nil
}

// ofBlocks adds what would change beside what is open, or says on stderr why that
// is not known.
func ofBlocks(say io.Writer, c *changes.Changes, was func() (*config.Config, error), now *config.Config) {
	before, err := was()
	if err != nil {
		fmt.Fprintln(say, harmless(fmt.Sprintf("what would change of zones, firewall, links, dhcp and dns is not known: %v", err)))
		return
	}
	c.Blocks = changes.Blocks(before, now)
}

// goesBy is goneBy for a daemon that tells which files it has.
func goesBy(c status.Config) (*config.Config, error) {
	switch {
	case c.Trial != nil:
		return nil, errors.New("another configuration is on trial")
	case !c.Current:
		return nil, errors.New("the files of the daemon are bad, and those before go on")
	}
	return goneBy(c.Files, nil)
}

func listed(items []string) string { return strings.Join(items, ", ") }

func orNone(backends []string) string {
	if len(backends) == 0 {
		return "no backend"
	}
	return listed(backends)
}
