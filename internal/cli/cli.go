// Package cli is the command line: flags, output and exit codes. What the
// commands do is in the packages that it calls.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/daemon"
	"e13.dev/gatehouse/internal/edge"
)

// Version is set by the linker, and so is Commit where the source has no git
// that the compiler could ask: in packages, which are the same from any copy.
var (
	Version = "dev"
	Commit  string
)

// Exit codes of every command.
const (
	exitOK    = 0
	exitNo    = 1 // the input is bad or the answer is no
	exitUsage = 2
)

// errNo is an answer that was already printed; it only sets the exit code.
var errNo = errors.New("no")

// usageError is a command line that makes no sense.
type usageError struct{ error }

// Main runs a command and returns its exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	command, err := root.ExecuteContextC(context.Background())
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errNo):
		return exitNo
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "gatehouse: %v\nRun '%s --help' to see what it takes.\n", err, command.CommandPath())
		return exitUsage
	default:
		fmt.Fprintf(stderr, "gatehouse: %v\n", err)
		return exitNo
	}
}

func newRoot(stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "gatehouse",
		Short: "The front door of a bare-metal Kubernetes cluster",
		Long: `gatehouse opens Services of type LoadBalancer in exactly the networks (zones)
that they ask for, and spreads connections evenly over their pods. If its file says
so, it is the site's router too: interfaces, firewall, DHCP and DNS.`,
		Version:       Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("no command %q", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.CompletionOptions.DisableDefaultCmd = true // newCompletion is it
	for _, cmd := range []*cobra.Command{newRun(), newCheck(), newPlan(), newProve(), newApply(), newConfirm(), newStatus(), newExplain(), newLeases(), newInit(), newKubeconfig(), newAnnounce(), newDemo(), newDown(), newUninstall(), newCompletion(), newVersion()} {
		if cmd.Args == nil {
			cmd.Args = noArgs
		}
		addCompletions(cmd)
		root.AddCommand(cmd)
	}
	return root
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no argument %q; files are given with -c", cmd.Name(), args[0])}
	}
	return nil
}

// addFiles gives a command its -c flag.
func addFiles(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringArrayVarP(files, "config", "c", nil, "configuration `FILE`; give it again for more files, which are merged")
}

func needFiles(files []string) error {
	if len(files) == 0 {
		return usageError{errors.New("give at least one configuration file with -c FILE")}
	}
	return nil
}

// load reads and parses files, or prints every problem they have.
func load(stderr io.Writer, names []string) (*config.Config, error) {
	c, problems := daemon.ReadFiles(names)
	return c, tell(stderr, problems)
}

// tell prints problems; any of them is a no.
func tell(stderr io.Writer, problems []edge.Problem) error {
	for _, p := range problems {
		fmt.Fprintln(stderr, p)
	}
	if len(problems) > 0 {
		return errNo
	}
	return nil
}

// newLogger writes text on a terminal and JSON otherwise.
func newLogger(stderr io.Writer, debugToo bool) *slog.Logger {
	opts := &slog.HandlerOptions{}
	if debugToo {
		opts.Level = slog.LevelDebug
	}
	if isTerminal(stderr) {
		return slog.New(slog.NewTextHandler(stderr, opts))
	}
	return slog.New(slog.NewJSONHandler(stderr, opts))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// untilSignal ends its context at the first SIGINT or SIGTERM. A second one
// ends the process at once.
func untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print version, commit and Go version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(cmd.OutOrStdout(), "gatehouse %s (commit %s, %s %s/%s)\n", Version, commit(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}

func commit() string {
	if Commit != "" {
		return Commit[:min(len(Commit), 12)]
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	revision, dirty := "unknown", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	return revision + dirty
}
