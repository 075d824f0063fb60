package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"e13.dev/gatehouse/internal/daemon"
	"e13.dev/gatehouse/internal/status"
)

// completionPatience is how long somebody who has pressed Tab is kept waiting
// for the daemon.
const completionPatience = 2 * time.Second

func newCompletion() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print a script that completes gatehouse's command lines",
		Long: `completion prints a script for a shell, which then completes commands, flags and
files, zones and names of Services: those of the files (-c) or of the running daemon.
That for bash needs the package bash-completion. The Debian package has all three.`,
		Example: `gatehouse completion bash > /etc/bash_completion.d/gatehouse
gatehouse completion zsh > /usr/local/share/zsh/site-functions/_gatehouse
gatehouse completion fish > /etc/fish/completions/gatehouse.fish`,
		ValidArgs: shells,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || !slices.Contains(shells, args[0]) {
				return usageError{fmt.Errorf("completion: name the shell: %s", strings.Join(shells, ", "))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			default:
				return root.GenBashCompletionV2(out, true)
			}
		},
	}
}

// addCompletions says what the values of flags and arguments can be, by what
// the flags are called: they mean the same in every command.
func addCompletions(cmd *cobra.Command) {
	complete := map[string]cobra.CompletionFunc{
		"from": completeZones,
		"zone": completeInterfaces,
	}
	for name, f := range complete {
		if cmd.Flags().Lookup(name) != nil {
			_ = cmd.RegisterFlagCompletionFunc(name, f) // fails where there is one already
		}
	}
	if f := cmd.Flags().Lookup("output"); f != nil && f.DefValue == "table" {
		_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	}
	for _, name := range []string{"url", "server", "class", "context"} {
		if cmd.Flags().Lookup(name) != nil {
			_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
		}
	}
	if cmd.Flags().Lookup("config") != nil {
		_ = cmd.MarkFlagFilename("config", "yaml", "yml", "json")
	}
	switch {
	case cmd.ValidArgsFunction != nil || len(cmd.ValidArgs) > 0:
	case cmd.Name() == "explain":
		cmd.ValidArgsFunction = completeQuestions
	default:
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
}

// completeZones offers the zones of the files, or else of the running daemon.
func completeZones(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var zones []string
	if files := filesSaid(cmd); len(files) > 0 {
		if c, _ := daemon.ReadFiles(files); c != nil {
			for _, z := range c.Zones {
				zones = append(zones, z.Name+"\t"+strings.Join(z.Interfaces, " "))
			}
		}
	} else if s := statusFor(cmd); s != nil {
		for _, f := range s.Frontends {
			if f.Zone != "" {
				zones = append(zones, f.Zone)
			}
		}
	}
	return unique(zones), cobra.ShellCompDirectiveNoFileComp
}

// completeQuestions offers what the running daemon has and can explain.
func completeQuestions(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	if s := statusFor(cmd); s != nil {
		for _, e := range s.Exposures {
			if e.Service != "" {
				names = append(names, e.Service)
			}
			names = append(names, e.Name)
			for _, name := range e.Hostnames {
				if !strings.HasPrefix(name, "*") {
					names = append(names, name)
				}
			}
		}
	}
	return unique(names), cobra.ShellCompDirectiveNoFileComp
}

// completeInterfaces offers NAME=INTERFACE for the interfaces of this machine.
func completeInterfaces(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	name, _, said := strings.Cut(typed, "=")
	interfaces, err := net.Interfaces()
	if !said || err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
	var all []string
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback == 0 {
			all = append(all, name+"="+i.Name)
		}
	}
	return all, cobra.ShellCompDirectiveNoFileComp
}

// filesSaid are those of the command line so far, each once: cobra reads it
// twice when it completes.
func filesSaid(cmd *cobra.Command) []string {
	files, _ := cmd.Flags().GetStringArray("config") // or there is no such flag
	return unique(files)
}

// statusFor asks the daemon that the command line so far names. Nobody is told
// why there is no answer: nothing is offered then.
func statusFor(cmd *cobra.Command) *status.Status {
	var w whom
	w.files = filesSaid(cmd)
	w.url, _ = cmd.Flags().GetString("url")
	w.tokenFile, _ = cmd.Flags().GetString("token-file")
	client, err := w.client(io.Discard)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), completionPatience)
	defer cancel()
	data, err := client.get(ctx, "/status.json", nil)
	if err != nil {
		return nil
	}
	s := &status.Status{}
	if json.Unmarshal(data, s) != nil {
		return nil
	}
	return s
}

func unique(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}
