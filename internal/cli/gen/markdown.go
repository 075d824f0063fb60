package main

import (
	"fmt"
	"strings"

	"e13.dev/gatehouse/internal/cli"
)

// markdown is docs/commands.md.
func markdown(all []cli.Command) string {
	var b strings.Builder
	b.WriteString("# Commands\n\n<!-- Generated from internal/cli and internal/cli/gen/text by \"make gen\". -->\n\n")
	b.WriteString(textOf("gatehouse") + "\n\n| command | does |\n|---|---|\n")
	for _, c := range all {
		fmt.Fprintf(&b, "| [`%s`](#gatehouse-%s) | %s |\n", c.Name, c.Name, cell(c.Short))
	}
	for _, c := range all {
		b.WriteString("\n" + section(c))
	}
	return b.String()
}

func section(c cli.Command) string {
	parts := []string{
		fmt.Sprintf("## `gatehouse %s`", c.Name),
		"```\ngatehouse " + usage(c) + "\n```",
		prose(c.Long),
		flagTable(c.Flags),
		examples(c.Example),
		textOf(c.Name),
	}
	var b strings.Builder
	for _, p := range parts {
		if p != "" {
			b.WriteString(p + "\n\n")
		}
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// usage is the command with its arguments; flags are in the table, but for those
// that it does not go without.
func usage(c cli.Command) string {
	if len(c.Flags) > 0 {
		return c.Use + " [flags]"
	}
	return c.Use
}

// prose is a command's help as Markdown: what is indented there is code.
func prose(long string) string {
	var out []string
	for p := range strings.SplitSeq(strings.TrimSpace(long), "\n\n") {
		if indented(p) {
			out = append(out, "```\n"+dedent(p)+"\n```")
			continue
		}
		out = append(out, plain(p))
	}
	return strings.Join(out, "\n\n")
}

func indented(paragraph string) bool {
	for line := range strings.Lines(paragraph) {
		if !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "\t") {
			return false
		}
	}
	return paragraph != ""
}

func dedent(text string) string {
	var out []string
	for line := range strings.Lines(strings.Trim(text, "\n")) {
		line = strings.TrimRight(line, "\n")
		out = append(out, strings.TrimPrefix(strings.TrimPrefix(line, "\t"), "  "))
	}
	return strings.Join(out, "\n")
}

// plain keeps what Markdown would take for its own as it is.
func plain(text string) string {
	return strings.NewReplacer("<", "&lt;", "*", `\*`, "_", `\_`).Replace(text)
}

func cell(text string) string {
	return strings.ReplaceAll(plain(text), "|", `\|`)
}

func flagTable(flags []cli.Flag) string {
	if len(flags) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("| flag | default | meaning |\n|---|---|---|\n")
	for _, f := range flags {
		def := ""
		if f.Default != "" {
			def = "`" + f.Default + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", spelled(f), def, cell(f.Usage))
	}
	return strings.TrimRight(b.String(), "\n")
}

// spelled is a flag as it is typed: "-c, --config FILE".
func spelled(f cli.Flag) string {
	s := "--" + f.Name
	if f.Shorthand != "" {
		s = "-" + f.Shorthand + ", " + s
	}
	if f.Value != "" {
		s += " " + f.Value
	}
	return s
}

func examples(text string) string {
	if strings.TrimSpace(text) == "" {
		return ""
	}
	var b strings.Builder
	b.WriteString("```console\n")
	for line := range strings.Lines(dedent(text)) {
		line = strings.TrimRight(line, "\n")
		if line != "" && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "$") {
			line = "$ " + line
		}
		b.WriteString(line + "\n")
	}
	return b.String() + "```"
}
