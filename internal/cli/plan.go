package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/daemon"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

func newPlan() *cobra.Command {
	var files []string
	var output string
	cmd := &cobra.Command{
		Use:   "plan -c FILE...",
		Short: "Print what would be open where; change nothing",
		Long: `plan reads the files, this machine's interfaces and the cluster, and prints what
would be open in which zone, with backends, weights and each pod's share, and
every Service that would not be open with the reason. It opens and writes nothing,
so it does not see that another program has a port.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFiles(files); err != nil {
				return err
			}
			if output != "table" && output != "json" {
				return usageError{fmt.Errorf("-o %s: write table or json", output)}
			}
			c, err := load(cmd.ErrOrStderr(), files)
			if err != nil {
				return err
			}
			return plan(cmd.Context(), cmd.OutOrStdout(), c, output)
		},
	}
	addFiles(cmd, &files)
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func plan(ctx context.Context, out io.Writer, c *config.Config, output string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	in, err := daemon.Look(ctx, c, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	state, problems := desired.Build(in)
	if output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(struct {
			Exposures []desired.Exposure `json:"exposures"`
			Problems  []edge.Problem     `json:"problems"`
		}{nonNil(state.Exposures), nonNil(problems)})
	}
	return printPlan(out, state, problems)
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
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ZONE\tFRONTEND\tLISTENS\tREACHED AT\tTARGET\tBACKEND\tWEIGHT\tSHARE\tPODS")
		for _, e := range open {
			printExposure(w, e)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		for _, e := range open {
			if e.Reason != "" {
				fmt.Fprintf(out, "%s: %s\n", titleOf(e), e.Reason)
			}
			if e.Sources != nil {
				fmt.Fprintf(out, "%s: only clients from %s may connect\n", titleOf(e), join(e.Sources))
			}
		}
		fmt.Fprintln(out, "\nThe backends see "+clientsSeen(open)+" as the client's address.")
	}
	if len(shut) > 0 {
		fmt.Fprintln(out, "\nNot open:")
		for _, e := range shut {
			fmt.Fprintf(out, "  %s: %s", titleOf(e), e.Reason)
			if e.Remedy != "" {
				fmt.Fprintf(out, "; %s", e.Remedy)
			}
			fmt.Fprintln(out)
		}
	}
	// Those of Services and frontends were said with their rows.
	problems = slices.DeleteFunc(slices.Clone(problems), func(p edge.Problem) bool {
		return slices.ContainsFunc(state.Exposures, func(e desired.Exposure) bool { return e.Reason != "" && strings.HasSuffix(p.What, e.Reason) })
	})
	if len(problems) > 0 {
		fmt.Fprintln(out, "\nProblems:")
		for _, p := range problems {
			fmt.Fprintln(out, "  "+p.String())
		}
	}
	return nil
}

func titleOf(e desired.Exposure) string {
	if e.Zone == "" {
		return e.Name
	}
	return e.Name + " in zone " + e.Zone
}

func printExposure(w io.Writer, e desired.Exposure) {
	var listens []string
	for _, l := range e.Listens {
		listen := l.String()
		if e.Protocol != edge.TCP {
			listen += "/" + string(e.Protocol)
		}
		listens = append(listens, listen)
	}
	addresses := join(e.Addresses)
	first := fmt.Sprintf("%s\t%s\t%s\t%s\t%s", orDash(e.Zone), e.Name, strings.Join(listens, " "), orDash(addresses), e.Target)
	if len(e.Backends) == 0 {
		fmt.Fprintf(w, "%s\t-\t-\t-\t-\n", first)
	}
	perPod := 0.0
	if len(e.Shares) > 0 {
		perPod = e.Shares[0].Share
	}
	for _, b := range e.Backends {
		pods := "-"
		switch {
		case len(b.Pods) > 0:
			pods = fmt.Sprintf("%d × %.1f%%", len(b.Pods), 100*b.Share/float64(len(b.Pods)))
		case len(e.Shares) > 0:
			pods = fmt.Sprintf("all %d × %.1f%%", len(e.Shares), 100*perPod)
		}
		name := b.Addr.String()
		if b.Node != "" {
			name += " " + b.Node
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%.1f%%\t%s\n", first, name, b.Weight, 100*b.Share, pods)
		first = "\t\t\t\t"
	}
}

func clientsSeen(open []desired.Exposure) string {
	var seen []string
	for _, e := range open {
		if !slices.Contains(seen, e.Client) {
			seen = append(seen, e.Client)
		}
	}
	return strings.Join(seen, " or ")
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
