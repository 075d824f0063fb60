package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

const (
	watchInterval = time.Second
)

func newStatus() *cobra.Command {
	var daemon whom
	var output string
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Print what the running daemon does",
		Long: `status asks the running daemon and prints whether it is ready, what is open,
which backends are behind it, and what goes through: connections now and in
total, and bytes.

` + askedWhere,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return usageError{fmt.Errorf("-o %s: write table or json", output)}
			}
			client, err := daemon.client(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			show := func(ctx context.Context, out io.Writer, colour bool) error {
				data, err := client.get(ctx, "/status.json", nil)
				if err != nil {
					return err
				}
				if output == "json" {
					_, err := out.Write(data)
					return err
				}
				var s status.Status
				if err := json.Unmarshal(data, &s); err != nil {
					return fmt.Errorf("%s: that is no status of a gatehouse: %w", client, err)
				}
				return printStatus(out, s, time.Now(), colour)
			}
			live := isTerminal(out) && os.Getenv("TERM") != "dumb"
			colour := live && os.Getenv("NO_COLOR") == ""
			if !watch {
				return show(cmd.Context(), out, colour)
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			separator := ""
			if output == "table" { // documents of JSON need none
				separator = "---\n"
			}
			return repeat(ctx, out, live, separator, func(ctx context.Context, out io.Writer) error { return show(ctx, out, colour) })
		},
	}
	daemon.addTo(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	cmd.Flags().BoolVar(&watch, "watch", false, "print it again each second, until Ctrl-C")
	return cmd
}

// repeat shows something again and again until ctx ends, which is no error. On
// a terminal it is in the place of the last one. Only the first time a failure
// is one of the command: later the daemon may be about to come back.
func repeat(ctx context.Context, out io.Writer, live bool, separator string, show func(context.Context, io.Writer) error) error {
	again := time.NewTicker(watchInterval)
	defer again.Stop()
	for first := true; ; first = false {
		var text bytes.Buffer
		err := show(ctx, &text)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case err != nil:
			text.Reset()
			fmt.Fprintln(&text, err)
		}
		frame := text.String()
		switch {
		case live: // line by line over what is there, which does not flicker
			frame = "\x1b[H" + strings.ReplaceAll(frame, "\n", "\x1b[K\n") + "\x1b[J"
			if first {
				frame = "\x1b[2J" + frame
			}
		case !first:
			frame = separator + frame
		}
		if _, err := io.WriteString(out, frame); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		}
	}
}

// ink is a colour of the terminal. All have the same length, so that columns in
// which every cell has one are aligned.
type ink string

const (
	plain ink = "\x1b[39m"
	good  ink = "\x1b[32m"
	bad   ink = "\x1b[31m"
	quiet ink = "\x1b[90m"
)

// palette colours text, or leaves it as it is.
type palette bool

func (p palette) in(c ink, text string) string {
	if !p {
		return text
	}
	return string(c) + text + "\x1b[0m"
}

func printStatus(out io.Writer, s status.Status, now time.Time, colour bool) error {
	p := palette(colour)
	readiness := p.in(good, "ready")
	if !s.Ready {
		readiness = p.in(bad, "waiting for "+strings.Join(s.NotReady, ", "))
	}
	fmt.Fprintf(out, "gatehouse      %s, up %s, version %s\n", readiness, status.Age(now.Sub(s.StartedAt)), s.Version)
	configured := fmt.Sprintf("%s, read %s ago", strings.Join(s.Config.Files, ", "), status.Age(now.Sub(s.Config.LoadedAt)))
	if !s.Config.Current {
		configured += p.in(bad, "; what is on disk is bad, and does not run")
	}
	fmt.Fprintf(out, "configuration  %s\n", configured)
	if c := s.Cluster; c != nil {
		text := c.Says(now)
		if !c.Well() {
			text = p.in(bad, text)
		}
		fmt.Fprintf(out, "cluster        %s\n", text)
	}
	printAddresses(out, s, now, p)
	if c := s.Conntrack; c != nil {
		usage := fmt.Sprintf("%d of %d entries", c.Entries, c.Max)
		if c.Full() {
			usage = p.in(bad, usage)
		}
		fmt.Fprintf(out, "conntrack      %s\n", usage)
	}
	printLines(out, "pod routes", s.Routes, func(r edge.Route) string { return fmt.Sprintf("%s via %s (%s)", r.Dst, r.Via, r.Why) })
	fmt.Fprintln(out)
	if err := printFrontends(out, s, now, p); err != nil {
		return err
	}
	closed := s.Closed()
	if len(closed) > 0 {
		fmt.Fprintln(out, "\nNot open:")
		for _, e := range closed {
			fmt.Fprintf(out, "  %s: %s\n", titleOf(e), e.Reason)
		}
	}
	if len(s.Problems) > 0 {
		fmt.Fprintln(out, "\n"+p.in(bad, "Problems:"))
		for _, problem := range s.Problems {
			fmt.Fprintln(out, "  "+problem.String())
		}
	}
	return nil
}

// printLines prints one line for each of several, the first of which has the
// title.
func printLines[T any](out io.Writer, title string, all []T, line func(T) string) {
	for _, one := range all {
		fmt.Fprintf(out, "%-13s  %s\n", title, line(one))
		title = ""
	}
}

// printAddresses prints how much of the pools is used, and who has what of them.
func printAddresses(out io.Writer, s status.Status, now time.Time, p palette) {
	printLines(out, "pools", s.Pools, func(pool status.Pool) string {
		text := pool.Says()
		if pool.Free == 0 {
			text = p.in(bad, text)
		}
		return fmt.Sprintf("%s in zone %s: %s", pool.Name, pool.Zone, text)
	})
	printLines(out, "addresses", s.Addresses, func(a status.Address) string {
		on := ""
		if a.Device != "" {
			on = " on " + a.Device
		}
		return fmt.Sprintf("%s%s for %s: %s", a.Addr, on, strings.Join(a.Services, ", "), p.in(inkOfAddress(a.State), a.Says(now)))
	})
}

func inkOfAddress(s status.AddressState) ink {
	switch s {
	case status.AddressReady:
		return good
	case status.AddressConflict, status.AddressFailed:
		return bad
	case status.AddressPending, status.AddressHeld:
		return quiet
	}
	return plain
}

// printFrontends prints what is open, and what was and has connections left:
// a line for each frontend, and below it one for each backend.
func printFrontends(out io.Writer, s status.Status, now time.Time, p palette) error {
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	line := func(zone, name, by, listen string, c ink, state string, more ...any) {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s", zone, name, by, listen, p.in(c, state))
		for _, cell := range more {
			fmt.Fprintf(w, "\t%v", cell)
		}
		fmt.Fprintln(w)
	}
	line("ZONE", "FRONTEND", "PLANE", "LISTENS", plain, "STATE", "WEIGHT", "SHARE", "ACTIVE", "TOTAL", "IN", "OUT", "")
	rows := 0
	for _, l := range s.Listeners {
		if l.Error == "" {
			rows++
			c, state, note := doorState(l.Drain, now)
			note = fmt.Sprintf("%d waiting for a name%s", l.Waiting, note)
			line(orDash(l.Zone), "(shared by server name)", string(edge.DataPlaneProxy), doorOf(l.Protocol, l.Listen), c, state,
				"", "", l.Active, l.Accepted, status.Bytes(l.Received), status.Bytes(l.Sent), note+troubles(l.Traffic))
		}
	}
	for _, f := range s.Frontends {
		if f.Error != "" {
			continue // it is told of as not open, or as a problem
		}
		rows++
		c, state, note := doorState(f.Drain, now)
		line(orDash(f.Zone), f.Name, string(cmp.Or(f.DataPlane, edge.DataPlaneProxy)), doorOf(f.Protocol, f.Listen), c, state,
			"", "", f.Active, f.Accepted, status.Bytes(f.Received), status.Bytes(f.Sent), strings.TrimPrefix(note+troubles(f.Traffic), ", "))
		for _, name := range f.Hostnames {
			line("", "  "+name, "", "", plain, "", "", "", "", "", "", "", "")
		}
		for _, b := range f.Backends {
			name := "    " + b.Addr
			if b.Node != "" {
				name += " " + b.Node
			}
			in, sent := "-", "-" // the relay counts them by frontend
			if f.DataPlane == edge.DataPlaneNAT {
				in, sent = status.Bytes(b.Received), status.Bytes(b.Sent)
			}
			line("", name, "", "", inkOf(b.State), string(b.State), b.Weight, fmt.Sprintf("%.1f%%", 100*b.Share), b.Active, b.Total, in, sent, noteOf(b, now))
		}
		if len(f.Backends) == 0 && !f.Draining {
			line("", "    no backend", "", "", plain, "", "", "", "", "", "", "", "")
		}
	}
	if rows == 0 {
		_, err := fmt.Fprintln(out, "Nothing is open.")
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for text := range strings.Lines(table.String()) {
		fmt.Fprintln(out, strings.TrimRight(text, " \n"))
	}
	return nil
}

func doorOf(protocol edge.Protocol, listen string) string {
	if protocol == edge.TCP {
		return listen
	}
	return listen + "/" + string(protocol)
}

func doorState(d status.Drain, now time.Time) (c ink, state, note string) {
	if d.Draining {
		return quiet, "draining", ", " + d.Ends(now)
	}
	return plain, "open", ""
}

func inkOf(s edge.BackendState) ink {
	switch s {
	case edge.Up:
		return good
	case edge.Down:
		return bad
	case edge.Pending, status.Draining:
		return quiet
	}
	return plain
}

// noteOf is what is to be known of a backend beyond its numbers.
func noteOf(b status.Backend, now time.Time) string {
	switch {
	case b.Draining:
		return b.Ends(now)
	case b.Error != "":
		return b.Error
	case b.Unprobed:
		return "not checked"
	}
	return ""
}

// troubles are the connections that came to nothing: ", 4 no backend".
func troubles(t status.Traffic) string {
	var text strings.Builder
	for _, reason := range slices.Sorted(maps.Keys(t.Failures)) {
		if n := t.Failures[reason]; n > 0 {
			fmt.Fprintf(&text, ", %d %s", n, strings.ReplaceAll(reason, "_", " "))
		}
	}
	if t.AcceptErrors > 0 {
		fmt.Fprintf(&text, ", %d not accepted", t.AcceptErrors)
	}
	return text.String()
}
