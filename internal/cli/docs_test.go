package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/config"
)

var (
	yamlBlock = regexp.MustCompile("(?ms)^( *)```yaml\n(.*?)^ *```$")
	link      = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
)

func documents(t *testing.T) map[string]string {
	t.Helper()
	root := filepath.Join("..", "..")
	files := []string{filepath.Join(root, "README.md"), filepath.Join(root, "CHANGELOG.md"), filepath.Join(root, "CONTRIBUTING.md")}
	for _, pattern := range []string{"docs/*.md", "docs/adr/*.md"} {
		more, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, more...)
	}
	texts := map[string]string{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts[file] = string(data)
	}
	return texts
}

// A configuration that the documents show is one that check accepts.
func TestConfigurationsInTheDocsAreGood(t *testing.T) {
	found := 0
	for file, text := range documents(t) {
		for _, m := range yamlBlock.FindAllStringSubmatch(text, -1) {
			indent, block := m[1], m[2]
			block = strings.ReplaceAll("\n"+block, "\n"+indent, "\n")[1:]
			if !strings.HasPrefix(block, "apiVersion: gatehouse.e13.dev/v1\n") && !strings.Contains(block, "\napiVersion: gatehouse.e13.dev/v1\n") {
				continue
			}
			found++
			if _, problems := config.Parse([]config.File{{Name: file, Data: []byte(block)}}); len(problems) > 0 {
				t.Errorf("%s shows a configuration with problems: %v\n%s", file, problems, block)
			}
		}
	}
	if found < 2 {
		t.Errorf("found %d configurations in the documents: the test does not look right", found)
	}
}

// Links between the documents lead somewhere, headings included.
func TestLinksInTheDocsLeadSomewhere(t *testing.T) {
	texts := documents(t)
	for file, text := range texts {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target := filepath.Join(filepath.Dir(file), m[1])
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which does not exist", file, m[1])
				continue
			}
			if anchor := strings.TrimPrefix(m[2], "#"); anchor != "" && !headings(texts[target])[anchor] {
				t.Errorf("%s links to %s, which has no heading #%s", file, m[1], anchor)
			}
		}
	}
}

// headings are the anchors that forges make of a document's headings.
func headings(text string) map[string]bool {
	anchors := map[string]bool{}
	for line := range strings.Lines(text) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			anchor := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), "")
			anchors[strings.ReplaceAll(anchor, " ", "-")] = true
		}
	}
	return anchors
}

// Every command has its section in the documents.
func TestEveryCommandIsDocumented(t *testing.T) {
	text := documents(t)[filepath.Join("..", "..", "docs", "commands.md")]
	for _, cmd := range newRoot(os.Stdout, os.Stderr).Commands() {
		if !strings.Contains(text, fmt.Sprintf("## `gatehouse %s", cmd.Name())) {
			t.Errorf("docs/commands.md has no section for %s", cmd.Name())
		}
	}
}
