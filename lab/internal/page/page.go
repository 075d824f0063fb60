// Package page reads what the pages of the documentation show: files with their names, and commands with what
// they print, so that a test can run them word for word.
package page

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Block is a piece of code in a page.
type Block struct {
	Lang, Text string
	NotRun     string // why nobody runs it; empty: somebody does
}

var fenced = regexp.MustCompile("(?ms)^(?:<!-- not run: ([^>]*?) -->\n)?```([a-z]*)\n(.*?)^```$")

// Blocks are those of a file, in order.
func Blocks(file string) ([]Block, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var all []Block
	for _, m := range fenced.FindAllStringSubmatch(string(data), -1) {
		all = append(all, Block{NotRun: m[1], Lang: m[2], Text: m[3]})
	}
	return all, nil
}

// File is the name of the file that a block shows, which is in its first line; empty: it is none.
func (b Block) File() string {
	first, _, _ := strings.Cut(b.Text, "\n")
	if name, ok := strings.CutPrefix(first, "# "); ok && b.Lang == "yaml" && strings.HasSuffix(name, ".yaml") {
		return name
	}
	return ""
}

// Command is one line of a block, with what it is said to print.
type Command struct {
	Host, Line string
	Prints     []string
}

// prompts say on which host of the site a command is typed.
var prompts = map[string]string{"$": "cp", "edge#": "edge", "home$": "home1", "inet$": "inet"}

// Commands are those of a block, in order.
func (b Block) Commands() []Command {
	if b.Lang != "console" {
		return nil
	}
	var all []Command
	for line := range strings.Lines(b.Text) {
		line = strings.TrimRight(line, "\n")
		prompt, rest, _ := strings.Cut(line, " ")
		if host := prompts[prompt]; host != "" {
			all = append(all, Command{Host: host, Line: rest})
		} else if len(all) > 0 && strings.TrimSpace(line) != "" {
			last := &all[len(all)-1]
			last.Prints = append(last.Prints, line)
		}
	}
	return all
}

// Compare says what is wrong with what a command has printed: each line of the page has to be there, in order. …
// stands for anything.
func (c Command) Compare(out string, err error) string {
	mayFail := strings.HasPrefix(c.Line, "gatehouse explain")
	rest := strings.Split(out, "\n")
	for _, want := range c.Prints {
		mayFail = mayFail || strings.HasPrefix(want, "curl: (")
		pattern := regexp.MustCompile("^" + strings.NewReplacer(" …", "( .*)?", "…", ".*").Replace(regexp.QuoteMeta(squeeze(want))) + "$")
		for {
			if len(rest) == 0 {
				return fmt.Sprintf("it does not print %q", want)
			}
			line := squeeze(rest[0])
			rest = rest[1:]
			if pattern.MatchString(line) {
				break
			}
		}
	}
	if err != nil && !mayFail {
		return err.Error()
	}
	if err == nil && len(c.Prints) > 0 && strings.HasPrefix(c.Prints[0], "curl: (") {
		return "it gets through"
	}
	return ""
}

// squeeze makes columns comparable, however wide they are.
func squeeze(line string) string { return strings.Join(strings.Fields(line), " ") }
