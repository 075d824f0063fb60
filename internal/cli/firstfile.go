package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/firstfile"
	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/kube"
)

func newInit() *cobra.Command {
	var c initCommand
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Propose a first configuration from the interfaces of this machine",
		Long: `init asks this machine for its interfaces, addresses and routes, and writes a first
configuration with a zone for each network that it leads to:

  home       the network that the default route leads to, if its addresses are private
  internet   an interface with a public address; or a MACVLAN on that of home, which
             is a door of its own for what the router forwards
  cluster    the way to the API server and the nodes, if --kubeconfig is given, and
             nothing else is there
  others     are named after their interface: call them what the networks are

Left out, with a word why, are the loopback, what has no address, parts of bridges and
bonds, tunnels between nodes, and what container engines and network plugins make.
Nothing of the machine is changed, and of the cluster only Nodes are read.

The file is a proposal: read it. check accepts it as it is. Everything that it does not
need is off, as examples in comments, each of which can be switched on by taking away
the "#" of its lines.`,
		Example: `  gatehouse init                                              # only look
  gatehouse init --kubeconfig /etc/gatehouse/kubeconfig -o /etc/gatehouse/gatehouse.yaml
  gatehouse init --zone cluster=eth0 --zone lan=eth1,wlan0    # where it would guess otherwise`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			c.out, c.say = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return c.run(ctx)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&c.file, "output", "o", "", "write this `FILE`; default: standard output")
	f.BoolVar(&c.force, "force", false, "write over a file that is there")
	f.StringArrayVar(&c.zones, "zone", nil, "`NAME=INTERFACE[,INTERFACE...]`: a zone with these interfaces; give it again for more zones")
	f.StringVar(&c.kubeconfig, "kubeconfig", "", "the kubeconfig `FILE` of gatehouse (gatehouse kubeconfig writes it), to go into the configuration and to find the cluster")
	return cmd
}

type initCommand struct {
	file, kubeconfig string
	zones            []string
	force            bool

	out, say io.Writer
}

// nodesPatience is how long the API server is asked for the nodes.
const nodesPatience = 10 * time.Second

func (c *initCommand) run(ctx context.Context) error {
	zones, err := zoneFlags(c.zones)
	if err != nil {
		return usageError{err}
	}
	if err := refuseToOverwrite(c.file, c.force); err != nil {
		return err
	}
	facts := firstfile.Facts{Zones: zones}
	if facts.Links, err = host.Survey(); err != nil {
		return err
	}
	if c.kubeconfig != "" {
		if !utf8.ValidString(c.kubeconfig) || strings.ContainsRune(c.kubeconfig, 0) {
			return usageError{fmt.Errorf("--kubeconfig %q: such a name cannot be written into a file", c.kubeconfig)}
		}
		if facts.Kubeconfig, err = filepath.Abs(c.kubeconfig); err != nil {
			return err
		}
		if facts.Towards, err = c.towardsCluster(ctx); err != nil {
			return err
		}
	}
	f, err := firstfile.Propose(facts)
	if err != nil {
		return usageError{fmt.Errorf("--zone: %w", err)}
	}
	c.tell(f)
	text := f.YAML()
	if c.file == "" {
		_, err = c.out.Write(text)
	} else if err = writeNew(c.file, text, 0o644, c.force); err == nil {
		fmt.Fprintf(c.say, "wrote %s\n", c.file)
	}
	if err != nil {
		return err
	}
	c.tellNext(f)
	return nil
}

// zoneFlags reads NAME=INTERFACE,INTERFACE.
func zoneFlags(flags []string) ([]edge.Zone, error) {
	var zones []edge.Zone
	for _, text := range flags {
		name, list, ok := strings.Cut(text, "=")
		z := edge.Zone{Name: name, Interfaces: strings.Split(list, ",")}
		if !ok || name == "" || strings.Contains(","+list+",", ",,") {
			return nil, fmt.Errorf("--zone %s: write NAME=INTERFACE, such as home=eth1, or several: lan=eth1,wlan0", text)
		}
		zones = append(zones, z)
	}
	return zones, nil
}

// towardsCluster is by which interfaces the API server and the nodes are reached.
// A cluster that does not answer now is no reason to write nothing.
func (c *initCommand) towardsCluster(ctx context.Context) ([]firstfile.Towards, error) {
	ctx, cancel := context.WithTimeout(ctx, nodesPatience)
	defer cancel()
	w, err := kube.WhereaboutsOf(ctx, c.kubeconfig, "gatehouse/"+Version)
	if w.Server == "" {
		return nil, err
	}
	if err != nil {
		fmt.Fprintf(c.say, "the nodes are not known: %v\n", err)
	}
	var all []firstfile.Towards
	add := func(what string, addr netip.Addr) {
		link, err := host.Towards(addr)
		if err != nil {
			fmt.Fprintf(c.say, "%s cannot be reached: %v\n", what, err)
			return
		}
		all = append(all, firstfile.Towards{What: what, Link: link})
	}
	server, err := addresses(ctx, w.Server)
	if err != nil {
		fmt.Fprintf(c.say, "where the API server is cannot be told: %v\n", err)
	}
	for _, a := range server {
		if !a.IsLoopback() {
			add("the API server "+a.String(), a)
		}
	}
	for _, a := range w.Nodes {
		if len(w.Nodes) > 4 {
			add(fmt.Sprintf("%d nodes", w.Count), a)
			continue
		}
		add("the node "+a.String(), a)
	}
	return all, nil
}

// addresses are those of a host: of a name all that it stands for.
func addresses(ctx context.Context, name string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}, nil
	}
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	for i := range all {
		all[i] = all[i].Unmap()
	}
	return all, err
}

func (c *initCommand) tell(f firstfile.File) {
	for _, z := range f.Zones {
		fmt.Fprintf(c.say, "zone %s: %s\n", z.Name, z.Why)
		for _, l := range z.Links {
			fmt.Fprintf(c.say, "    %s\n", firstfile.Describe(l))
		}
	}
	for _, l := range f.LeftOut {
		fmt.Fprintf(c.say, "left out %q: %s\n", l.Name, l.Why)
	}
	if len(f.Zones) == 0 {
		fmt.Fprintln(c.say, "no zone: no interface leads anywhere; give them addresses, or name them with --zone NAME=INTERFACE")
	}
}

func (c *initCommand) tellNext(f firstfile.File) {
	file := c.file
	if file == "" {
		file = "FILE"
	}
	fmt.Fprintln(c.say, "\nNext:")
	if _, err := os.Stat(f.Kubeconfig); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(c.say, "  gatehouse kubeconfig     where kubectl works; copy what it writes to %s\n", f.Kubeconfig)
	}
	zone := "home"
	if len(f.Zones) > 0 {
		zone = f.Zones[0].Name
	}
	fmt.Fprintf(c.say, "  gatehouse check -c %[1]s     after you have read it, and called the zones what you like\n"+
		"  gatehouse plan -c %[1]s      to see what would be open\n"+
		"  gatehouse run -c %[1]s\n"+
		"  kubectl annotate service NAME gatehouse.e13.dev/zones=%[2]s     opens a Service there\n", file, zone)
}
