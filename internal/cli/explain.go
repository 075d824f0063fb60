package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/explain"
	"e13.dev/gatehouse/internal/status"
)

func newExplain() *cobra.Command {
	var daemon whom
	var from, output string
	cmd := &cobra.Command{
		Use:   "explain [--from ZONE|ADDRESS] TARGET",
		Short: "Say whether somebody reaches something, and why",
		Long: `explain asks the running daemon whether a client gets through to a backend, and
prints what that follows from, link by link, each with the place where it is
written: the class of the Service, the zones that it asks for and may have, the
port, the listener on this machine, TLS server names, source ranges, the data
plane, backends, their health and shares, and the address that they see. What
stops it comes with what would be right instead. It makes no connection, and
answers from what the data planes have.

TARGET is

  ADDRESS:PORT              an address of this machine, IPv6 in brackets
  NAME:PORT                 a TLS server name there, or a name of the files
  NAMESPACE/SERVICE         all ports of a Service
  NAMESPACE/SERVICE:PORT    one of them, by its number or its name
  FRONTEND                  a frontend of the files, by its name
  NAME                      a TLS server name, at whichever port

and a port without /udp or /sctp is one of TCP.

--from is a zone, or the address of a client, of which it is then looked up by
which interface it comes in. Without, it is explained for each zone. 127.0.0.1 is
this machine itself.

The exit code is 0 if it is reachable, also if only for some, and 1 if it is not.

` + askedWhere,
		Example: `  gatehouse explain shop/web
  gatehouse explain --from internet 10.11.12.51:443
  gatehouse explain --from 10.11.12.101 shop/dns:53/udp
  gatehouse explain --from home git.example.org:443
  gatehouse explain --from internet kubernetes-api -o json`,
		Args: func(_ *cobra.Command, args []string) error {
			switch len(args) {
			case 0:
				return usageError{errors.New("explain what? Give ADDRESS:PORT, NAMESPACE/SERVICE, the name of a frontend or a TLS server name")}
			case 1:
				return nil
			}
			return usageError{fmt.Errorf("explain takes one target, and %q is one more; where a client is goes to --from", args[1])}
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "table" && output != "json" {
				return usageError{fmt.Errorf("-o %s: write table or json", output)}
			}
			client, err := daemon.client(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			data, err := client.get(cmd.Context(), "/explain.json", url.Values{"from": {from}, "to": {args[0]}})
			if err != nil {
				return err
			}
			var answer explain.Answer
			if err := json.Unmarshal(data, &answer); err != nil || len(answer.Ways) == 0 {
				return fmt.Errorf("%s: that is no answer of a gatehouse: %w", client, errors.Join(err, errNoWay))
			}
			out := cmd.OutOrStdout()
			if output == "json" {
				_, err = out.Write(data)
			} else {
				colour := isTerminal(out) && os.Getenv("TERM") != "dumb" && os.Getenv("NO_COLOR") == ""
				err = printAnswer(out, answer, palette(colour))
			}
			if err == nil && answer.Verdict == explain.NotReachable {
				return errNo
			}
			return err
		},
	}
	daemon.addTo(cmd)
	cmd.Flags().StringVar(&from, "from", "", "a `ZONE`, or the address of a client; without, each zone")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

// errNoWay is of an answer that says nothing.
var errNoWay = errors.New("it has no way in it")

// printAnswer prints each way: the verdict, what it follows from, who is behind
// it, and what would be right.
func printAnswer(out io.Writer, a explain.Answer, p palette) error {
	for i, w := range a.Ways {
		if i > 0 {
			fmt.Fprintln(out)
		}
		fmt.Fprintf(out, "%s: %s from %s\n  %s\n\n", w.To, p.in(inkOfVerdict(w.Verdict), string(w.Verdict)), w.From, w.Summary)
		if err := printSteps(out, w.Steps, p); err != nil {
			return err
		}
		if err := printReceivers(out, w.Backend, a.At, p); err != nil {
			return err
		}
		if w.Remedy != "" {
			fmt.Fprintf(out, "\n  remedy: %s\n", w.Remedy)
		}
	}
	return nil
}

func inkOfVerdict(v explain.Verdict) ink {
	switch v {
	case explain.Reachable, explain.Some:
		return good
	case explain.NotReachable:
		return bad
	}
	return plain
}

func printSteps(out io.Writer, steps []explain.Step, p palette) error {
	return aligned(out, func(w io.Writer) {
		for _, s := range steps {
			mark := p.in(good, "ok")
			if !s.OK {
				mark = p.in(bad, "no")
			}
			source := ""
			if s.Source != "" {
				source = "  " + p.in(quiet, "("+s.Source+")")
			}
			fmt.Fprintf(w, "  %s\t%s\t%s%s\n", mark, s.Check, s.What, source)
		}
	})
}

func printReceivers(out io.Writer, backends []explain.Receiver, now time.Time, p palette) error {
	if len(backends) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	return aligned(out, func(w io.Writer) {
		fmt.Fprintf(w, "  BACKEND\tNODE\t%s\tWEIGHT\tSHARE\tPODS\n", p.in(plain, "STATE"))
		for _, b := range backends {
			state := string(b.State)
			if b.State == edge.Up && b.Since.IsZero() {
				state += ", not checked"
			} else if !b.Since.IsZero() && now.After(b.Since) {
				state += " for " + status.Age(now.Sub(b.Since))
			}
			var pods []string
			for _, s := range b.Shares {
				pods = append(pods, fmt.Sprintf("%s %.1f%%", s.Pod, 100*s.Share))
			}
			if b.Error != "" {
				pods = append(pods, b.Error)
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\t%d\t%.1f%%\t%s\n", b.Addr, orDash(b.Node), p.in(inkOf(b.State), state), b.Weight, 100*b.Share, strings.Join(pods, ", "))
		}
	})
}

// aligned prints a table without blanks at the ends of its lines.
func aligned(out io.Writer, fill func(io.Writer)) error {
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fill(w)
	if err := w.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(table.String()) {
		if _, err := fmt.Fprintln(out, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}
