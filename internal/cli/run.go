package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/daemon"
	"e13.dev/gatehouse/internal/demo"
	"e13.dev/gatehouse/internal/handover"
)

func newRun() *cobra.Command {
	var files []string
	var debugToo bool
	cmd := &cobra.Command{
		Use:   "run -c FILE...",
		Short: "Run the daemon",
		Long: `run opens what the files and the cluster ask for, and follows both: a changed file
is read at once (SIGHUP asks for it too), and a bad one keeps the last good one
running. SIGINT and SIGTERM close the listeners and let connections end; a second
signal ends at once. SIGUSR2 starts the program that is now where this one was, which
takes over without a connection being refused or cut.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := newLogger(cmd.ErrOrStderr(), debugToo)
			if err := keepNoCore(); err != nil {
				log.Warn("a core file could be written, with secrets in it", "err", err)
			}
			program, err := handover.Self()
			if err != nil {
				return err
			}
			previous, err := handover.Inherit(Version)
			if err != nil {
				return err
			}
			if err := needFiles(files); err != nil {
				previous.GiveUp(err)
				return err
			}
			if _, problems := daemon.ReadFiles(files); len(problems) > 0 {
				previous.GiveUp(fmt.Errorf("its configuration is bad: %s", problems[0]))
				return tell(cmd.ErrOrStderr(), problems)
			}
			ctx, cut, stop := untilSignals(cmd.Context())
			defer stop()
			return daemon.New(daemon.Options{
				Files: files, Version: Version, Log: log,
				Cut: cut, NotifySocket: os.Getenv("NOTIFY_SOCKET"), Program: program, Previous: previous,
			}).Run(ctx)
		},
	}
	addFiles(cmd, &files)
	cmd.Flags().BoolVar(&debugToo, "debug", false, "log more")
	return cmd
}

// keepNoCore sees to it that no memory of this process gets to a disk: there are
// the token of the cluster and that of the status page in it. What this process
// starts inherits it. (systemd-coredump goes by the limit as well.)
func keepNoCore() error {
	return os.NewSyscallError("setrlimit", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
}

// untilSignals ends its context at the first SIGINT or SIGTERM, and closes cut
// at the second. A third one ends the process, whatever it does.
func untilSignals(parent context.Context) (ctx context.Context, cut <-chan struct{}, stop func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(parent)
	second, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer signal.Stop(signals)
		for _, act := range []func(){cancel, func() { close(second) }} {
			select {
			case <-signals:
				act()
			case <-over:
				return
			}
		}
	}()
	return ctx, second, func() {
		close(over)
		cancel()
	}
}

func newAnnounce() *cobra.Command {
	var files []string
	var output string
	var debugToo bool
	cmd := &cobra.Command{
		Use:   "announce -c FILE... -o OUT",
		Short: "Keep an l4proxy v1 file written from LoadBalancer Services",
		Long: `announce follows the cluster and writes what 'run' would open for Services to
OUT as an l4proxy v1 file, replacing it in one step whenever something changes,
also when the last Service goes. It is for those who keep l4proxy.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFiles(files); err != nil {
				return err
			}
			if output == "" {
				return usageError{errors.New("say where to write with -o OUT")}
			}
			c, err := load(cmd.ErrOrStderr(), files)
			if err != nil {
				return err
			}
			if c.Kubernetes == nil {
				return errors.New("announce needs a kubernetes block in the configuration")
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return daemon.NewAnnouncer(daemon.Options{Files: files, Version: Version, Log: newLogger(cmd.ErrOrStderr(), debugToo)}, output).Run(ctx)
		},
	}
	addFiles(cmd, &files)
	cmd.Flags().StringVarP(&output, "output", "o", "", "the `FILE` to write")
	cmd.Flags().BoolVar(&debugToo, "debug", false, "log more")
	return cmd
}

func newDemo() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show a gatehouse in front of three sample backends, on loopback",
		Long: `demo needs no root and no cluster. It starts three sample backends and a gatehouse
in front of them on loopback, sends requests through it and shows which backend
answered, until you stop it with Ctrl-C. Its status page is served meanwhile.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			// To a daemon SIGHUP says that it reads its files again; here the terminal is gone.
			ctx, ignore := signal.NotifyContext(ctx, syscall.SIGHUP)
			defer ignore()
			return demo.Run(ctx, demo.Options{
				Out: cmd.OutOrStdout(), Once: once, Version: Version,
				Live: isTerminal(cmd.OutOrStdout()) && os.Getenv("TERM") != "dumb",
			})
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "send 300 requests, print how many each backend got, and exit 0")
	return cmd
}
