package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

func newLeases() *cobra.Command {
	var daemon whom
	var output string
	cmd := &cobra.Command{
		Use:   "leases [ZONE...]",
		Short: "Print the addresses that machines have from the running daemon by DHCP",
		Long: `leases asks the running daemon and prints a line for each address that a machine of
a zone has by DHCP: who has it, by its MAC address, what it is called, and for how
much longer. An address that is reserved for it says so. One that is set aside has
somebody who was not given it, whose MAC address is shown if it is known.

` + askedWhere + `

The exit code is 1 when nobody answers, or when no machine gets addresses in a zone
that is named.`,
		Example: `  gatehouse leases
  gatehouse leases cluster
  gatehouse leases -o json | jq -r '.[] | select(.hostname == "nas").address'`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, zones []string) error {
			if output != "table" && output != "json" {
				return usageError{fmt.Errorf("-o %s: write table or json", output)}
			}
			client, err := daemon.client(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			data, err := client.get(cmd.Context(), "/status.json", nil)
			if err != nil {
				return err
			}
			var s status.Status
			if err := json.Unmarshal(data, &s); err != nil {
				return fmt.Errorf("%s: that is no status of a gatehouse: %w", client, err)
			}
			served := s.DHCP
			for _, zone := range zones {
				if !slices.ContainsFunc(served, func(z status.DHCPZone) bool { return z.Zone == zone }) {
					return fmt.Errorf("no machine gets addresses in a zone %q: %s", zone, servedZones(served))
				}
			}
			if len(zones) > 0 {
				served = slices.DeleteFunc(served, func(z status.DHCPZone) bool { return !slices.Contains(zones, z.Zone) })
			}
			if output == "json" {
				all := []edge.Lease{}
				for _, z := range served {
					all = append(all, z.Leases...)
				}
				out := json.NewEncoder(cmd.OutOrStdout())
				out.SetIndent("", "  ")
				return out.Encode(all)
			}
			return printLeases(cmd.OutOrStdout(), served, time.Now())
		},
	}
	daemon.addTo(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table; or json: a list, as the status page has it")
	return cmd
}

func servedZones(zones []status.DHCPZone) string {
	if len(zones) == 0 {
		return "the daemon's configuration has no dhcp block, or it cannot be served"
	}
	var names []string
	for _, z := range zones {
		names = append(names, z.Zone)
	}
	return "have " + strings.Join(names, ", ")
}

// printLeases prints a table for each zone.
func printLeases(out io.Writer, zones []status.DHCPZone, now time.Time) error {
	if len(zones) == 0 {
		_, err := fmt.Fprintln(out, "No zone's machines get addresses by DHCP.")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for i, z := range zones {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "zone %s: %d of %d addresses are free\n", z.Zone, z.Free, z.Size)
		if z.Error != "" {
			fmt.Fprintln(w, "  "+z.Error)
		}
		if len(z.Leases) == 0 {
			continue
		}
		fmt.Fprintln(w, "ADDRESS\tMAC\tNAME\tENDS IN\tKIND")
		for _, l := range z.Leases {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.Addr, orDash(l.MAC), orDash(l.Hostname), brief(l.Expires.Sub(now)), kindOf(l))
		}
	}
	return w.Flush()
}

func kindOf(l edge.Lease) string {
	switch {
	case l.Declined:
		return "set aside"
	case l.Reserved:
		return "reserved"
	}
	return "lease"
}

// brief is a time in its two largest units.
func brief(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d >= 24*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}
