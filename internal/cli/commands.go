package cli

import (
	"io"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Command is what the references tell of a command; they are written from it.
type Command struct {
	Name    string
	Use     string // "run -c FILE..."
	Short   string // one line
	Long    string // paragraphs; indented lines are as they are
	Example string // shell lines
	Flags   []Flag // by name
}

// Flag is one of a command's flags.
type Flag struct {
	Name      string // without dashes
	Shorthand string // one letter, or none
	Value     string // what it takes, "FILE"; empty: nothing
	Default   string // empty: none, or one that says nothing
	Usage     string
}

// Commands are all commands that people type, by name, and what they have in
// common.
func Commands() (root Command, all []Command) {
	r := newRoot(io.Discard, io.Discard)
	for _, cmd := range r.Commands() {
		if cmd.IsAvailableCommand() && cmd.Name() != "help" {
			all = append(all, describe(cmd))
		}
	}
	slices.SortFunc(all, func(a, b Command) int { return compare(a.Name, b.Name) })
	return describe(r), all
}

// The commands in the order in which somebody meets them; what is not listed
// comes last.
var ordered = []string{
	"init", "kubeconfig", "check", "plan", "prove", "run", "apply", "confirm", "status", "explain", "leases", "announce", "demo", "down", "uninstall", "completion", "version",
}

func compare(a, b string) int {
	place := func(name string) int {
		if i := slices.Index(ordered, name); i >= 0 {
			return i
		}
		return len(ordered)
	}
	return place(a) - place(b)
}

func describe(cmd *cobra.Command) Command {
	c := Command{Name: cmd.Name(), Use: cmd.Use, Short: cmd.Short, Long: cmd.Long, Example: cmd.Example}
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" || f.Name == "version" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		switch {
		case value == "string" && f.DefValue == "table":
			value = "FORMAT"
		case value == "string" || value == "stringArray":
			value = "TEXT"
		}
		flag := Flag{Name: f.Name, Shorthand: f.Shorthand, Value: value, Usage: usage}
		switch f.DefValue {
		case "", "[]", "false", "0", "0s":
		default:
			flag.Default = f.DefValue
		}
		c.Flags = append(c.Flags, flag)
	})
	return c
}
