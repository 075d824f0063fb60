// Command lab makes, uses and removes labs: whole sites of network namespaces on this machine, with a real Kubernetes
// control plane. It is also what runs inside them: the agent of each worker and the programs in the pods are this
// executable under names that begin with an underscore.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"e13.dev/gatehouse/lab/internal/agent"
	"e13.dev/gatehouse/lab/internal/enter"
	"e13.dev/gatehouse/lab/internal/workload"
	"e13.dev/gatehouse/lab/site"
)

const usage = `lab: a whole site on one machine, with a real Kubernetes in it

  lab up [--name NAME] [--gatehouse PATH --config FILE] [--manifests FILE]... [--samples]
         [--proxy-mode nftables|iptables] [--pod-routes]     make it
         [--bare]                                            with gatehouse as its router
  lab down [--name NAME | --all]                             remove it, or what a crash left of it
  lab status [--name NAME]                                   hosts, components, nodes, pods
  lab kubectl [--name NAME] ARGUMENT...                      kubectl, as the admin
  lab exec [--name NAME] HOST PROGRAM [ARGUMENT]...          run something on a host, or in a pod (NAMESPACE/POD)
  lab stop [--name NAME] [--kill] COMPONENT                  end a component (lab status lists them)
  lab start [--name NAME] COMPONENT                          start it again
  lab pause [--name NAME] COMPONENT                          freeze a component: it is there, and answers nobody
  lab resume [--name NAME] COMPONENT                         let it go on
  lab unplug [--name NAME] HOST INTERFACE                    pull a cable
  lab plug [--name NAME] HOST INTERFACE                      put it back
  lab cut [--name NAME] HOST HOST                            two hosts of one network do not reach each other any more
  lab mend [--name NAME] HOST HOST                           they do again
  lab attach [--name NAME] HOST INTERFACE NETWORK [ADDRESS/LENGTH]...
                                                             one more interface, in the network inet, home, cluster
                                                             or a new one
  lab detach [--name NAME] HOST INTERFACE                    take it away
  lab compact [--name NAME]                                  etcd forgets all history
  lab empty-store [--name NAME]                              the API server knows nothing any more but who gatehouse is
  lab restore-store [--name NAME]                            it knows everything again
  lab kubeconfig [--name NAME] [NAMESPACE/SERVICEACCOUNT]    path of a kubeconfig: the admin's, or one with a new token
  lab logs [--name NAME] COMPONENT                           path of its log

NAME is lab unless LAB_NAME says otherwise. Hosts: inet router home1 home2 edge cp w1 w2 w3, and with --bare nas.
`

var (
	errUsage   = errors.New("usage")
	errNotRoot = errors.New("a lab is made of network namespaces: run this as root")
)

// init runs on the process's first thread, and main's goroutine stays there. When another thread calls exec, the
// kernel lets the first one die before it hands over its process id, and for that moment whoever looks finds a zombie.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "_enter" {
		runtime.LockOSThread()
	}
}

func main() {
	site.FindSystemPrograms()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case err == nil:
	case errors.Is(err, errUsage):
		if err != errUsage {
			fmt.Fprintf(os.Stderr, "lab: %s\n\n", strings.TrimPrefix(err.Error(), "usage: "))
		}
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	command, args := args[0], args[1:]
	switch command {
	case "_enter":
		return enter.Main(args)
	case "_agent":
		return runAgent(ctx, args)
	case "_pod":
		if len(args) == 0 {
			return errUsage
		}
		return workload.Main(args[0], args[1:])
	case "help", "-h", "--help":
		fmt.Print(usage)
		return nil
	case "up":
		return up(ctx, args)
	case "down":
		return down(ctx, args)
	}

	use, ok := commands[command]
	if !ok {
		return fmt.Errorf("%w: there is no command %q", errUsage, command)
	}
	flags, name := newFlags(command)
	kill := false
	if command == "stop" {
		flags.BoolVar(&kill, "kill", false, "")
	}
	if command == "kubectl" {
		args = kubectlArgs(args)
	}
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%w: lab %s: %w", errUsage, command, err)
	}
	if n := flags.NArg(); n < use.min || use.max >= 0 && n > use.max {
		return fmt.Errorf("%w: lab %s with %d arguments", errUsage, command, n)
	}
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	s, err := site.Open(*name)
	if err != nil {
		return err
	}
	if kill {
		return s.Kill(ctx, flags.Arg(0))
	}
	return use.run(ctx, s, flags.Args())
}

// kubectlArgs separates our own --name, which can only come first, from kubectl's flags.
func kubectlArgs(args []string) []string {
	ours := 0
	switch {
	case len(args) > 1 && args[0] == "--name":
		ours = 2
	case len(args) > 0 && strings.HasPrefix(args[0], "--name="):
		ours = 1
	}
	return slices.Insert(slices.Clone(args), ours, "--")
}

// commands work on a lab that is up; min and max count their arguments, max -1 is any number.
var commands = map[string]struct {
	min, max int
	run      func(context.Context, *site.Site, []string) error
}{
	"status": {0, 0, status},
	"kubectl": {0, -1, func(ctx context.Context, s *site.Site, args []string) error {
		return become(s.KubectlCommand(ctx, args...))
	}},
	"exec": {2, -1, func(ctx context.Context, s *site.Site, args []string) error {
		cmd, err := s.Command(ctx, args[0], args[1:]...)
		if err != nil {
			return err
		}
		return become(cmd)
	}},
	"stop":   {1, 1, func(ctx context.Context, s *site.Site, args []string) error { return s.Stop(ctx, args[0]) }},
	"start":  {1, 1, func(ctx context.Context, s *site.Site, args []string) error { return s.Start(ctx, args[0]) }},
	"unplug": {2, 2, func(_ context.Context, s *site.Site, args []string) error { return s.LinkDown(args[0], args[1]) }},
	"plug":   {2, 2, func(_ context.Context, s *site.Site, args []string) error { return s.LinkUp(args[0], args[1]) }},
	"pause":  {1, 1, func(ctx context.Context, s *site.Site, args []string) error { return s.Pause(ctx, args[0]) }},
	"resume": {1, 1, func(ctx context.Context, s *site.Site, args []string) error { return s.Resume(ctx, args[0]) }},
	"cut":    {2, 2, func(ctx context.Context, s *site.Site, args []string) error { return s.Cut(ctx, args[0], args[1]) }},
	"mend":   {2, 2, func(ctx context.Context, s *site.Site, args []string) error { return s.Mend(ctx, args[0], args[1]) }},
	"attach": {3, -1, func(ctx context.Context, s *site.Site, args []string) error {
		return s.Attach(ctx, args[0], args[1], args[2], args[3:]...)
	}},
	"detach":  {2, 2, func(ctx context.Context, s *site.Site, args []string) error { return s.Detach(ctx, args[0], args[1]) }},
	"compact": {0, 0, func(ctx context.Context, s *site.Site, _ []string) error { return s.Compact(ctx) }},
	"empty-store": {0, 0, func(ctx context.Context, s *site.Site, _ []string) error {
		return s.EmptyStore(ctx, site.AccessKeys...)
	}},
	"restore-store": {0, 0, func(ctx context.Context, s *site.Site, _ []string) error { return s.RestoreStore(ctx) }},
	"kubeconfig": {0, 1, func(ctx context.Context, s *site.Site, args []string) error {
		if len(args) == 0 {
			fmt.Println(s.AdminKubeconfig())
			return nil
		}
		namespace, account, ok := strings.Cut(args[0], "/")
		if !ok {
			return errUsage
		}
		path, err := s.TokenKubeconfig(ctx, namespace, account, 30*24*time.Hour)
		if err == nil {
			fmt.Println(path)
		}
		return err
	}},
	"logs": {1, 1, func(_ context.Context, s *site.Site, args []string) error {
		path := s.LogPath(args[0])
		if _, err := os.Stat(path); err != nil {
			return err
		}
		fmt.Println(path)
		return nil
	}},
}

func newFlags(command string) (*flag.FlagSet, *string) {
	flags := flag.NewFlagSet("lab "+command, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the usage text says it all
	name := os.Getenv("LAB_NAME")
	if name == "" {
		name = "lab"
	}
	return flags, flags.String("name", name, "")
}

// parseAll is for commands that take flags only.
func parseAll(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%w: %s: %w", errUsage, flags.Name(), err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%w: %s: what is %q", errUsage, flags.Name(), flags.Arg(0))
	}
	return nil
}

// become replaces this process by the command: its terminal, signals and exit code are then the program's own.
func become(cmd *exec.Cmd) error {
	env := cmd.Env
	if env == nil {
		env = os.Environ()
	}
	return syscall.Exec(cmd.Path, cmd.Args, env)
}

func up(ctx context.Context, args []string) error {
	flags, name := newFlags("up")
	o := site.Options{Progress: os.Stderr}
	flags.StringVar(&o.Gatehouse, "gatehouse", "", "")
	flags.StringVar(&o.Config, "config", "", "")
	flags.StringVar(&o.ProxyMode, "proxy-mode", "nftables", "")
	flags.BoolVar(&o.Samples, "samples", false, "")
	flags.BoolVar(&o.PodRoutes, "pod-routes", false, "")
	flags.BoolVar(&o.Bare, "bare", false, "")
	flags.Func("manifests", "", func(v string) error {
		o.Manifests = append(o.Manifests, v)
		return nil
	})
	if err := parseAll(flags, args); err != nil {
		return err
	}
	o.Name = *name
	began := time.Now()
	s, err := site.Up(ctx, o)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%5.1fs  lab %s is up\n", time.Since(began).Seconds(), s.Name())
	fmt.Print(firstSteps(o))
	return nil
}

// firstSteps are commands that work when pasted into the shell that ran `lab up`.
func firstSteps(o site.Options) string {
	me := os.Args[0]
	if o.Name != "lab" {
		me = "LAB_NAME=" + o.Name + " " + me
	}
	var b strings.Builder
	fmt.Fprintln(&b, "\nTry:")
	switch {
	case o.Samples && o.Gatehouse != "":
		fmt.Fprintf(&b, "  %s exec home1 curl -s http://%s/          # home/web, from the home LAN\n", me, site.EdgeHome)
		fmt.Fprintf(&b, "  %s exec inet curl -s -m 2 http://%s:8080/  # ingress-public/shop, from the Internet\n", me, site.PublicAddress)
		fmt.Fprintf(&b, "  %s kubectl -n ingress-public annotate --overwrite service shop gatehouse.e13.dev/zones=internet,home  # now http://%s:8080/ answers home1 too\n", me, site.EdgeHome)
	case o.Samples:
		fmt.Fprintf(&b, "  %s kubectl get services,pods -A -o wide\n", me)
		fmt.Fprintf(&b, "  %s exec edge curl -s http://$(%s kubectl -n home get pod -l app=web -o 'jsonpath={.items[0].status.hostIP}'):$(%s kubectl -n home get service web -o 'jsonpath={.spec.ports[0].nodePort}')/\n", me, me, me)
	default:
		fmt.Fprintf(&b, "  %s kubectl get nodes -o wide\n", me)
		fmt.Fprintf(&b, "  %s kubectl create deployment web --image lab/web --replicas 3 --port 8080\n", me)
	}
	fmt.Fprintf(&b, "  %s status\n  %s down\n", me, me)
	return b.String()
}

func down(ctx context.Context, args []string) error {
	flags, name := newFlags("down")
	all := flags.Bool("all", false, "")
	if err := parseAll(flags, args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	names := []string{*name}
	if *all {
		var err error
		if names, err = site.Names(); err != nil {
			return err
		}
	}
	for _, n := range names {
		began := time.Now()
		if err := site.Down(ctx, n); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%5.1fs  lab %s is down\n", time.Since(began).Seconds(), n)
	}
	return nil
}

func status(ctx context.Context, s *site.Site, _ []string) error {
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	state := "up"
	if !st.Ready {
		state = "not ready (being made, or left half made: lab down removes it)"
	}
	fmt.Printf("lab %s: %s, since %s, state in %s\n\n", st.Name, state, st.Created.Format(time.DateTime), st.Dir)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "HOST\tADDRESSES\tPROCESSES")
	for _, h := range st.Hosts {
		fmt.Fprintf(w, "%s\t%s\t%d\n", h.Name, strings.Join(h.Addresses, ", "), h.Processes)
	}
	fmt.Fprintln(w, "\t\t")
	fmt.Fprintln(w, "COMPONENT\tHOST\tPID\tSTATE")
	for _, c := range st.Components {
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", c.Name, c.Host, c.PID, c.State)
	}
	w.Flush()
	fmt.Println()
	for _, what := range []string{"nodes", "pods"} {
		out, err := s.Kubectl(ctx, "get", what, "-A", "-o", "wide", "--request-timeout=3s")
		if err != nil {
			fmt.Println("no", what, "to show:", err)
			continue
		}
		fmt.Println(out)
	}
	return nil
}

func runAgent(ctx context.Context, args []string) error {
	var cfg agent.Config
	flags := flag.NewFlagSet("lab _agent", flag.ContinueOnError)
	flags.StringVar(&cfg.Lab, "lab", "", "name of the lab")
	flags.StringVar(&cfg.Node, "node", "", "name of the node")
	flags.StringVar(&cfg.Kubeconfig, "kubeconfig", "", "of the node")
	flags.StringVar(&cfg.Dir, "dir", "", "of the lab's state")
	flags.BoolVar(&cfg.IPv4Node, "ipv4-node", false, "the Node has no IPv6 address")
	flags.BoolVar(&cfg.ControlPlane, "control-plane", false, "takes no pods and none of their traffic")
	flags.TextVar(&cfg.Address, "address", netip.Addr{}, "of the node")
	flags.TextVar(&cfg.Address6, "address6", netip.Addr{}, "of the node, IPv6")
	flags.TextVar(&cfg.PodCIDR, "pod-cidr", netip.Prefix{}, "addresses of the node's pods")
	flags.TextVar(&cfg.PodCIDR6, "pod-cidr6", netip.Prefix{}, "the same, IPv6")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return err
	}
	a, err := agent.New(cfg, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	return a.Run(ctx)
}
