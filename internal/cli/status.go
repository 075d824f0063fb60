package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"e13.dev/gatehouse/internal/status"
)

const watchInterval = time.Second

func newStatus() *cobra.Command {
	var daemon whom
	var output string
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Print what the running daemon does: problems first",
		Long: `status asks the running daemon and prints what is wrong, and then what is open in
which zone: connections now, new ones a second and in total, bytes, and for each
backend its health, since when, and why; which share of new connections it is to
have, and which it got in the last five minutes.

` + askedWhere + `

With --watch it is a live view that fills the terminal. Keys: j and k or the arrows
scroll by a line, space and b or PgDn and PgUp by a page, g and G go to the ends, q
or Ctrl-C quits. It waits for a daemon that is away. Where it does not write to a
terminal, it prints all again each second, with --- between.

The exit code is 1 when nobody answers.`,
		Example: `  gatehouse status
  gatehouse status --watch
  gatehouse status -c /etc/gatehouse/gatehouse.yaml
  gatehouse status -o json | jq -r '.problems[].what'
  ssh edge gatehouse status
  gatehouse status --url https://edge.example.org:9180 --token-file token`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return usageError{fmt.Errorf("-o %s: write table or json", output)}
			}
			client, err := daemon.client(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			terminal := isTerminal(out) && os.Getenv("TERM") != "dumb"
			colour := palette(terminal && os.Getenv("NO_COLOR") == "")
			show := func(ctx context.Context, out io.Writer) error {
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
				return picture{palette: colour, bars: watch && terminal, now: time.Now()}.print(out, s)
			}
			if !watch {
				return show(cmd.Context(), out)
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			if terminal && output == "table" {
				return live(ctx, os.Stdin, out.(*os.File), colour, show)
			}
			separator := ""
			if output == "table" { // documents of JSON need none
				separator = "---\n"
			}
			return repeat(ctx, out, separator, show)
		},
	}
	daemon.addTo(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table; or json, as the daemon has sent it")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "a live view, until q or Ctrl-C")
	return cmd
}

// repeat shows something again and again until ctx ends, which is no error. Only
// the first time a failure is one of the command: later the daemon may be about to
// come back.
func repeat(ctx context.Context, out io.Writer, separator string, show func(context.Context, io.Writer) error) error {
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
		if !first {
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
