package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"e13.dev/gatehouse/internal/status"
	"e13.dev/gatehouse/internal/trial"
)

func newConfirm() *cobra.Command {
	var to whom
	var no bool
	cmd := &cobra.Command{
		Use:   "confirm",
		Short: "Keep the configuration that is on trial",
		Long: `confirm writes the configuration that gatehouse apply --confirm has put on trial to
the file that it stands for, which is replaced as a whole and keeps its mode and owner.
The daemon goes by it from then on. With --no it goes back to its files at once.
` + askedWhere,
		RunE: func(cmd *cobra.Command, _ []string) error {
			daemon, err := to.operator(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			s, err := daemon.operate(ctx, http.MethodGet, trial.PathTrial, nil)
			if err != nil {
				return err
			}
			switch {
			case s.Trial == nil && s.Last != "":
				return fmt.Errorf("no configuration is on trial: the last one %s", harmless(s.Last))
			case s.Trial == nil:
				return errors.New("no configuration is on trial")
			case no:
				return giveUp(ctx, daemon, s.Trial.ID, cmd.OutOrStdout())
			}
			return keep(ctx, daemon, s.Trial.ID, cmd.OutOrStdout())
		},
	}
	to.addTo(cmd)
	cmd.Flags().BoolVar(&no, "no", false, "go back to the files at once")
	return cmd
}

// keep writes what is on trial to the files, and tells the daemon, which looks
// there before it believes it. What runs and what is on disk are so the same, at
// whatever point this ends.
func keep(ctx context.Context, daemon *client, id string, out io.Writer) error {
	s, err := daemon.operate(ctx, http.MethodGet, trial.PathTrial, nil)
	if err != nil {
		return err
	}
	if s.Trial == nil || s.Trial.ID != id {
		return over(s)
	}
	for _, c := range s.Candidates {
		if err := mayReplace(c.Path); err != nil {
			return err
		}
		if err := unchanged(c); err != nil {
			return err
		}
	}
	for _, c := range s.Candidates {
		if err := replace(c.Path, c.Data); err != nil {
			return err
		}
		fmt.Fprintf(out, "wrote %s\n", c.Path)
	}
	if _, err := daemon.operate(ctx, http.MethodPost, trial.PathConfirm, trial.Choice{ID: id}); err != nil {
		// Over just now, perhaps: then the daemon reads the same from the files.
		if s, asked := daemon.operate(ctx, http.MethodGet, trial.PathTrial, nil); asked != nil || s.Trial != nil {
			return err
		}
	}
	return nil
}

// unchanged is an error if somebody has written the file since the trial began.
func unchanged(c trial.Candidate) error {
	data, err := os.ReadFile(c.Path)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	if c.Was != "" && hex.EncodeToString(sum[:]) != c.Was && !bytes.Equal(data, c.Data) {
		return fmt.Errorf("%s: somebody has written it since the trial began, and that would be lost; go back with gatehouse confirm --no, bring both together, and apply that", c.Path)
	}
	return nil
}

func giveUp(ctx context.Context, daemon *client, id string, out io.Writer) error {
	if _, err := daemon.operate(ctx, http.MethodPost, trial.PathRevert, trial.Choice{ID: id}); err != nil {
		return err
	}
	fmt.Fprintln(out, "gone back to the files")
	return nil
}

// question is what somebody at a terminal is asked while a trial runs. He may be
// gone: the daemon goes back without him.
type question struct {
	daemon   *client
	id       string
	until    time.Time
	in       io.Reader
	out, say io.Writer
	bold     bool
}

// ask waits for an answer, and shows how long is left. Ending it in another way
// (^C, a terminal that is gone) leaves the trial to the daemon.
func (q *question) ask(ctx context.Context) error {
	lines := make(chan string)
	go func() {
		// It ends with the process: a read of a terminal cannot be called off.
		for scanner := bufio.NewScanner(q.in); scanner.Scan(); {
			lines <- strings.ToLower(strings.TrimSpace(scanner.Text()))
		}
		close(lines)
	}()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	fmt.Fprintln(q.say, "It runs, and is not written yet. Try whether all works, from a new connection too.")
	q.show(false)
	for {
		select {
		case <-ctx.Done():
			return q.left()
		case line, more := <-lines:
			switch {
			case !more:
				return q.left()
			case line == "yes" || line == "y":
				return keep(context.WithoutCancel(ctx), q.daemon, q.id, q.out)
			case line == "no" || line == "n":
				return errors.Join(giveUp(ctx, q.daemon, q.id, q.out), errNo)
			}
			q.show(false)
		case <-second.C:
			if s, err := q.daemon.operate(ctx, http.MethodGet, trial.PathTrial, nil); err == nil && (s.Trial == nil || s.Trial.ID != q.id) {
				fmt.Fprintln(q.say)
				if s.Last == "was confirmed" {
					fmt.Fprintln(q.out, "it was confirmed elsewhere")
					return nil
				}
				return over(s)
			}
			q.show(true)
		}
	}
}

// show prints the question, or the time in it anew. What is being typed stays:
// the cursor goes back to where it was.
func (q *question) show(again bool) {
	left := max(time.Until(q.until), 0).Round(time.Second)
	text := fmt.Sprintf("Keep it? [yes/no] (back to the files in %s) ", pad(status.Duration(left).String()))
	switch {
	case again && os.Getenv("TERM") == "dumb":
		return
	case again:
		fmt.Fprintf(q.say, "\x1b7\r%s\x1b8", q.emphasized(text))
	default:
		fmt.Fprint(q.say, q.emphasized(text))
	}
}

// pad keeps the question as long as it was.
func pad(text string) string { return fmt.Sprintf("%7s", text) }

func (q *question) emphasized(text string) string {
	if !q.bold {
		return text
	}
	return "\x1b[1m" + text + "\x1b[0m"
}

func (q *question) left() error {
	fmt.Fprintf(q.say, "\nstill on trial until %s; gatehouse confirm keeps it\n", q.until.Format(time.TimeOnly))
	return errNo
}

// isConversation says whether somebody can be asked: /dev/null is no terminal.
func isConversation(in io.Reader, out io.Writer) bool {
	i, isFile := in.(*os.File)
	o, isFileToo := out.(*os.File)
	return isFile && isFileToo && term.IsTerminal(int(i.Fd())) && term.IsTerminal(int(o.Fd()))
}
