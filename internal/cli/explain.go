package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
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
port, the listener on this machine, TLS server names, the firewall, source ranges,
the data plane, backends, their health and shares, and the address that they see.
What stops it comes with what would be right instead. It makes no connection, and
answers from what the data planes have.

TARGET is

  ADDRESS:PORT              an address of this machine, or one that the firewall may
                            let pass to; IPv6 in brackets
  NAME:PORT                 a TLS server name there, or a name of the files
  NAMESPACE/SERVICE         all ports of a Service
  NAMESPACE/SERVICE:PORT    one of them, by its number or its name
  FRONTEND                  a frontend of the files, by its name
  NAME                      a TLS server name, at whichever port

and a port without /udp or /sctp is one of TCP.

--from is a zone, or the address of a client, of which it is then looked up by
which interface it comes in. Without, it is explained for each zone. 127.0.0.1 is
this machine itself.

The exit code is 0 if it is reachable, also if only for some, 1 if it is not, and 2
if the question is none: there is no such zone, or no such Service.

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
	var b strings.Builder
	for i, w := range a.Ways {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "%s: %s from %s\n  %s\n\n", shownAs(w.To), p.in(inkOfVerdict(w.Verdict), shownAs(string(w.Verdict))), shownAs(w.From), shownAs(w.Summary))
		aligned(&b, stepCells(w.Steps, p))
		if len(w.Backend) > 0 {
			b.WriteString("\n")
			aligned(&b, receiverCells(w.Backend, a.At, p))
		}
		if w.Remedy != "" {
			fmt.Fprintf(&b, "\n  remedy: %s\n", shownAs(w.Remedy))
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// shownAs is what a terminal may be given of what others have written: no colours
// of theirs, either.
func shownAs(text string) string { return strings.ReplaceAll(harmless(text), "\x1b", "\uFFFD") }

func inkOfVerdict(v explain.Verdict) ink {
	switch v {
	case explain.Reachable, explain.Some:
		return good
	case explain.NotReachable:
		return bad
	}
	return plain
}

func stepCells(steps []explain.Step, p palette) [][]string {
	var rows [][]string
	for _, s := range steps {
		mark, what := p.in(good, "ok"), shownAs(s.What)
		if !s.OK {
			mark = p.in(bad, "no")
		}
		if s.Source != "" {
			what += "  " + p.in(quiet, "("+shownAs(s.Source)+")")
		}
		rows = append(rows, []string{mark, shownAs(s.Check), what})
	}
	return rows
}

func receiverCells(backends []explain.Receiver, now time.Time, p palette) [][]string {
	rows := [][]string{{"BACKEND", "NODE", "STATE", "WEIGHT", "SHARE", "PODS"}}
	for _, b := range backends {
		state := string(b.State)
		switch {
		case b.Since.IsZero() && b.State == edge.Up:
			state += ", not checked"
		case !b.Since.IsZero() && now.After(b.Since):
			state += " for " + status.Age(now.Sub(b.Since))
		}
		var pods []string
		for _, s := range b.Shares {
			pods = append(pods, fmt.Sprintf("%s %.1f%%", shownAs(s.Pod), 100*s.Share))
		}
		if b.Error != "" {
			pods = append(pods, shownAs(b.Error))
		}
		rows = append(rows, []string{
			b.Addr.String(), orDash(shownAs(b.Node)), p.in(inkOf(b.State), shownAs(state)), strconv.Itoa(b.Weight), fmt.Sprintf("%.1f%%", 100*b.Share), strings.Join(pods, ", "),
		})
	}
	return rows
}

// aligned prints rows of cells under each other, two columns in.
func aligned(b *strings.Builder, rows [][]string) {
	widths := map[int]int{}
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], cellsOf(cell))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString("  " + cell + strings.Repeat(" ", widths[i]-cellsOf(cell)))
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}
