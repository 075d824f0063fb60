// Command package makes what is downloaded: for each architecture a Debian
// package, an archive and a bill of materials, and the checksums of all.
//
//	go run ./cmd/package -root .. -out ../dist
package main

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"e13.dev/gatehouse/packaging/internal/build"
	"e13.dev/gatehouse/packaging/internal/contents"
)

func main() {
	root := flag.String("root", "..", "the `DIR`ectory with the source")
	out := flag.String("out", "../dist", "the `DIR`ectory to write into")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *root, *out); err != nil {
		fmt.Fprintln(os.Stderr, "package:", err)
		os.Exit(1) //nolint:gocritic // stop only gives the signal back
	}
}

func say(format string, args ...any) { fmt.Printf("==> "+format+"\n", args...) }

func run(ctx context.Context, root, out string) error {
	release, err := build.Of(ctx, root)
	if err != nil {
		return err
	}
	built, err := contents.Build(ctx, release, build.Architectures, say)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil { //nolint:gosec // for everybody
		return err
	}
	var sums []string
	write := func(name string, data []byte, err error) error {
		if err != nil {
			return err
		}
		sums = append(sums, fmt.Sprintf("%x  %s\n", sha256.Sum256(data), name))
		say("%s (%s)", build.Shown(root, out, name), build.Size(len(data)))
		return os.WriteFile(filepath.Join(out, name), data, 0o644)
	}
	for _, architecture := range build.Architectures {
		if err := write(built.Deb(architecture)); err != nil {
			return err
		}
		if err := write(built.Tarball(architecture)); err != nil {
			return err
		}
		bill, err := built.Bill(architecture)
		if err := write(fmt.Sprintf("gatehouse_%s_%s.cdx.json", built.Debian, architecture), bill, err); err != nil {
			return err
		}
	}
	slices.Sort(sums)
	return os.WriteFile(filepath.Join(out, "SHA256SUMS"), []byte(strings.Join(sums, "")), 0o644)
}
