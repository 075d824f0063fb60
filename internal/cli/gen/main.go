// Command gen writes what the command line and the configuration say of
// themselves: docs/commands.md, and man pages.
//
//	gen commands        prints docs/commands.md
//	gen man DIR         writes gatehouse.8, one page for each command, and gatehouse.yaml.5
//	gen decisions DIR   prints docs/adr/README.md, the list of those in DIR
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
	case len(args) == 2 && args[0] == "decisions":
		index, err := decisions(args[1])
		if err == nil {
			_, err = fmt.Print(index)
		}
		return err
	}
	return errors.New("say what to write: commands, man DIR, or decisions DIR")
}

func writeMan(dir string, root cli.Command, all []cli.Command) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // G301: man pages are for everybody
		return err
	}
	to, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	for name, text := range manPages(root, all, config.Docs()) {
		if err := to.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// decisions is the list of the records of a directory, by their titles.
func decisions(dir string) (string, error) {
	from, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer func() { _ = from.Close() }()
	files, err := fs.Glob(from.FS(), "[0-9]*.md")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("# Decisions\n\n<!-- Generated from the titles by \"make gen\". -->\n\nWhy it is as it is: the problem, the choice, and what was given up.\n\n")
	for _, file := range files {
		data, err := from.ReadFile(file)
		if err != nil {
			return "", err
		}
		first, _, _ := strings.Cut(string(data), "\n")
		number, name, ok := strings.Cut(strings.TrimPrefix(first, "# "), ". ")
		if !ok {
			return "", fmt.Errorf("%s begins with %q; write # NUMBER. TITLE", file, first)
		}
		fmt.Fprintf(&b, "* %s. [%s](%s)\n", number, name, file)
	}
	return b.String(), nil
}
