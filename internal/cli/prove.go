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
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/daemon"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/firewall"
	"e13.dev/gatehouse/internal/prove"
)

func newProve() *cobra.Command {
	var files, expect []string
	var output string
	cmd := &cobra.Command{
		Use:   "prove -c FILE...",
		Short: "Print what the firewall lets pass, or prove that it is as it has to be",
		Long: `prove reads the files, this machine's interfaces and the cluster as plan does, makes
the rules of the firewall from them, and prints what passes from each zone to each
zone and to this machine, and from where each Service is reached. It changes nothing
and sends no packet: it is true of every packet, since it follows from the rules.
Interfaces of zones that this machine does not have are taken for granted, so that it
can be run elsewhere.

With --expect it prints instead each statement of FILE that does not hold, and why,
and exits with 1 if there is one. A line of FILE is a statement:

  home can reach 10.0.0.10:6443, self:ssh     all of it may pass
  internet cannot reach 10.0.0.10:6443        nothing of it may
  internet can reach only public/web:443      all of it may, and nothing else
  internet cannot reach anything
  home from 10.11.12.7 can reach self:9090    of an address or a network
  any cannot reach self:23                    of each zone

Targets are addresses, networks, zones, self (this machine, at its own addresses),
Services (NAMESPACE/NAME) and frontends, each with a port or without: 6443, 53/UDP,
8000-8010/TCP, ssh, ping. What begins with "#" is a comment.`,
		Example: `  gatehouse prove -c gatehouse.yaml
  gatehouse prove -c gatehouse.yaml --expect expect.txt
  gatehouse prove -c new.yaml --expect expect.txt && gatehouse apply --confirm 60s new.yaml`,
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
			if c.Firewall == nil {
				return fmt.Errorf("%s: there is no firewall block, so gatehouse lets everything pass that this machine does; begin with firewall: {policies: []}, which drops all that is not opened", strings.Join(files, ", "))
			}
			statements, err := expectations(cmd.ErrOrStderr(), expect, c)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			site, notes, err := provable(ctx, c)
			if err != nil {
				return err
			}
			if len(expect) == 0 {
				return printMatrix(cmd.OutOrStdout(), site.Matrix(), notes, output)
			}
			return printProof(cmd.OutOrStdout(), len(statements), site.Check(statements), site.Unknown(statements), notes, output)
		},
	}
	addFiles(cmd, &files)
	cmd.Flags().StringArrayVar(&expect, "expect", nil, "prove the statements in `FILE`; give it again for more files")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

// expectations reads files of statements, or prints every mistake in them.
func expectations(stderr io.Writer, files []string, c *config.Config) (all []prove.Statement, _ error) {
	var zones []string
	for _, z := range c.Zones {
		zones = append(zones, z.Name)
	}
	var problems []edge.Problem
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		statements, wrong := prove.Parse(file, data, zones)
		all, problems = append(all, statements...), append(problems, wrong...)
	}
	return all, tell(stderr, problems)
}

// provable is what would be open with a configuration, and its firewall. Notes say
// what was taken for granted.
func provable(ctx context.Context, c *config.Config) (*prove.Site, []string, error) {
	in, err := daemon.Look(ctx, c, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	notes := assume(&in)
	state, _ := desired.Settled(in)
	if len(notes) > 0 { // it is not the machine that this is about
		in.Interfaces = slices.DeleteFunc(in.Interfaces, func(i edge.Interface) bool {
			return !slices.ContainsFunc(c.Zones, func(z edge.Zone) bool { return slices.Contains(z.Interfaces, i.Name) })
		})
	}
	rules := firewall.Inputs{Config: c, Frontends: state.Frontends, Interfaces: in.Interfaces}
	for _, a := range state.Addresses {
		rules.Addresses = append(rules.Addresses, a.Addr)
	}
	return prove.New(prove.Inputs{Config: c, Rules: firewall.Compile(rules), Exposures: state.Exposures, Interfaces: in.Interfaces}), notes, nil
}

// assume adds the interfaces of zones that are not there, with the addresses that
// the files give them: what is proved is to be so once they are.
func assume(in *desired.Inputs) (notes []string) {
	var missing []string
	most := 0
	for _, i := range in.Interfaces {
		most = max(most, i.Index)
	}
	for _, z := range in.Config.Zones {
		for _, name := range z.Interfaces {
			if slices.ContainsFunc(in.Interfaces, func(i edge.Interface) bool { return i.Name == name }) {
				continue
			}
			most++
			i := edge.Interface{Name: name, Index: most, Up: true}
			asks4, asks6 := true, true // for addresses that are not known
			for _, l := range in.Config.Links {
				if l.Name == name {
					i.Addrs, asks4, asks6 = slices.Clone(l.Addresses), l.DHCP != nil, l.AcceptRA
				}
			}
			// Some that are nobody's, so that what is opened there is open (RFC 5737, RFC 3849).
			if n := byte(len(missing)); asks4 {
				i.Addrs = append(i.Addrs, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, 254 - n}), 32))
			}
			if n := byte(len(missing)); asks6 {
				i.Addrs = append(i.Addrs, netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 0xff, 15: 254 - n}), 128))
			}
			slices.SortFunc(i.Addrs, firewall.ComparePrefixes)
			in.Interfaces = append(in.Interfaces, i)
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		notes = append(notes, "taken for granted, as this machine does not have them: "+strings.Join(missing, ", "))
	}
	return notes
}

// printProof prints what does not hold, and what holds of what is not there.
func printProof(out io.Writer, count int, broken []prove.Broken, unknown, notes []string, output string) error {
	if output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false) // "home -> cluster" is read by people, too
		err := encoder.Encode(struct {
			Statements int            `json:"statements"`
			Broken     []prove.Broken `json:"broken"`
			Notes      []string       `json:"notes,omitempty"`
		}{count, broken, slices.Concat(notes, unknown)})
		if err == nil && len(broken) > 0 {
			return errNo
		}
		return err
	}
	for _, b := range broken {
		fmt.Fprintln(out, shownAs(b.String()))
	}
	for _, u := range unknown {
		fmt.Fprintln(out, "Note: "+shownAs(u))
	}
	if len(broken) > 0 {
		return errNo
	}
	_, err := fmt.Fprintf(out, "proved: %d statements\n", count)
	return err
}

// Marks of the matrix.
const (
	passesAll  = "✓"
	passesNone = "–"
)

// printMatrix prints the matrix as a table, and below it what a cell has no room
// for.
func printMatrix(out io.Writer, m prove.Matrix, notes []string, output string) error {
	if output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false) // "home -> cluster" is read by people, too
		return encoder.Encode(struct {
			prove.Matrix
			Notes []string `json:"notes,omitempty"`
		}{m, notes})
	}
	var b strings.Builder
	cells := map[[2]string]prove.Cell{}
	for _, c := range m.Cells {
		cells[[2]string{c.From, c.To}] = c
	}
	to := append(slices.Clone(m.Zones), config.Self)
	err := inColumns(&b, func(row func(...string)) {
		row(append([]string{"FROM \\ TO"}, to...)...)
		for _, from := range m.Zones {
			line := []string{from}
			for _, t := range to {
				line = append(line, mark(cells[[2]string{from, t}]))
			}
			row(line...)
		}
	})
	for _, c := range m.Cells {
		if len(c.Passes) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n%s -> %s:\n", c.From, c.To)
		for _, p := range c.Passes {
			fmt.Fprintf(&b, "  %s\n", passLine(p))
		}
	}
	if len(m.Exposures) > 0 {
		b.WriteString("\n")
		err = errors.Join(err, inColumns(&b, func(row func(...string)) {
			row("EXPOSURE", "REACHED FROM", "AT")
			for _, e := range m.Exposures {
				if len(e.From) == 0 {
					row(e.Name, "nowhere", "")
				}
				for _, a := range e.From {
					from := a.Zone
					if a.Sources != nil {
						from += " (only " + join(a.Sources) + ")"
					}
					row(e.Name, from, strings.Join(a.At, ", "))
				}
			}
		}))
	}
	b.WriteString("\nAlways let pass: " + strings.Join(m.Always, "; ") + ".\n")
	if len(m.Unzoned) > 0 {
		b.WriteString("In no zone, so nothing new passes there: " + strings.Join(m.Unzoned, ", ") + ".\n")
	}
	for _, policy := range m.Idle {
		b.WriteString("Decides nothing, since what it is about is decided before it: " + policy + ".\n")
	}
	for _, note := range notes {
		b.WriteString("Note: " + note + ".\n")
	}
	_, printed := io.WriteString(out, harmless(b.String()))
	return errors.Join(err, printed)
}

// inColumns prints rows below each other, without spaces at their ends.
func inColumns(b *strings.Builder, rows func(row func(...string))) error {
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	rows(func(cells ...string) { fmt.Fprintln(w, strings.Join(cells, "\t")) })
	err := w.Flush()
	for line := range strings.Lines(table.String()) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return err
}

// mark is what a cell has, if that is short, or how much it is.
func mark(c prove.Cell) string {
	switch {
	case c.Everything:
		return passesAll
	case len(c.Passes) == 0:
		return passesNone
	}
	var words []string
	for _, p := range c.Passes {
		ports := portsOf(p)
		if len(ports) > 3 || slices.Contains(ports, "everything") { // but not from and to everywhere
			return "some, below"
		}
		for _, w := range ports {
			if !slices.Contains(words, w) {
				words = append(words, w)
			}
		}
	}
	if len(words) > 4 {
		return fmt.Sprintf("%s and %d more", strings.Join(words[:3], " "), len(words)-3)
	}
	return strings.Join(words, " ")
}

func portsOf(p prove.Pass) (words []string) {
	for _, q := range p.Passing {
		for _, w := range q.Ports {
			if !slices.Contains(words, w) {
				words = append(words, w)
			}
		}
	}
	return words
}

// passLine prints what a rule lets pass. A policy says so itself.
func passLine(p prove.Pass) string {
	line := p.Why
	if p.Interface != "" {
		line = fmt.Sprintf("%s at %s, opened for %s", strings.Join(portsOf(p), ", "), p.Interface, p.Why)
	}
	if len(p.Except) > 0 {
		line += ", but for what an earlier one drops: " + strings.Join(p.Except, "; ")
	}
	if p.Masquerade {
		line += "; with this machine's address"
	}
	return line
}
