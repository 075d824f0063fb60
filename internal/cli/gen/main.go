// Command gen writes what the command line and the configuration say of
// themselves: docs/commands.md, and man pages.
//
//	gen commands        prints docs/commands.md
//	gen man DIR         writes gatehouse.8, one page for each command, and gatehouse.yaml.5
//
// Texts of a command that are too long for its help are in text/NAME.md, in a
// small part of Markdown: headings, paragraphs, lists, tables, code, links. What
// it writes depends on the sources alone, so that two runs write the same bytes.
package main

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"e13.dev/gatehouse/internal/cli"
	"e13.dev/gatehouse/internal/config"
)

//go:embed text/*.md
var texts embed.FS

// textOf is what is said of a command beyond its help; most have something.
func textOf(name string) string {
	data, err := texts.ReadFile("text/" + name + ".md")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		panic(err) // it is embedded
	}
	return strings.TrimSpace(string(data))
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	root, all := cli.Commands()
	switch {
	case len(args) == 1 && args[0] == "commands":
		_, err := fmt.Print(markdown(all))
		return err
	case len(args) == 2 && args[0] == "man":
		return writeMan(args[1], root, all)
	}
	return errors.New("say what to write: commands, or man DIR")
}

func writeMan(dir string, root cli.Command, all []cli.Command) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // G301: man pages are for everybody
		return err
	}
	for name, text := range manPages(root, all, config.Docs()) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
