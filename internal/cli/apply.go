package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"e13.dev/gatehouse/internal/changes"
	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/daemon"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
	"e13.dev/gatehouse/internal/trial"
)

// How long what is not to be confirmed may be written after it was sent, and
// how long the first decision from a configuration is waited for.
const (
	writeTime  = time.Minute
	decideTime = 20 * time.Second
	askEvery   = 100 * time.Millisecond
)

func newApply() *cobra.Command {
	var to whom
	var a applying
	cmd := &cobra.Command{
		Use:   "apply NEW-FILE...",
		Short: "Have the running gatehouse use a new configuration, on trial if wished",
		Long: `apply checks NEW-FILE together with the other files of the running gatehouse, prints
what would change, and has it run. Then the file of the daemon is written, which is
replaced as a whole and keeps its mode and owner. Nothing is written or changed if
there is a mistake in the files. What this machine or the cluster has against them
is told once it runs.

With --confirm the file is not written yet: the new configuration runs in the memory
of the daemon only, for that long. Answer the question with yes, or type gatehouse
confirm somewhere, and it is written. Without an answer the daemon goes back to its
files by itself: that needs neither this command nor a connection to the machine, so
that a firewall that cuts off its operator lets him in again. A crash, a restart, an
upgrade and a loss of power go back as well. Where nobody can be asked, in a script,
apply returns at once, and gatehouse confirm is the answer.

If the daemon has several files, NEW-FILE stands for the one of the same base name.
Root may do this, and the user that gatehouse runs as; the group of the socket may not.
` + askedWhere,
		Example: `  gatehouse apply --confirm 60s new.yaml
  gatehouse apply new.yaml                           # at once
  gatehouse apply --confirm 5m new.yaml < /dev/null && ./still-works.sh && gatehouse confirm`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("apply what? Give the new configuration file; -c is for the file of the daemon")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("confirm") && (a.patience < trial.Shortest || a.patience > trial.Longest) {
				return usageError{fmt.Errorf("--confirm %s: write %s to %s", a.patience, status.Duration(trial.Shortest), status.Duration(trial.Longest))}
			}
			var err error
			if a.daemon, err = to.operator(cmd.ErrOrStderr()); err != nil {
				return err
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			a.out, a.say, a.in = cmd.OutOrStdout(), cmd.ErrOrStderr(), cmd.InOrStdin()
			return a.run(ctx, args)
		},
	}
	to.addTo(cmd)
	cmd.Flags().DurationVar(&a.patience, "confirm", 0, "run it for this `TIME` only, unless it is confirmed: 60s, 5m")
	return cmd
}

// operator is a client for what only an operator may do.
func (w *whom) operator(stderr io.Writer) (*client, error) {
	c, err := w.client(stderr)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(c.where, "/") {
		if w.url == "" && len(w.files) == 0 {
			return nil, fmt.Errorf("nothing listens at %s: gatehouse does not run, or its admin.socket is elsewhere; give its file with -c FILE, or --url unix:PATH", defaultSocket)
		}
		return nil, fmt.Errorf("%s: that is done at the Unix socket only, where the kernel says who asks; add admin: {socket: %s}, or give --url unix:PATH", c, defaultSocket)
	}
	return c, nil
}

// applying is one run of apply.
type applying struct {
	daemon   *client
	patience time.Duration // 0: it is not asked
	in       io.Reader
	out, say io.Writer
}

func (a *applying) run(ctx context.Context, names []string) error {
	var files []trial.Candidate
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		files = append(files, trial.Candidate{Name: name, Data: data})
	}
	// First it is asked what it would be, so that nothing runs which could not be kept.
	s, err := a.daemon.offer(ctx, files, 0)
	if err != nil {
		return err
	}
	if err := tell(a.say, s.Problems); err != nil {
		return err
	}
	files = s.Candidates
	if runs(s, files) && isWritten(files) {
		fmt.Fprintln(a.out, "nothing changes: it runs already")
		return nil
	}
	for _, c := range files {
		if err := mayReplace(c.Path); err != nil {
			return err
		}
	}
	a.diff(ctx, s, files)
	patience := a.patience
	if patience == 0 {
		patience = writeTime
	}
	if s, err = a.daemon.offer(ctx, files, patience); err != nil {
		return err
	}
	if err := tell(a.say, s.Problems); err != nil {
		return err // another file was changed since
	}
	if s.Trial == nil {
		return fmt.Errorf("%s does not say that it tries it", a.daemon)
	}
	id := s.Trial.ID
	if s, err = a.daemon.decided(ctx, id); err != nil {
		return err
	}
	if len(s.Problems) > 0 {
		fmt.Fprintln(a.say, "It runs, with these problems:")
	}
	for _, p := range s.Problems {
		fmt.Fprintln(a.say, "  "+harmless(p.String()))
	}
	if a.patience == 0 {
		return keep(ctx, a.daemon, id, a.out)
	}
	if !isConversation(a.in, a.say) {
		fmt.Fprintf(a.out, "on trial until %s; gatehouse confirm keeps it\n", s.Trial.Until.Local().Format(time.TimeOnly))
		return nil
	}
	q := question{daemon: a.daemon, id: id, until: time.Now().Add(time.Duration(s.Trial.Left * float64(time.Second))), in: a.in, out: a.out, say: a.say}
	q.bold = os.Getenv("TERM") != "dumb" && os.Getenv("NO_COLOR") == ""
	return q.ask(ctx)
}

// runs says whether the candidates are what runs.
func runs(s trial.State, files []trial.Candidate) bool {
	return !slices.ContainsFunc(files, func(c trial.Candidate) bool {
		sum := sha256.Sum256(c.Data)
		return !slices.Contains(s.Files, trial.File{Path: c.Path, SHA256: hex.EncodeToString(sum[:])})
	})
}

// isWritten says whether the files have the candidates already.
func isWritten(files []trial.Candidate) bool {
	return !slices.ContainsFunc(files, func(c trial.Candidate) bool {
		data, err := os.ReadFile(c.Path)
		return err != nil || !bytes.Equal(data, c.Data)
	})
}

// diff prints what would change, as far as it is known: a cluster that does not
// answer is no reason to try nothing.
func (a *applying) diff(ctx context.Context, s trial.State, files []trial.Candidate) {
	var merged []config.File
	for _, f := range s.Files {
		merged = append(merged, config.File{Name: f.Path})
		last := &merged[len(merged)-1]
		if i := slices.IndexFunc(files, func(c trial.Candidate) bool { return c.Path == f.Path }); i >= 0 {
			last.Name, last.Data = files[i].Name, files[i].Data
			continue
		}
		var err error
		if last.Data, err = os.ReadFile(f.Path); err != nil {
			fmt.Fprintf(a.say, "what would change is not known: %v\n", err)
			return
		}
	}
	err := func() error {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		c, problems := config.Parse(merged)
		if len(problems) > 0 {
			return errors.New(problems[0].String())
		}
		now, err := running(ctx, a.daemon)
		if err != nil {
			return err
		}
		in, err := daemon.Look(ctx, c, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		asIfRunning(&in, now)
		state, _ := desired.Settled(in)
		all := changes.Between(changes.Side{Exposures: now.Exposures, Frontends: now.Frontends}, changes.Planned(state))
		ofBlocks(a.say, &all, func() (*config.Config, error) {
			var names, sums []string
			for _, f := range s.Files {
				names, sums = append(names, f.Path), append(sums, f.SHA256)
			}
			return goneBy(names, sums)
		}, c)
		return printChanges(a.out, all)
	}()
	if err != nil {
		fmt.Fprintf(a.say, "what would change of what is open is not known: %v\n", err)
	}
}

// offer sends a configuration to the daemon. Without a time it is checked only.
func (c *client) offer(ctx context.Context, files []trial.Candidate, patience time.Duration) (trial.State, error) {
	return c.operate(ctx, http.MethodPost, trial.PathApply, trial.Offer{Files: files, Seconds: patience.Seconds()})
}

// decided waits until what is on trial is what the machine has. It may be over
// before.
func (c *client) decided(ctx context.Context, id string) (trial.State, error) {
	end := time.Now().Add(decideTime)
	for {
		s, err := c.operate(ctx, http.MethodGet, trial.PathTrial, nil)
		switch {
		case err != nil:
			return s, err
		case s.Trial == nil || s.Trial.ID != id:
			return s, over(s)
		case s.Decided || time.Now().After(end):
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, ctx.Err()
		case <-time.After(askEvery):
		}
	}
}

// over says how a trial has ended.
func over(s trial.State) error {
	switch {
	case s.Trial != nil:
		return fmt.Errorf("another configuration is on trial by now, by %s", s.Trial.By)
	case s.Last == "":
		return errors.New("the trial is over: gatehouse was started anew, and goes by its files")
	}
	return fmt.Errorf("the trial is over: it %s; gatehouse goes by its files", harmless(s.Last))
}

// operate asks for something that only an operator may have.
func (c *client) operate(ctx context.Context, method, path string, what any) (trial.State, error) {
	var s trial.State
	body, err := json.Marshal(what)
	if err != nil {
		return s, err
	}
	u := *c.base
	u.Path += path
	req, err := http.NewRequestWithContext(ctx, method, u.String(), http.NoBody)
	if err != nil {
		return s, err
	}
	if method == http.MethodPost {
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return s, c.silence(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, trial.MaxSize))
	switch {
	case err != nil:
		return s, c.silence(err)
	case resp.StatusCode == http.StatusConflict, resp.StatusCode == http.StatusForbidden:
		return s, errors.New(harmless(strings.TrimSpace(string(data))))
	case resp.StatusCode != http.StatusOK:
		return s, fmt.Errorf("%s answers %s: that is no gatehouse, or one that cannot try configurations yet", c, resp.Status)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%s: that is no answer of a gatehouse: %w", c, err)
	}
	if s.Problems == nil {
		s.Problems = []edge.Problem{}
	}
	return s, nil
}
