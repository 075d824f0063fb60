package main

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/cli"
	"e13.dev/gatehouse/internal/config"
)

func TestTheReferenceOfCommandsIsCurrent(t *testing.T) {
	_, all := cli.Commands()
	got, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "commands.md"))
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != markdown(all) {
		t.Error("docs/commands.md is not what the commands say: run 'make gen'")
	}
}

func TestTheListOfDecisionsIsCurrent(t *testing.T) {
	dir := filepath.Join("..", "..", "..", "docs", "adr")
	want, err := decisions(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "README.md")); err != nil || string(got) != want {
		t.Errorf("docs/adr/README.md is not the list of the decisions: run 'make gen' (%v)", err)
	}
}

// Each text is of a command, and each command has a page.
func TestTextsAndPagesAreThoseOfTheCommands(t *testing.T) {
	root, all := cli.Commands()
	names := map[string]bool{"gatehouse": true}
	pages := manPages(root, all, config.Docs())
	for _, c := range all {
		names[c.Name] = true
		if pages["gatehouse-"+c.Name+".8"] == "" {
			t.Errorf("%s has no man page", c.Name)
		}
		if !strings.Contains(pages["gatehouse.8"], `gatehouse\-`+c.Name) {
			t.Errorf("gatehouse(8) does not name %s", c.Name)
		}
	}
	entries, err := texts.ReadDir("text")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := strings.TrimSuffix(e.Name(), ".md"); !names[name] {
			t.Errorf("text/%s is of no command", e.Name())
		}
	}
}

var leftOver = regexp.MustCompile("(?m)^[^.\"\n].*(`|\\*\\*|\\]\\()")

// What Markdown marks is not to be seen in the pages, and no line is taken for a
// macro that is none.
func TestManPagesHaveNoMarksOfMarkdown(t *testing.T) {
	root, all := cli.Commands()
	pages := manPages(root, all, config.Docs())
	macros := []string{".TH", ".SH", ".SS", ".PP", ".TP", ".IP", ".RS", ".RE", ".EX", ".EE", ".B", ".I", ".BR", `.\"`}
	for _, name := range slices.Sorted(maps.Keys(pages)) {
		code := false
		for line := range strings.Lines(pages[name]) {
			line = strings.TrimSuffix(line, "\n")
			word, _, _ := strings.Cut(line, " ")
			switch {
			case strings.HasPrefix(line, ".") && !slices.Contains(macros, word):
				t.Errorf("%s: %q is no macro", name, line)
			case word == ".EX", word == ".EE":
				code = word == ".EX"
			case !code && leftOver.MatchString(line):
				t.Errorf("%s: marks are left in %q", name, line)
			}
		}
		if code {
			t.Errorf("%s: code does not end", name)
		}
	}
}

func TestRoff(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"paragraph":       {"one\ntwo `--x` and **much**, *so*.\n\nthree", ".PP\none two \\fB\\-\\-x\\fR and \\fBmuch\\fR, \\fIso\\fR.\n.PP\nthree\n"},
		"heading":         {"## A `b`\n\n### C", ".SH \"A B\"\n.SS \"C\"\n"},
		"link":            {"see [there](x.md#y)", ".PP\nsee there\n"},
		"list":            {"* one\n  more\n* two", ".IP \\(bu 2\none more\n.IP \\(bu 2\ntwo\n"},
		"code":            {"```sh\n.x\na\\b\n```", ".PP\n.RS 4\n.EX\n\\&.x\na\\eb\n.EE\n.RE\n"},
		"table":           {"| field | default | meaning |\n|---|---|---|\n| `a` | `1` | x \\| y |\n| `b` |  | z. |", ".TP\n\\fBa\\fR\ndefault: \\fB1\\fR. x | y.\n.TP\n\\fBb\\fR\nz.\n"},
		"a line of a dot": {".hidden", ".PP\n\\&.hidden\n"},
		"no ASCII":        {"3 × `…`", ".PP\n3 \\[u00D7] \\fB\\[u2026]\\fR\n"},
		"escaped marks":   {`a\_b and 2\*3 &lt;x>`, ".PP\na_b and 2*3 <x>\n"},
	} {
		if got := roff(c.in); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

// Two runs write the same bytes.
func TestPagesAreReproducible(t *testing.T) {
	root, all := cli.Commands()
	if a, b := manPages(root, all, config.Docs()), manPages(root, all, config.Docs()); !maps.Equal(a, b) {
		t.Error("two runs wrote different pages")
	}
	a, b := t.TempDir(), t.TempDir()
	for _, dir := range []string{a, b} {
		if err := run([]string{"man", dir}); err != nil {
			t.Fatal(err)
		}
	}
	for name := range manPages(root, all, config.Docs()) {
		one, err := os.ReadFile(filepath.Join(a, name))
		two, errTwo := os.ReadFile(filepath.Join(b, name))
		if err != nil || errTwo != nil || string(one) != string(two) || len(one) == 0 {
			t.Errorf("%s is not the same in two directories: %v, %v", name, err, errTwo)
		}
	}
	if run([]string{"nonsense"}) == nil {
		t.Error("a command line that makes no sense is none")
	}
}
