// Command soak puts a gatehouse under a mix of every kind of load, an hour long if not told otherwise, and fails if
// anything is left behind: descriptors, goroutines, connections, memory that grows. It needs root, for network
// namespaces, and about a quarter of a core.
//
//	soak --svg docs/soak.svg --write docs/benchmarks.md
//	soak --duration 5m --dir /var/tmp/soak
//	soak --render /var/tmp/soak --svg docs/soak.svg   # of a run that was there before
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"e13.dev/gatehouse/lab/internal/soak"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "child" {
		if err := soak.Child(os.Args[2:]); err != nil {
			fail(err)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "soak:", err)
	os.Exit(1)
}

func run(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("soak", flag.ContinueOnError)
	gatehouse := f.String("gatehouse", "bin/gatehouse", "the program")
	duration := f.Duration("duration", time.Hour, "how long the load lasts")
	every := f.Duration("every", 10*time.Second, "time between two samples")
	dir := f.String("dir", "", "where samples and logs go; a new directory, if not given")
	svg := f.String("svg", "", "also draw a graph into this file")
	write := f.String("write", "", "also write the result between the markers of this file, with a link to the graph")
	render := f.String("render", "", "a directory: take what an earlier run has left there, and measure nothing")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("unexpected: %s", f.Arg(0))
	}
	if *write != "" && *svg == "" {
		return errors.New("--write needs --svg, to link to")
	}
	if *render != "" {
		result, err := soak.Load(*render)
		if err != nil {
			return err
		}
		return show(result, *svg, *write)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if *dir == "" {
		if *dir, err = os.MkdirTemp("", "soak-"); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(*dir, 0o755); err != nil {
		return err
	}
	program, err := filepath.Abs(*gatehouse)
	if err != nil {
		return err
	}
	fmt.Println("samples and logs are in", *dir)
	result, err := soak.Run(ctx, soak.Options{
		Gatehouse: program, Dir: *dir, Duration: *duration, Every: *every, Child: []string{self, "child"}, Log: os.Stdout,
	})
	if err != nil {
		return err
	}
	return show(result, *svg, *write)
}

// show draws and writes what was found, and fails if not all is well.
func show(result *soak.Result, svg, page string) error {
	if svg != "" {
		if err := os.WriteFile(svg, []byte(soak.Graph(result.Samples)), 0o644); err != nil {
			return err
		}
	}
	if page != "" {
		if err := result.Write(page, svg); err != nil {
			return err
		}
	}
	if !result.Verdict(os.Stdout) {
		return errors.New("not all is well")
	}
	return nil
}
