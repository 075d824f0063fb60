package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"e13.dev/gatehouse/internal/changes"
	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/daemon"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

func newPlan() *cobra.Command {
	var from whom
	var output string
	var diff bool
	cmd := &cobra.Command{
		Use:   "plan -c FILE...",
		Short: "Print what would be open where; change nothing",
		Long: `plan reads the files, this machine's interfaces and the cluster, and prints what
would be open in which zone, with backends, weights and each pod's share, whether
the client's address arrives, and every Service that would not be open with the
reason and the remedy. It opens and writes nothing, so it does not see that another
program has a port.

With --diff it prints instead what would change in the daemon that runs, if it had
these files: what is opened (+), closed (-) or changed (~) in each zone, and how; or
that nothing would. Whether backends are up makes no difference.
` + askedWhere,
		Example: `  gatehouse plan -c gatehouse.yaml
  gatehouse plan -c new.yaml --diff    # before mv new.yaml /etc/gatehouse/gatehouse.yaml, which the daemon reads at once
  gatehouse plan -c new.yaml --diff --url http://127.0.0.1:9180
  gatehouse plan -c gatehouse.yaml -o json | jq -r '.exposures[] | select(.open | not) | .name + ": " + .reason'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFiles(from.files); err != nil {
				return err
			}
			if output != "table" && output != "json" {
				return usageError{fmt.Errorf("-o %s: write table or json", output)}
			}
			if !diff && (from.url != "" || from.tokenFile != "") {
				return usageError{errors.New("--url and --token-file are for --diff: without, no daemon is asked")}
			}
			c, err := load(cmd.ErrOrStderr(), from.files)
			if err != nil {
				return err
			}
			var daemon *client
			if diff {
				if daemon, err = from.clientOf(c); err != nil {
					return err
				}
			}
			return plan(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), c, output, daemon)
		},
	}
	from.addTo(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	cmd.Flags().BoolVar(&diff, "diff", false, "print what would change in the daemon that runs")
	return cmd
}

// plan prints what would be open, or, with a daemon to ask, what would change
// there.
func plan(ctx context.Context, out, say io.Writer, c *config.Config, output string, from *client) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var now status.Status
	if from != nil { // first: it is more often away than the cluster
		var err error
		if now, err = running(ctx, from); err != nil {
			return err
		}
	}
	in, err := daemon.Look(ctx, c, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	if from != nil {
		asIfRunning(&in, now)
		state, _ := desired.Settled(in)
		all := changes.Between(changes.Side{Exposures: now.Exposures, Frontends: now.Frontends}, changes.Planned(state))
		ofBlocks(say, &all, func() (*config.Config, error) { return goesBy(now.Config) }, c)
		if output == "json" {
			return encoder.Encode(all)
		}
		return printChanges(out, all)
	}
	state, problems := desired.Settled(in)
	if output == "json" {
		return encoder.Encode(struct {
			Exposures   []desired.Exposure `json:"exposures"`
			Addresses   []edge.Address     `json:"addresses,omitempty"`
			Allocations []edge.Allocation  `json:"allocations,omitempty"`
			Hairpins    [][2]string        `json:"hairpins,omitempty"`
			Routes      []edge.Route       `json:"routes,omitempty"`
			Problems    []edge.Problem     `json:"problems"`
		}{nonNil(state.Exposures), state.Addresses, state.Allocations, state.Hairpins, state.Routes, nonNil(problems)})
	}
	return errors.Join(printPlan(out, state, problems), printFirewall(out, c))
}

// printFirewall says that there is more to know.
func printFirewall(out io.Writer, c *config.Config) error {
	if c.Firewall == nil {
		return nil
	}
	_, err := fmt.Fprintf(out, "\nFirewall: policies: %d; gatehouse prove shows what they let pass\n", len(c.Firewall.Policies))
	return err
}

// nonNil makes JSON say [] rather than null.
func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func printPlan(out io.Writer, state desired.State, problems []edge.Problem) error {
	var open, shut []desired.Exposure
	for _, e := range state.Exposures {
		if e.Open {
			open = append(open, e)
		} else {
			shut = append(shut, e)
		}
	}
	if len(open) == 0 {
		fmt.Fprintln(out, "Nothing would be open.")
	} else {
		var table bytes.Buffer
		w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
		// Most have one data plane for all.
		planes := slices.ContainsFunc(open, func(e desired.Exposure) bool { return e.DataPlane == edge.DataPlaneNAT })
		plane := ""
		if planes {
			plane = "DATA PLANE\t"
		}
		fmt.Fprintln(w, "ZONE\tFRONTEND\tLISTENS\tREACHED AT\t"+plane+"TARGET\tBACKEND\tWEIGHT\tSHARE\tPODS")
		for _, e := range open {
			printExposure(w, e, planes)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		for line := range strings.Lines(table.String()) {
			fmt.Fprintln(out, strings.TrimRight(line, " \n"))
		}
		said := make(map[string]bool, len(problems))
		for _, p := range problems {
			said[p.What] = true
		}
		frontends := frontendsOf(state.Frontends)
		for _, e := range open {
			for _, note := range notesOf(e, frontends[rowOf{e.Name, e.Zone, e.Protocol}], said) {
				fmt.Fprintf(out, "%s: %s\n", titleOf(e), note)
			}
		}
		fmt.Fprintln(out, "\nWhat the backends see as the client's address:")
		for _, line := range clientsSeen(open) {
			fmt.Fprintln(out, "  "+line)
		}
	}
	printPooled(out, state)
	printPaths(out, state)
	if len(shut) > 0 {
		fmt.Fprintln(out, "\nNot open:")
		for _, e := range shut {
			fmt.Fprintln(out, "  "+notOpen(e))
		}
	}
	// Those of Services and frontends were said with their rows.
	problems = slices.DeleteFunc(slices.Clone(problems), reasonsOf(state.Exposures).in)
	if len(problems) > 0 {
		fmt.Fprintln(out, "\nProblems:")
		for _, p := range problems {
			fmt.Fprintln(out, "  "+p.String())
		}
	}
	return nil
}

// printPooled prints who would have which address of a pool.
func printPooled(out io.Writer, state desired.State) {
	devices := map[netip.Addr]string{}
	for _, a := range state.Addresses {
		devices[a.Addr] = a.Device
	}
	if len(state.Allocations) > 0 {
		fmt.Fprintln(out, "\nAddresses of pools:")
	}
	for _, a := range state.Allocations {
		on := " on " + devices[a.Addr]
		if devices[a.Addr] == "" {
			on = " on no interface" // its own is away, or it is in no network of one
		}
		fmt.Fprintf(out, "  %s%s for %s, of pool %s, in zone %s\n", a.Addr, on, a.Service, a.Pool, a.Zone)
	}
}

// printPaths prints what the kernel would be told besides.
func printPaths(out io.Writer, state desired.State) {
	if len(state.Hairpins) > 0 {
		var ways []string
		for _, h := range state.Hairpins {
			ways = append(ways, h[0]+" to "+h[1])
		}
		fmt.Fprintln(out, "\nMasqueraded by data plane nat, as answers would not come back through this machine:")
		fmt.Fprintln(out, "  what goes from "+strings.Join(ways, ", "))
	}
	if len(state.Routes) > 0 {
		fmt.Fprintln(out, "\nRoutes to pods:")
		for _, r := range state.Routes {
			fmt.Fprintf(out, "  %s via %s (%s)\n", r.Dst, r.Via, r.Why)
		}
	}
}

func titleOf(e desired.Exposure) string {
	if e.Zone == "" {
		return e.Name
	}
	return e.Name + " in zone " + e.Zone
}

// rowOf finds the row of a frontend.
type rowOf struct {
	name, zone string
	protocol   edge.Protocol
}

// frontendsOf has one of the frontends that each row is open at: they differ in
// where that is.
func frontendsOf(frontends []edge.Frontend) map[rowOf]edge.Frontend {
	by := make(map[rowOf]edge.Frontend, len(frontends))
	for i := range frontends {
		f := &frontends[i]
		if k := (rowOf{f.Name, f.Zone, f.Protocol}); by[k].Name == "" {
			by[k] = *f
		}
	}
	return by
}

// notesOf is what is to be known of a row beyond the table.
func notesOf(e desired.Exposure, f edge.Frontend, said map[string]bool) []string {
	var notes []string
	add := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if e.Reason != "" {
		add("%s", e.Reason)
	}
	for _, note := range e.Notes {
		if !said[note] { // else a problem says it once more, with the remedy
			add("%s", note)
		}
	}
	if e.Sources != nil {
		add("only clients from %s may connect", join(e.Sources))
	}
	if f.AcceptProxyProtocol != nil {
		add("what comes from %s has the client's address in a PROXY protocol header", join(f.AcceptProxyProtocol))
	}
	switch {
	case e.Balance == edge.BalanceSource && f.AffinityTimeout > 0:
		add("balance: %s; a client keeps its backend for %s", e.Balance, status.Duration(f.AffinityTimeout))
	case e.Balance != "" && e.Balance != edge.BalanceRandom:
		add("balance: %s", e.Balance)
	}
	switch rate := f.MaxRatePerClient; {
	case rate.Connections == 0:
	case f.BanTime > 0:
		add("at most %s new connections of one client; with more it is banned for %s", rate, status.Duration(f.BanTime))
	default:
		add("at most %s new connections of one client", rate)
	}
	switch check := f.Health; {
	case f.Protocol != edge.TCP: // nobody asks
	case check.Interval == 0:
		add("backends are not checked, and count as up")
	case check.Type != "" && check.Type != edge.CheckTCP:
		add("checked by %s", status.CheckOf(check))
	}
	if f.RefuseWhenDown {
		add("clients are turned away when all backends are down")
	}
	if f.CloseWhenDown {
		add("connections are closed when their backend is down")
	}
	return notes
}

// printExposure prints one row, with its data plane where that is a column.
func printExposure(w io.Writer, e desired.Exposure, planes bool) {
	plane := func(s string) string {
		if !planes {
			return ""
		}
		return s + "\t"
	}
	var listens []string
	for _, l := range e.Listens {
		listen := l.String()
		if e.Protocol != edge.TCP {
			listen += "/" + string(e.Protocol)
		}
		listens = append(listens, listen)
	}
	perPod := 0.0
	if len(e.Shares) > 0 {
		perPod = e.Shares[0].Share
	}
	var backends []string
	for _, b := range e.Backends {
		pods := "-"
		switch {
		case len(b.Pods) > 0 && len(e.Shares) > 0: // else it is not known which of them
			pods = fmt.Sprintf("%d × %.1f%%", len(b.Pods), 100*b.Share/float64(len(b.Pods)))
		case len(e.Shares) > 0:
			pods = fmt.Sprintf("all %d × %.1f%%", len(e.Shares), 100*perPod)
		}
		name := b.Addr.String()
		if b.Node != "" {
			name += " " + b.Node
		}
		backends = append(backends, fmt.Sprintf("%s\t%d\t%.1f%%\t%s", name, b.Weight, 100*b.Share, pods))
	}
	if len(backends) == 0 {
		backends = []string{"-\t-\t-\t-"}
	}
	// The server names that it takes stand under its own, beside the backends.
	for i := range max(len(backends), 1+len(e.Hostnames)) {
		first, last := "\t\t\t"+plane("")+"\t", "\t\t\t"
		switch {
		case i == 0:
			first = fmt.Sprintf("%s\t%s\t%s\t%s\t%s%s", orDash(e.Zone), e.Name, strings.Join(listens, " "), orDash(join(e.Addresses)), plane(string(e.DataPlane)), e.Target)
		case i <= len(e.Hostnames):
			first = fmt.Sprintf("\t  %s\t\t%s\t", e.Hostnames[i-1], plane(""))
		}
		if i < len(backends) {
			last = backends[i]
		}
		fmt.Fprintln(w, first+"\t"+last)
	}
}

// clientsSeen says once what is so of several rows. A row goes without its zone
// where its name says enough.
func clientsSeen(open []desired.Exposure) []string {
	textOf := func(e *desired.Exposure) string {
		if e.ClientRemedy == "" {
			return e.Client
		}
		return e.Client + "; to change it: " + e.ClientRemedy
	}
	// What is said of each name: of some it differs by zone.
	of := map[string]string{}
	differs := map[string]bool{}
	for i := range open {
		e := &open[i]
		if text, there := of[e.Name]; there && text != textOf(e) {
			differs[e.Name] = true
		}
		of[e.Name] = textOf(e)
	}
	var texts []string
	names := map[string][]string{}
	noted := map[[2]string]bool{}
	for i := range open {
		e := &open[i]
		text := textOf(e)
		if len(names[text]) == 0 {
			texts = append(texts, text)
		}
		name := e.Name
		if differs[name] {
			name = titleOf(*e)
		}
		if at := [2]string{text, name}; !noted[at] {
			noted[at] = true
			names[text] = append(names[text], name)
		}
	}
	var lines []string
	for _, text := range texts {
		who := strings.Join(names[text], ", ")
		if len(texts) == 1 && len(names[text]) > 1 {
			who = "all"
		}
		lines = append(lines, who+": "+text)
	}
	return lines
}

func join[T fmt.Stringer](items []T) string {
	var texts []string
	for _, i := range items {
		texts = append(texts, i.String())
	}
	return strings.Join(texts, " ")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
